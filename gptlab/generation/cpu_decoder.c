// A forward pass of a few tokens: a list of steps over (rows, ...) arrays, carried out by one team of threads, as fast as
// the weights come from memory, which are read once for all rows. Every sum is taken in one order, however many rows or
// threads there are: the same bits for a row in any batch.
#include <linux/futex.h>
#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { PAIR = 2 * LANES, STRIDE = 2 * PAIR, AHEAD = 512 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t bfloat16;  // the upper half of a float

enum { NORM, LINEAR, ROTATE, ATTEND, ACTIVATE, ADD, CONVOLVE };
enum { GELU, GELU_EXACT, RELU, RELU2, SILU };

// cpu_decoder.py fills these; what a step does not use is 0.
typedef struct {
    long kind, how, n, m, groups, stride, columns, window;
    double number;
    const void *w, *v;
    const float *b;
    float *x, *y;
} Step;

// Where the threads wait for each other. One that waits long sleeps, and leaves its core to the one that it waits for; which
// OpenMP's own barrier does late: on a busy machine that is the difference between slow and a standstill.
typedef struct {
    atomic_int arrived, round, asleep;
} Team;

enum { SPINS = 4000 };

static void meet(Team *team, int threads) {
    int round = atomic_load(&team->round);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == threads) {
        atomic_store(&team->arrived, 0);
        atomic_fetch_add(&team->round, 1);
        if (atomic_load(&team->asleep)) syscall(SYS_futex, &team->round, FUTEX_WAKE_PRIVATE, threads, 0, 0, 0);
        return;
    }
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load(&team->round) != round) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    atomic_fetch_add(&team->asleep, 1);
    while (atomic_load(&team->round) == round) syscall(SYS_futex, &team->round, FUTEX_WAIT_PRIVATE, round, 0, 0, 0);
    atomic_fetch_sub(&team->asleep, 1);
}

static inline floats load(const float *p) {
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, floats v) { memcpy(p, &v, sizeof v); }

// By name: compilers avoid chains of fused operations on some processors, in some places.
static inline floats multiply_add(floats a, floats b, floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

static inline float total(floats v) {
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) sums[i] += sums[i + n];
    return sums[0];
}

static inline float dot(const float *a, const float *b, long n) {
    floats sum = {0};
    float rest = 0;
    long j = 0;
    for (; j + LANES <= n; j += LANES) sum = multiply_add(load(a + j), load(b + j), sum);
    for (; j < n; j++) rest += a[j] * b[j];
    return total(sum) + rest;
}

// Of x - mean, or of its squares.
static inline float sum(const float *x, long n, float mean, long squares) {
    floats sums = {0};
    float rest = 0;
    long j = 0;
    for (; j + LANES <= n; j += LANES) {
        floats v = load(x + j) - mean;
        sums = squares ? multiply_add(v, v, sums) : sums + v;
    }
    for (; j < n; j++) rest += squares ? (x[j] - mean) * (x[j] - mean) : x[j] - mean;
    return total(sums) + rest;
}

// e^x: 2^k e^r with |r| <= ln 2 / 2, and e^r by its Taylor series to the seventh power.
static inline floats exponential(floats x) {
    floats low = {0}, high = {0};
    low -= 87.0f, high += 88.0f;
    x = (floats)(((words)x & (words)(x > low)) | ((words)low & ~(words)(x > low)));
    x = (floats)(((words)x & (words)(x < high)) | ((words)high & ~(words)(x < high)));
    floats shifted = x * 1.44269504f + 12582912.0f;  // rounds to the nearest integer, in the last bits
    floats k = shifted - 12582912.0f;
    floats r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    floats sum = r * (1 / 5040.0f) + 1 / 720.0f;
    sum = sum * r + 1 / 120.0f;
    sum = sum * r + 1 / 24.0f;
    sum = sum * r + 1 / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    integers power = ((integers)shifted - 0x4b400000 + 127) << 23;
    return sum * (floats)power;
}

static inline floats activation(floats x, long how) {
    floats zero = {0};
    if (how == GELU) {  // the tanh approximation: x / (1 + e^(-2u))
        floats u = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * u));
    }
    if (how == SILU) return x / (1.0f + exponential(-x));
    if (how == GELU_EXACT) {
        floats y;
        for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
        return y;
    }
    x = (floats)((words)x & (words)(x > zero));
    return how == RELU2 ? x * x : x;
}

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

static inline float widen_float(float f) { return f; }

static inline float widen_bfloat16(bfloat16 h) {
    uint32_t word = (uint32_t)h << 16;
    float f;
    memcpy(&f, &word, sizeof f);
    return f;
}

