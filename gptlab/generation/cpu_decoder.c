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
#ifdef __x86_64__
#include <immintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { PAIR = 2 * LANES, STRIDE = 2 * PAIR, AHEAD = 2048 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(4 * LANES)));
typedef int8_t small __attribute__((vector_size(LANES)));
typedef uint16_t bfloat16;  // the upper half of a float
typedef uint16_t bfloat16s __attribute__((vector_size(2 * LANES)));

enum { NORM, LINEAR, ROTATE, ATTEND, ACTIVATE, ADD, CONVOLVE };
enum { GELU, GELU_EXACT, RELU, RELU2, SILU };
enum { FLOAT, BFLOAT16, INT8, INT4 };  // of weights
enum { GROUP = 32, ROWS = 16, PARTS = ROWS / LANES };  // see quantised.py
enum { MOST_ROWS = LANES == 16 ? 8 : 4 };  // of x that a tile of integers has, in registers

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

// Lane i of the result is the sum of v[i]'s lanes, as of `total`: halves are added to halves, for all vectors at once.
static inline floats totals_of(floats *v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        integers low;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            int lane = i % (LANES / 2);
            low[i] = i / (LANES / 2) * LANES + lane / half * 2 * half + lane % half;
        }
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low) + __builtin_shuffle(v[2 * i], v[2 * i + 1], low + half);
    }
    return v[0];
}

static inline floats larger(floats a, floats b) {
    integers which = a > b;
    return (floats)(((words)a & (words)which) | ((words)b & ~(words)which));
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
                TYPE##_tile_2(x + r * s->n, w, s->y + r * s->m + o, s->n, s->m, b, s->how);            \
            if (r < rows) TYPE##_tile_1(x + r * s->n, w, s->y + r * s->m + o, s->n, s->m, b, s->how);  \
        }                                                                                                  \
    }

LINEAR_OF(float)
LINEAR_OF(bfloat16)

// A row of x, as the tiles of integers read it.
typedef struct {
    int8_t *numbers;  // from -127 to 127, n of them up to the next multiple of GROUP
    float *scales;    // of each group
    int32_t *sums;    // of each group's numbers
} Rounded;

static inline Rounded rounded_rows(float *scratch, long rows, long n) {
    long groups = (n + GROUP - 1) / GROUP;
    return (Rounded){(int8_t *)scratch, scratch + rows * groups * (GROUP / 4),
                     (int32_t *)(scratch + rows * groups * (GROUP / 4 + 1))};
}

// Group g of row r. What is infinite or not a number makes the scale so: its bits are beyond those of all others.
static inline void round_group(const float *x, Rounded to, long r, long g, long n) {
    long groups = (n + GROUP - 1) / GROUP, count = n - g * GROUP < GROUP ? n - g * GROUP : GROUP;
    float numbers[GROUP] = {0}, most;
    int32_t bits = 0, sum = 0;
    integers sizes = {0}, sums = {0};
    memcpy(numbers, x + r * n + g * GROUP, count * sizeof(float));
    for (long j = 0; j < GROUP; j += LANES) {
        integers size = (integers)load(numbers + j) & 0x7fffffff;
        integers more = size > sizes;
        sizes = (size & more) | (sizes & ~more);
    }
    for (int i = 0; i < LANES; i++) bits = sizes[i] > bits ? sizes[i] : bits;
    memcpy(&most, &bits, sizeof most);
    float inverse = most > 0 ? 127 / most : 0;
    int8_t *row = to.numbers + (r * groups + g) * GROUP;
    for (long j = 0; j < GROUP; j += LANES) {
        floats shifted = {0};
        shifted += 12582912.0f;  // rounds to the nearest integer, in the last bits
        shifted = multiply_add(load(numbers + j), (floats){0} + inverse, shifted);
        integers whole = (integers)shifted - 0x4b400000;
        small narrow = __builtin_convertvector(whole, small);
        memcpy(row + j, &narrow, sizeof narrow);
        sums += whole;
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    to.scales[r * groups + g] = bits < 0x7f800000 ? most / 127 : NAN;
    to.sums[r * groups + g] = sum;
}

#ifdef __ARM_FEATURE_DOTPROD
enum { SIGNED = 1 };
#else
enum { SIGNED = 0 };
#endif

// sum + the products of four weights of each lane with the four numbers of x. Weights of 8 bits are from 0 to 255 or, where
// products are SIGNED, read as 128 less; those of 4 bits are from 0 to 15.
static inline integers add_products(integers sum, bytes w, const int8_t *x, long bits) {
    int32_t four;
    memcpy(&four, x, sizeof four);
#if defined(__ARM_FEATURE_DOTPROD)
    int8x16_t numbers = vreinterpretq_s8_s32(vdupq_n_s32(four)), weights[2];
    int32x4_t sums[2];
    if (bits == 8) w ^= 128;
    memcpy(weights, &w, sizeof weights);
    memcpy(sums, &sum, sizeof sums);
    for (int i = 0; i < 2; i++) sums[i] = vdotq_s32(sums[i], weights[i], numbers);
    memcpy(&sum, sums, sizeof sum);
    return sum;
#elif defined(__AVX512VNNI__)
    return (integers)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(four));
#elif defined(__AVX512VL__) && defined(__AVX512VNNI__)
    return (integers)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)w, _mm256_set1_epi32(four));
