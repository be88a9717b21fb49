// Products of rows with matrices of floats and of bfloat16, for which the rows are rounded to it, too.

enum { ABREAST = 4, FEWER = LANES / ABREAST, AHEAD = 2048 };

// As many bytes as there are, and zeros.
static inline words load_words(const void *p, long bytes) {
    words v = {0};
    memcpy(&v, p, bytes);
    return v;
}

// sum + the products of a vector of weights with one of x; of bfloat16 each lane has two.
static inline floats add_float(floats sum, words w, words x) { return multiply_add((floats)w, (floats)x, sum); }

static inline floats add_bfloat16(floats sum, words w, words x) {
#if defined(__AVX512BF16__)
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#else
    sum = multiply_add((floats)(w << 16), (floats)(x << 16), sum);
    return multiply_add((floats)(w & 0xffff0000), (floats)(x & 0xffff0000), sum);
#endif
}

static inline void narrow_float(const float *x, float *to, long n) { memcpy(to, x, n * sizeof(float)); }

// Rows that are arranged side by side, from row r on.
static inline int abreast(const Pass *p, long r) { return r + FEWER <= p->rows ? FEWER : 1; }

// arrange_TYPE: FEWER rows of x, or one, as the tiles read them: a vector of each, then the next of each; zeros at last.
//
// multiply_TYPE: a vector of each of W rows of w, of which some bytes are left, with one of each of R rows of x.
//
// tile_TYPE: W rows of w against R rows of x, all sums in registers, each in the same order whatever W and R are.
//
// linear_TYPE: the first rows of x meet one row of w after the other, as these come from memory, where what is AHEAD is
// fetched; the others find them in the nearest cache.
#define PRODUCTS(TYPE)                                                                                                \
    enum { EACH_##TYPE = sizeof(words) / sizeof(TYPE) };                                                              \
                                                                                                                      \
    static inline long padded_##TYPE(long n) { return (n + EACH_##TYPE - 1) / EACH_##TYPE * EACH_##TYPE; }            \
                                                                                                                      \
    static void arrange_##TYPE(const float *x, TYPE *to, long n, int R) {                                             \
        for (long j = 0; j < n; j += EACH_##TYPE)                                                                     \
            for (int i = 0; i < R; i++, to += EACH_##TYPE) {                                                          \
                long count = n - j < EACH_##TYPE ? n - j : EACH_##TYPE;                                               \
                narrow_##TYPE(x + i * n + j, to, count);                                                              \
                memset(to + count, 0, (EACH_##TYPE - count) * sizeof(TYPE));                                          \
            }                                                                                                         \
    }                                                                                                                 \
                                                                                                                      \
    static inline __attribute__((always_inline)) void multiply_##TYPE(floats *sums, const TYPE *w, const TYPE *x,     \
                                                                      long n, long bytes, const int R, const int W,   \
                                                                      const int fetch) {                              \
        words weights[ABREAST];                                                                                       \
        for (int k = 0; k < W; k++) {                                                                                 \
            if (fetch) __builtin_prefetch((const char *)w + AHEAD);                                                   \
            words some = load_words(w + k * n, bytes);                                                                \
            HOLD(some);                                                                                               \
            weights[k] = some;                                                                                        \
        }                                                                                                             \
        for (int i = 0; i < R; i++) {                                                                                 \
            words some = load_words(x + i * EACH_##TYPE, sizeof some);                                                \
            HOLD(some);                                                                                               \
            for (int k = 0; k < W; k++) sums[i * W + k] = add_##TYPE(sums[i * W + k], weights[k], some);              \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    static inline __attribute__((always_inline)) void tile_##TYPE(const Step *s, const TYPE *x, long r, long o,       \
                                                                  const int R, const int W, const int fetch) {        \
        const long n = s->n, whole = n - n % EACH_##TYPE;                                                             \
        const TYPE *w = (const TYPE *)s->w + o * n;                                                                   \
        floats sums[LANES];                                                                                           \
        float totals[LANES];                                                                                          \
        x += r * padded_##TYPE(n);                                                                                    \
        for (int i = 0; i < R * W; i++) sums[i] = (floats){0};                                                        \
        for (long j = 0; j < whole; j += EACH_##TYPE, x += R * EACH_##TYPE)                                           \
            multiply_##TYPE(sums, w + j, x, n, sizeof(words), R, W, fetch);                                           \
        if (whole < n) multiply_##TYPE(sums, w + whole, x, n, (n - whole) * sizeof(TYPE), R, W, 0);                   \
        if (R * W == LANES)                                                                                           \
            store(totals, totals_of(sums));                                                                           \
        else                                                                                                          \
            for (int i = 0; i < R * W; i++) totals[i] = total(sums[i]);                                               \
        for (int i = 0; i < R; i++) {                                                                                 \
            float *y = s->y + (r + i) * s->m + o, *row = totals + i * W;                                              \
            for (int k = 0; s->b && k < W; k++) row[k] += s->b[o + k];                                                \
            for (int k = 0; s->how && k < W; k++) row[k] += y[k];                                                     \
            memcpy(y, row, W * sizeof(float));                                                                        \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    static void linear_##TYPE(const Step *s, const Pass *p, Member me) {                                              \
        TYPE *x = (TYPE *)p->scratch;                                                                                 \
        Part part = part_of((p->rows + FEWER - 1) / FEWER, me);                                                       \
        for (long r = part.begin * FEWER, R; r < part.end * FEWER && r < p->rows; r += R) {                           \
            R = abreast(p, r);                                                                                        \
            arrange_##TYPE(s->x + r * s->n, x + r * padded_##TYPE(s->n), s->n, R);                                    \
        }                                                                                                             \
        meet(me);                                                                                                     \
        part = part_of((s->m + ABREAST - 1) / ABREAST, me);                                                           \
        for (long o = part.begin * ABREAST; o < part.end * ABREAST && o < s->m; o += ABREAST)                         \
            for (long r = 0, R; r < p->rows; r += R) {                                                                \
                R = abreast(p, r);                                                                                    \
                if (r == 0 || o + ABREAST > s->m)                                                                     \
                    for (long k = o; k < s->m && k < o + ABREAST; k++)                                                \
                        if (R == FEWER)                                                                               \
                            tile_##TYPE(s, x, r, k, FEWER, 1, 1);                                                     \
                        else                                                                                          \
                            tile_##TYPE(s, x, r, k, 1, 1, 1);                                                         \
                else if (R == FEWER)                                                                                  \
                    tile_##TYPE(s, x, r, o, FEWER, ABREAST, 0);                                                       \
                else                                                                                                  \
                    tile_##TYPE(s, x, r, o, 1, ABREAST, 0);                                                           \
            }                                                                                                         \
    }                                                                                                                 \

PRODUCTS(float)
PRODUCTS(bfloat16)