// A row of x as the tiles read it: the partners of even weights first, then those of odd ones.
static void arrange(const float *x, float *to, long in) {
    long j = 0;
    for (; j < in - in % STRIDE; j += PAIR)
        for (int i = 0; i < LANES; i++) to[j + i] = x[j + 2 * i], to[j + LANES + i] = x[j + 2 * i + 1];
    for (; j < in; j++) to[j] = x[j];
}

// One row of w against R rows of x, four partial sums each, all in registers.
#define TILE(TYPE, R)                                                                                      \
    static inline void TYPE##_tile_##R(const float *x, const TYPE *w, float *y, long in, long out, float b, \
                                       long add) {                                                         \
        floats sums[R][4], weights[4];                                                                     \
        float rests[R];                                                                                    \
        memset(sums, 0, sizeof sums);                                                                      \
        memset(rests, 0, sizeof rests);                                                                    \
        long j = 0;                                                                                        \
        for (; j + STRIDE <= in; j += STRIDE) {                                                            \
            __builtin_prefetch((const char *)(w + j) + AHEAD);                                             \
            weights_##TYPE(w + j, weights);                                                                \
            weights_##TYPE(w + j + PAIR, weights + 2);                                                     \
            for (int r = 0; r < R; r++)                                                                    \
                for (int k = 0; k < 4; k++)                                                                \
                    sums[r][k] = multiply_add(weights[k], load(x + r * in + j + k * LANES), sums[r][k]);   \
        }                                                                                                  \
        for (; j < in; j++)                                                                                \
            for (int r = 0; r < R; r++) rests[r] += widen_##TYPE(w[j]) * x[r * in + j];                    \
        for (int r = 0; r < R; r++) {                                                                      \
            float sum = total((sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3])) + rests[r] + b;       \
            y[r * out] = add ? y[r * out] + sum : sum;                                                     \
        }                                                                                                  \
    }

#define LINEAR_OF(TYPE)                                                                                    \
    TILE(TYPE, 1)                                                                                          \
    TILE(TYPE, 2)                                                                                          \
    static void linear_##TYPE(const Step *s, const float *x, long rows) {                                  \
        _Pragma("omp for schedule(static) nowait") for (long o = 0; o < s->m; o++) {                              \
            const TYPE *w = (const TYPE *)s->w + o * s->n;                                                 \
            float b = s->b ? s->b[o] : 0;                                                                  \
            long r = 0;                                                                                    \
            for (; r + 2 <= rows; r += 2)                                                                  \
                TYPE##_tile_2(x + r * s->n, w, s->y + r * s->m + o, s->n, s->m, b, s->how & 2);            \
            if (r < rows) TYPE##_tile_1(x + r * s->n, w, s->y + r * s->m + o, s->n, s->m, b, s->how & 2);  \
        }                                                                                                  \
    }

LINEAR_OF(float)
LINEAR_OF(bfloat16)

// y (rows, m) = x (rows, n) w^T + b, or y + that. how: 1 if w is bf16, 2 to add.
static void linear(const Step *s, Team *team, int threads, float *scratch, long rows) {
    if (!(s->how & 1)) {
        linear_float(s, s->x, rows);
        return;
    }
#pragma omp for schedule(static) nowait
    for (long r = 0; r < rows; r++) arrange(s->x + r * s->n, scratch + r * s->n, s->n);
    meet(team, threads);
    linear_bfloat16(s, scratch, rows);
}

// Each of `groups` vectors of n in a row. how: 1 without the mean (RMSNorm), 0 with (LayerNorm).
static void norm(const Step *s, long rows) {
    const float *w = s->w;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * s->groups; i++) {
        long at = i / s->groups * s->stride + i % s->groups * s->n, n = s->n;
        const float *x = s->x + at;
        float *y = s->y + at, mean = s->how ? 0 : sum(x, n, 0, 0) / n, square = sum(x, n, mean, 1);
        float scale = 1 / sqrtf(square / n + (float)s->number);
        for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * (w ? w[j] : 1) + (s->b ? s->b[j] : 0);
    }
}

// The pairs (i, i + m/2) of the first m columns of `groups` heads of a row, by position * b[i], and times `number`.
static void rotate(const Step *s, const long *position, long rows) {
#pragma omp for schedule(static) nowait
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < s->m / 2; i++) {
            float angle = position[r] * s->b[i], c = (float)s->number * cosf(angle), d = (float)s->number * sinf(angle);
            for (long h = 0; h < s->groups; h++) {
                float *x = s->x + r * s->stride + h * s->n + i, a = x[0], b = x[s->m / 2];
                x[0] = a * c - b * d;
                x[s->m / 2] = b * c + a * d;
            }
        }
}