#elif defined(__AVXVNNI__)
    return (integers)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, _mm256_set1_epi32(four));
#elif defined(__AVX512BW__)
    __m512i odd = _mm512_srai_epi16(_mm512_set1_epi32(four), 8);
    __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(_mm512_set1_epi32(four), 8), 8);
    __m512i low = _mm512_and_si512((__m512i)w, _mm512_set1_epi16(255)), high = _mm512_srli_epi16((__m512i)w, 8);
    return sum + (integers)_mm512_madd_epi16(low, even) + (integers)_mm512_madd_epi16(high, odd);
#elif defined(__AVX2__)
    __m256i odd = _mm256_srai_epi16(_mm256_set1_epi32(four), 8);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(_mm256_set1_epi32(four), 8), 8);
    __m256i low = _mm256_and_si256((__m256i)w, _mm256_set1_epi16(255)), high = _mm256_srli_epi16((__m256i)w, 8);
    return sum + (integers)_mm256_madd_epi16(low, even) + (integers)_mm256_madd_epi16(high, odd);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++) sum[i] += w[4 * i + j] * x[j];
    return sum;
#endif
}

static inline floats widen_halves(const uint16_t *halves) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
#elif defined(__F16C__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
#else
    floats wide;
    for (int i = 0; i < LANES; i++) {
        _Float16 half;
        memcpy(&half, halves + i, sizeof half);
        wide[i] = half;
    }
    return wide;
#endif
}

static inline bytes load_bytes(const uint8_t *p) {
    bytes v;
    memcpy(&v, p, sizeof v);
    return v;
}

// LANES rows of w, from `part` of a block of ROWS, against R rows of x from r on. Each group's sum is exact.
static inline __attribute__((always_inline)) void integer_tile(const Step *s, Rounded x, long block, int part, long r,
                                                               const int R, const long bits) {
    long groups = (s->n + GROUP - 1) / GROUP;
    const uint8_t *w = (const uint8_t *)s->w + block * groups * bits * ROWS * 4 + part * LANES * 4;
    const uint16_t *halves = (const uint16_t *)s->v + block * groups * ROWS + part * LANES;
    floats totals[MOST_ROWS], scales = {0};
    integers sums[MOST_ROWS];
    for (int i = 0; i < R; i++) totals[i] = (floats){0};
    for (long g = 0; g < groups; g++, w += bits * ROWS * 4) {
        for (int i = 0; i < R; i++)
            sums[i] = (integers){0} - (SIGNED && bits == 8 ? 0 : x.sums[(r + i) * groups + g] * (1 << (bits - 1)));
        for (int k = 0; k < bits; k++) {
            bytes some = load_bytes(w + k * ROWS * 4), high = some >> 4;
            if (bits == 4) some &= 15;
            for (int i = 0; i < R; i++) {
                const int8_t *numbers = x.numbers + ((r + i) * groups + g) * GROUP + 4 * k;
                sums[i] = add_products(sums[i], some, numbers, bits);
                if (bits == 4) sums[i] = add_products(sums[i], high, numbers + GROUP / 2, bits);
            }
        }
        scales = bits == 4 ? widen_halves(halves + g * ROWS) : (floats){0} + 1.0f;
        for (int i = 0; i < R; i++) {
            floats sum = __builtin_convertvector(sums[i], floats);
            totals[i] = multiply_add(sum, scales * x.scales[(r + i) * groups + g], totals[i]);
        }
    }
    long o = block * ROWS + part * LANES, count = s->m - o < LANES ? s->m - o : LANES;
    for (int i = 0; i < R; i++) {
        float *y = s->y + (r + i) * s->m + o, row[LANES];
        store(row, bits == 8 ? totals[i] * load((const float *)s->v + o) : totals[i]);
        for (long j = 0; j < count; j++) {
            float sum = row[j] + (s->b ? s->b[o + j] : 0);
            y[j] = s->how ? y[j] + sum : sum;
        }
    }
}

