// Products of rows with matrices of floats and bfloat16.

enum { PAIR = 2 * LANES, ABREAST = 4, FEWER = LANES / ABREAST, AHEAD = 2048 };

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

// FEWER rows of x, or one, as the tiles read them: of each the partners of weights[0], then those of weights[1].
static void arrange(const float *x, float *to, long in, int R, int is_bfloat16) {
    long j = 0;
    for (; j + PAIR <= in; j += PAIR)
        for (int i = 0; i < R; i++, to += PAIR) {
            const float *some = x + i * in + j;
            if (is_bfloat16)
                for (int k = 0; k < LANES; k++) to[k] = some[2 * k], to[LANES + k] = some[2 * k + 1];
            else
                memcpy(to, some, PAIR * sizeof(float));
        }
    for (int i = 0; i < R; i++, to += in - j) memcpy(to, x + i * in + j, (in - j) * sizeof(float));
}

// Rows that are arranged side by side, from row r on.
static inline int abreast(const Pass *p, long r) { return r + FEWER <= p->rows ? FEWER : 1; }

// W rows of w against R rows of x, all sums in registers. Each is taken in the same order, whatever W and R are. The first
// rows of x meet one row of w after the other, as these come from memory, where what is AHEAD is fetched.
#define TILE(TYPE)                                                                                               \
    static inline __attribute__((always_inline)) void TYPE##_tile(const Step *s, const float *x, long r, long o, \
                                                                  const int R, const int W, const int fetch) {   \
        long in = s->n, j = 0;                                                                                   \
        const TYPE *w = (const TYPE *)s->w + o * in;                                                             \
        floats sums[LANES], weights[2 * ABREAST];                                                                \
        float totals[LANES];                                                                                     \
        for (int i = 0; i < R * W; i++) sums[i] = (floats){0};                                                   \
        x += r * in;                                                                                             \
        for (; j + PAIR <= in; j += PAIR, x += R * PAIR) {                                                       \
            for (int k = 0; k < W; k++) {                                                                        \
                if (fetch) __builtin_prefetch((const char *)(w + j) + AHEAD);                                    \
                if (fetch && sizeof(TYPE) == 4) __builtin_prefetch((const char *)(w + j + LANES) + AHEAD);       \
                weights_##TYPE(w + k * in + j, weights + 2 * k);                                                 \
            }                                                                                                    \
            for (int i = 0; i < R; i++) {                                                                        \
                floats first = load(x + i * PAIR), second = load(x + i * PAIR + LANES);                          \
                HOLD(first);                                                                                     \
                HOLD(second);                                                                                    \
                for (int k = 0; k < W; k++) {                                                                    \
                    sums[i * W + k] = multiply_add(weights[2 * k], first, sums[i * W + k]);                      \
                    sums[i * W + k] = multiply_add(weights[2 * k + 1], second, sums[i * W + k]);                 \
                }                                                                                                \
            }                                                                                                    \
        }                                                                                                        \
        if (R * W == LANES)                                                                                      \
            store(totals, totals_of(sums));                                                                      \
        else                                                                                                     \
            for (int i = 0; i < R * W; i++) totals[i] = total(sums[i]);                                          \
        for (int i = 0; i < R; i++)                                                                              \
            for (int k = 0; k < W; k++) {                                                                        \
                float rest = 0, *y = s->y + (r + i) * s->m + o + k;                                              \
                for (long left = 0; left < in - j; left++)                                                       \
                    rest += widen_##TYPE(w[k * in + j + left]) * x[i * (in - j) + left];                         \
                float sum = totals[i * W + k] + rest + (s->b ? s->b[o + k] : 0);                                 \
                *y = s->how ? *y + sum : sum;                                                                    \
            }                                                                                                    \
    }                                                                                                            \
                                                                                                                 \
    static void linear_##TYPE(const Step *s, const Pass *p, Member me) {                                         \
        const float *x = p->scratch;                                                                             \
        Part part = part_of((s->m + ABREAST - 1) / ABREAST, me);                                                 \
        for (long o = part.begin * ABREAST; o < part.end * ABREAST && o < s->m; o += ABREAST)                    \
            for (long r = 0, R; r < p->rows; r += R) {                                                           \
                R = abreast(p, r);                                                                               \
                if (r == 0 || o + ABREAST > s->m)                                                                \
                    for (long k = o; k < s->m && k < o + ABREAST; k++)                                           \
                        if (R == FEWER)                                                                          \
                            TYPE##_tile(s, x, r, k, FEWER, 1, 1);                                                \
                        else                                                                                     \
                            TYPE##_tile(s, x, r, k, 1, 1, 1);                                                    \
                else if (R == FEWER)                                                                             \
                    TYPE##_tile(s, x, r, o, FEWER, ABREAST, 0);                                                  \
                else                                                                                             \
                    TYPE##_tile(s, x, r, o, 1, ABREAST, 0);                                                      \
            }                                                                                                    \
    }

TILE(float)
TILE(bfloat16)

static void linear_floats(const Step *s, const Pass *p, Member me) {
    long groups = (p->rows + FEWER - 1) / FEWER;
    Part part = part_of(groups, me);
    for (long r = part.begin * FEWER, R; r < part.end * FEWER && r < p->rows; r += R) {
        R = abreast(p, r);
        arrange(s->x + r * s->n, p->scratch + r * s->n, s->n, R, s->groups == BFLOAT16);
    }
    meet(me);
    if (s->groups == FLOAT)
        linear_float(s, p, me);
    else
        linear_bfloat16(s, p, me);
}
