// Vectors of floats and integers, as wide as the processor's registers, and functions of them.
#include <math.h>
#include <stdint.h>
#include <string.h>
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
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(4 * LANES)));
typedef int8_t small __attribute__((vector_size(LANES)));
typedef uint16_t bfloat16;  // the upper half of a float

static inline floats load(const float *p) {
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, floats v) { memcpy(p, &v, sizeof v); }

// Keep a vector in a register: compilers would load it anew for each use.
#if defined(__AVX512F__)
#define HOLD(v) asm("" : "+v"(v))
#elif defined(__AVX__)
#define HOLD(v) asm("" : "+x"(v))
#else
#define HOLD(v)
#endif

static inline floats spread(float x) { return x - (floats){0}; }  // of which compilers leave the difference out

static inline floats load_bfloat16(const bfloat16 *p) {
    words wide;
#if defined(__AVX512F__)
    wide = (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    wide = (words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    for (int i = 0; i < LANES; i++) wide[i] = p[i];
#endif
    return (floats)(wide << 16);
}

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

#if defined(__AVX512F__)
static const integers LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
static const integers LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

// Lane i of the result is the lanes[i]-th of a, or of b where that is LANES or more.
static inline floats pick(floats a, floats b, integers lanes) {
#if defined(__clang__)
    floats v;
#pragma clang loop unroll(full)
    for (int i = 0; i < LANES; i++) v[i] = lanes[i] & LANES ? b[lanes[i] & (LANES - 1)] : a[lanes[i] & (LANES - 1)];
    return v;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

static inline float total(floats v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += pick(v, v, LANE ^ half);
    return v[0];
}

// Lane i of the result is the sum of v[i]'s lanes, as of `total`: halves are added to halves, for all vectors at once.
static inline floats totals_of(floats *v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        integers at = LANE & (LANES / 2 - 1);
        integers low = (LANE & LANES / 2) * 2 + (at & -half) * 2 + (at & (half - 1));
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            v[i] = pick(v[2 * i], v[2 * i + 1], low) + pick(v[2 * i], v[2 * i + 1], low + half);
    }
    return v[0];
}

static inline floats larger(floats a, floats b) {
    integers which = a > b;
    return (floats)(((words)a & (words)which) | ((words)b & ~(words)which));
}

static inline float largest_of(floats v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v = larger(pick(v, v, LANE ^ half), v);
    return v[0];
}

// e^x: 2^k e^r with |r| <= ln 2 / 2, and e^r by its Taylor series to the seventh power.
static inline floats exponential(floats x) {
    floats low = spread(-87.0f), high = spread(88.0f);
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

// n numbers in bfloat16, to the nearest, ties to even.
static inline void narrow_bfloat16(const float *x, bfloat16 *to, long n) {
    for (long j = 0; j < n; j++) {
        uint32_t word;
        memcpy(&word, x + j, sizeof word);
        to[j] = x[j] == x[j] ? (word + 0x7fff + (word >> 16 & 1)) >> 16 : 0x7fc0;
    }
}

static inline float widen_bfloat16(bfloat16 h) {
    uint32_t word = (uint32_t)h << 16;
    float f;
    memcpy(&f, &word, sizeof f);
    return f;
}

static inline floats widen_halves(const uint16_t *halves) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
#elif defined(__F16C__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
#else
    words wide;
    for (int i = 0; i < LANES; i++) wide[i] = halves[i];
    floats size = (floats)((wide & 0x7fff) << 13) * 0x1p112f;  // of numbers that are finite
    return (floats)((words)size | (wide & 0x8000) << 16);
#endif
}

static inline float widen_half(const uint16_t *half) {
    uint16_t halves[LANES] = {*half};
    return widen_halves(halves)[0];
}