static inline __attribute__((always_inline)) void integer_block(const Step *s, Rounded x, long block, long rows,
                                                                const long bits) {
    for (int part = 0; part < PARTS && block * ROWS + part * LANES < s->m; part++) {
        long r = 0;
        for (; r + MOST_ROWS <= rows; r += MOST_ROWS) integer_tile(s, x, block, part, r, MOST_ROWS, bits);
        if (MOST_ROWS > 4 && r + 4 <= rows) integer_tile(s, x, block, part, r, 4, bits), r += 4;
        if (r + 2 <= rows) integer_tile(s, x, block, part, r, 2, bits), r += 2;
        if (r < rows) integer_tile(s, x, block, part, r, 1, bits);
    }
}

static void linear_integers(const Step *s, Team *team, int threads, float *scratch, long rows) {
    Rounded x = rounded_rows(scratch, rows, s->n);
    long groups = (s->n + GROUP - 1) / GROUP;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * groups; i++) round_group(s->x, x, i / groups, i % groups, s->n);
    meet(team, threads);
#pragma omp for schedule(static) nowait
    for (long block = 0; block < (s->m + ROWS - 1) / ROWS; block++) {
        if (s->groups == INT8)
            integer_block(s, x, block, rows, 8);
        else
            integer_block(s, x, block, rows, 4);
    }
}