// x: rows of m query heads, `groups` key heads and as many value heads of n each; w, v: the caches, (B, groups, columns,
// n); b: ALiBi's slopes; number: the scores' scale. Into y (rows, m n).
static void attend(const Step *s, Team *team, int threads, const long *sequence, const long *position,
                   float *scratch, long rows) {
    long D = s->n, H = s->m, K = s->groups, S = s->columns, room = (S + LANES - 1) / LANES * LANES;
    float *keys = (float *)s->w, *values = (float *)s->v;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * K; i++) {
        long r = i / K, g = i % K, column = (sequence[r] * K + g) * S + position[r] % S;
        memcpy(keys + column * D, s->x + r * s->stride + (H + g) * D, D * sizeof(float));
        memcpy(values + column * D, s->x + r * s->stride + (H + K + g) * D, D * sizeof(float));
    }
    meet(team, threads);
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * H; i++) {
        long r = i / H, h = i % H, last = position[r], first = last - s->window + 1;
        if (first < 0) first = 0;
        long begin = (sequence[r] * K + h * K / H) * S;
        const float *q = s->x + r * s->stride + h * D;
        float *y = s->y + i * D, *weights = scratch + i * room, most = -INFINITY;
        floats sums = {0};
        long count = last - first + 1, turn = first - first % S, j = 0;
        for (; j < count; j++) {
            long column = first + j - turn < S ? first + j - turn : first + j - turn - S;
            float score = (float)s->number * dot(q, keys + (begin + column) * D, D);
            weights[j] = s->b ? score - s->b[h] * (count - 1 - j) : score;
            most = fmaxf(most, weights[j]);
        }
        for (; j % LANES; j++) weights[j] = -INFINITY;
        for (j = 0; j < count; j += LANES) {
            floats e = exponential(load(weights + j) - most);
            store(weights + j, e);
            if (j + LANES <= count) sums += e;
        }
        float whole = total(sums);
        for (j = count - count % LANES; j < count; j++) whole += weights[j];
        memset(y, 0, D * sizeof(float));
        for (j = 0; j < count; j++) {
            long column = first + j - turn < S ? first + j - turn : first + j - turn - S;
            const float *v = values + (begin + column) * D;
            float weight = weights[j] / whole;
            for (long d = 0; d < D; d++) y[d] += weight * v[d];
        }
    }
}

// y (rows, n) = activation of x (rows, stride), times x's second half where groups is 2.
static void activate(const Step *s, long rows) {
    long blocks = (s->n + LANES - 1) / LANES;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * blocks; i++) {
        long r = i / blocks, j = i % blocks * LANES, count = s->n - j < LANES ? s->n - j : LANES;
        floats x = {0}, gate = {0};
        memcpy(&x, s->x + r * s->stride + j, count * sizeof(float));
        x = activation(x, s->how);
        if (s->groups == 2) {
            memcpy(&gate, s->x + r * s->stride + s->n + j, count * sizeof(float));
            x *= gate;
        }
        memcpy(s->y + r * s->n + j, &x, count * sizeof(float));
    }
}

// y (rows, n) = x, or y + x where `how` is 1.
static void add(const Step *s, long rows) {
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * s->n; i++) s->y[i] = s->how ? s->y[i] + s->x[i] : s->x[i];
}

// y (rows, n) = x plus the weighted sum of the last m inputs, channel by channel; w: (m, n); v: those inputs, (B, columns, n).
static void convolve(const Step *s, const long *sequence, const long *position, long rows) {
    const float *w = s->w;
    float *read = (float *)s->v;
#pragma omp for schedule(static) nowait
    for (long c = 0; c < s->n; c++)
        for (long r = 0; r < rows; r++) {
            float *ring = read + sequence[r] * s->columns * s->n + c, x = s->x[r * s->n + c], sum = x;
            ring[position[r] % s->columns * s->n] = x;
            for (long tap = 0; tap < s->m; tap++) {
                long at = position[r] - (s->m - 1) + tap;
                if (at >= 0) sum += w[tap * s->n + c] * ring[at % s->columns * s->n];
            }
            s->y[r * s->n + c] = sum;
        }
}

// scratch: for each row as many floats as the widest input, and n_head * (columns + LANES).
// together: whether all threads take part.
void cpu_decoder(const Step *steps, long count, const long *sequence, const long *position, float *scratch, long rows,
                long together) {
    Team team = {0, 0, 0};
#pragma omp parallel if (together)
    {
        int threads = omp_get_num_threads();
        for (const Step *s = steps; s < steps + count; s++) {
            switch (s->kind) {
                case NORM: norm(s, rows); break;
                case LINEAR: linear(s, &team, threads, scratch, rows); break;
                case ROTATE: rotate(s, position, rows); break;
                case ATTEND: attend(s, &team, threads, sequence, position, scratch, rows); break;
                case ACTIVATE: activate(s, rows); break;
                case ADD: add(s, rows); break;
                case CONVOLVE: convolve(s, sequence, position, rows); break;
            }
            meet(&team, threads);
        }
    }
}
