// Products of rows with matrices of floats and bfloat16.

enum { PAIR = 2 * LANES, ABREAST = 4, FEWER = LANES / ABREAST, AHEAD = 1024 };

static inline float widen_float(float f) { return f; }

// PAIR weights as two vectors: in their order, or the even ones and the odd ones, which costs least.
static inline void weights_float(const float *w, floats *v) {
    v[0] = load(w);
    v[1] = load(w + LANES);
}

static inline void weights_bfloat16(const bfloat16 *w, floats *v) {
    words pairs;
    memcpy(&pairs, w, sizeof pairs);
    v[0] = (floats)(pairs << 16);
    v[1] = (floats)(pairs & 0xffff0000);
}

// A row of x as the tiles of bfloat16 read it: the partners of even weights first, then those of odd ones.
static void arrange(const float *x, float *to, long in) {
    long j = 0;
    for (; j + PAIR <= in; j += PAIR)
        for (int i = 0; i < LANES; i++) to[j + i] = x[j + 2 * i], to[j + LANES + i] = x[j + 2 * i + 1];
    for (; j < in; j++) to[j] = x[j];
}

// W rows of w against R rows of x, all sums in registers. Each is taken in the same order, whatever W and R are.
#define TILE(TYPE)                                                                                               \
    static inline __attribute__((always_inline)) void TYPE##_tile(const Step *s, const float *x, long r, long o, \
                                                                  const int R, const int W) {                    \
        long in = s->n, j = 0;                                                                                   \
        const TYPE *w = (const TYPE *)s->w + o * in;                                                             \
        floats sums[R * W], weights[2];                                                                          \
        float totals[LANES];                                                                                     \
        memset(sums, 0, sizeof sums);                                                                            \
        x += r * in;                                                                                             \
        for (; j + PAIR <= in; j += PAIR)                                                                        \
            for (int k = 0; k < W; k++) {                                                                        \
                __builtin_prefetch((const char *)(w + k * in + j) + AHEAD);                                      \
                weights_##TYPE(w + k * in + j, weights);                                                         \
                for (int i = 0; i < R; i++) {                                                                    \
                    sums[i * W + k] = multiply_add(weights[0], load(x + i * in + j), sums[i * W + k]);           \
                    sums[i * W + k] = multiply_add(weights[1], load(x + i * in + j + LANES), sums[i * W + k]);   \
                }                                                                                                \
            }                                                                                                    \
        if (R * W == LANES)                                                                                      \
            store(totals, totals_of(sums));                                                                      \
        else                                                                                                     \
            for (int i = 0; i < R * W; i++) totals[i] = total(sums[i]);                                          \
        for (int i = 0; i < R; i++)                                                                              \
            for (int k = 0; k < W; k++) {                                                                        \
                float rest = 0, *y = s->y + (r + i) * s->m + o + k;                                              \
                for (long rest_of = j; rest_of < in; rest_of++)                                                  \
                    rest += widen_##TYPE(w[k * in + rest_of]) * x[i * in + rest_of];                             \
                float sum = totals[i * W + k] + rest + (s->b ? s->b[o + k] : 0);                                 \
                *y = s->how ? *y + sum : sum;                                                                    \
            }                                                                                                    \
    }                                                                                                            \
                                                                                                                 \
    static void linear_##TYPE(const Step *s, const Pass *p, Member me, const float *x) {                         \
        Part part = part_of((s->m + ABREAST - 1) / ABREAST, me);                                                 \
        for (long o = part.begin * ABREAST; o < part.end * ABREAST && o < s->m; o += ABREAST) {                  \
            long r = 0;                                                                                          \
            if (o + ABREAST <= s->m) {                                                                           \
                for (; r + FEWER <= p->rows; r += FEWER) TYPE##_tile(s, x, r, o, FEWER, ABREAST);                \
                for (; r < p->rows; r++) TYPE##_tile(s, x, r, o, 1, ABREAST);                                    \
            } else {                                                                                             \
                for (long k = o; k < s->m; k++)                                                                  \
                    for (r = 0; r < p->rows; r++) TYPE##_tile(s, x, r, k, 1, 1);                                 \
            }                                                                                                    \
        }                                                                                                        \
    }

TILE(float)
TILE(bfloat16)