// y (rows, m) = x (rows, n) w^T + b, or y + that where `how` is 1. groups: what w is; v: the scales of integers.
static void linear(const Step *s, Team *team, int threads, float *scratch, long rows) {
    switch (s->groups) {
        case FLOAT: linear_float(s, s->x, rows); return;
        case BFLOAT16: break;
        default: linear_integers(s, team, threads, scratch, rows); return;
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

// The columns of a ring, from the first on.
typedef struct {
    long first, columns;
} Span;

static inline long column(Span s, long j) { return s.first + j < s.columns ? s.first + j : s.first + j - s.columns; }

// LANES of a cache's numbers, and one, from the i-th on.
static inline floats cached(const void *cache, long i, const int is_bfloat16) {
    if (!is_bfloat16) return load((const float *)cache + i);
    bfloat16s some;
    memcpy(&some, (const bfloat16 *)cache + i, sizeof some);
    return (floats)(__builtin_convertvector(some, words) << 16);
}

static inline float cached_one(const void *cache, long i, const int is_bfloat16) {
    return is_bfloat16 ? widen_bfloat16(((const bfloat16 *)cache)[i]) : ((const float *)cache)[i];
}

// n floats into a cache, from the i-th on; in bfloat16 to the nearest.
static void keep(void *cache, long i, const float *x, long n, int is_bfloat16) {
    if (!is_bfloat16) {
        memcpy((float *)cache + i, x, n * sizeof(float));
        return;
    }
    for (long j = 0; j < n; j++) {
        uint32_t word;
        memcpy(&word, x + j, sizeof word);
        word = x[j] == x[j] ? word + 0x7fff + (word >> 16 & 1) : 0x7fc00000;
        ((bfloat16 *)cache)[i + j] = word >> 16;
    }
}

// e^(score - the largest) of each key, into weights, which has room for whole vectors; returns their sum.
static inline __attribute__((always_inline)) float weigh(const Step *s, const float *q, long begin, Span span, long count,
                                                         long h, float *weights, const int is_bfloat16) {
    long D = s->n, vectors = D / LANES;
    float most = -INFINITY, distances[LANES];
    floats sums = {0}, scores, some[LANES], largest = (floats){0} - INFINITY;
    for (int i = 0; i < LANES; i++) distances[i] = i;
    for (long j = 0; j < count; j += LANES) {
        int known = count - j < LANES ? count - j : LANES;
        float rests[LANES] = {0};
        for (int i = known; i < LANES; i++) some[i] = (floats){0};
        for (int i = 0; i < known; i++) {
            long key = (begin + column(span, j + i)) * D;
            floats sum = {0};
            for (long k = 0; k < vectors; k++)
                sum = multiply_add(load(q + k * LANES), cached(s->w, key + k * LANES, is_bfloat16), sum);
            some[i] = sum;
            for (long d = vectors * LANES; d < D; d++) rests[i] += q[d] * cached_one(s->w, key + d, is_bfloat16);
        }
        scores = (totals_of(some) + load(rests)) * (float)s->number;
        if (s->b) scores -= s->b[h] * ((float)(count - 1 - j) - load(distances));
        store(weights + j, scores);
        for (int i = known; i < LANES; i++) weights[j + i] = -INFINITY;
        largest = larger(load(weights + j), largest);
    }
    for (int i = 0; i < LANES; i++) most = fmaxf(most, largest[i]);
    for (long j = 0; j < count; j += LANES) {
        floats e = exponential(load(weights + j) - most);
        store(weights + j, e);
        if (j + LANES <= count) sums += e;
    }
    float whole = total(sums);
    for (long j = count - count % LANES; j < count; j++) whole += weights[j];
    return whole;
}

// y (D) = the weighted sum of values, by `whole`.
static inline __attribute__((always_inline)) void mix(const Step *s, const float *weights, long begin, Span span,
                                                      long count, float whole, float *y, const int is_bfloat16) {
    long D = s->n, d = 0;
    float scale = 1 / whole;
    for (; d + 4 * LANES <= D; d += 4 * LANES) {
        floats sums[4] = {{0}, {0}, {0}, {0}};
        for (long j = 0; j < count; j++) {
            long value = (begin + column(span, j)) * D + d;
            floats weight = (floats){0} + weights[j];
            for (int k = 0; k < 4; k++)
                sums[k] = multiply_add(weight, cached(s->v, value + k * LANES, is_bfloat16), sums[k]);
        }
        for (int k = 0; k < 4; k++) store(y + d + k * LANES, sums[k] * scale);
    }
    for (; d + LANES <= D; d += LANES) {
        floats sum = {0};
        for (long j = 0; j < count; j++) {
            floats value = cached(s->v, (begin + column(span, j)) * D + d, is_bfloat16);
            sum = multiply_add((floats){0} + weights[j], value, sum);
        }
        store(y + d, sum * scale);
    }
    for (; d < D; d++) {
        float sum = 0;
        for (long j = 0; j < count; j++)
            sum += weights[j] * cached_one(s->v, (begin + column(span, j)) * D + d, is_bfloat16);
        y[d] = sum * scale;
    }
}

// x: rows of m query heads, `groups` key heads and as many value heads of n each; w, v: the caches, (B, groups, columns,
// n), in bfloat16 where `how` is 1; b: ALiBi's slopes; number: the scores' scale. Into y (rows, m n).
static void attend(const Step *s, Team *team, int threads, const long *sequence, const long *position,
                   float *scratch, long rows) {
    long D = s->n, H = s->m, K = s->groups, S = s->columns, room = (S + LANES - 1) / LANES * LANES;
#pragma omp for schedule(static) nowait
    for (long i = 0; i < rows * K; i++) {
        long r = i / K, g = i % K, to = ((sequence[r] * K + g) * S + position[r] % S) * D;
        keep((void *)s->w, to, s->x + r * s->stride + (H + g) * D, D, s->how);
        keep((void *)s->v, to, s->x + r * s->stride + (H + K + g) * D, D, s->how);
    }
    meet(team, threads);
#pragma omp for schedule(static, 1) nowait
    for (long i = 0; i < H * rows; i++) {
        long r = i % rows, h = i / rows, last = position[r], first = last - s->window + 1;
        if (first < 0) first = 0;
        long begin = (sequence[r] * K + h * K / H) * S, count = last - first + 1;
        Span span = {first % S, S};
        float *weights = scratch + omp_get_thread_num() * room, *y = s->y + (r * H + h) * D;
        const float *q = s->x + r * s->stride + h * D;
        if (s->how)
            mix(s, weights, begin, span, count, weigh(s, q, begin, span, count, h, weights, 1), y, 1);
        else
            mix(s, weights, begin, span, count, weigh(s, q, begin, span, count, h, weights, 0), y, 0);
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

// scratch: for each row as many floats as the widest input, and for each thread columns + LANES.
// most: how many threads take part at most.
void cpu_decoder(const Step *steps, long count, const long *sequence, const long *position, float *scratch, long rows,
                 long most) {
    Team team = {0, 0, 0};
#pragma omp parallel num_threads(most) if (most > 1)
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
