// Products of rows with matrices of 8 and 4 bits, see packed.py.

enum { GROUP = 32, ROWS = 16, PARTS = ROWS / LANES };
enum { MOST_ROWS = LANES == 16 ? 8 : 4 };    // of x that a tile has, in registers
enum { ABREAST_8 = LANES == 16 ? 2 : 1 };  // vectors of outputs that a tile of 8 bits has

// Rows of x, as the tiles read them: in groups of `size` numbers, the last perhaps of fewer.
typedef struct {
    int8_t *numbers;  // from -127 to 127, for each row n of them up to the next multiple of GROUP
    float *scales;    // of each group
    int32_t *sums;    // of each group's numbers
    long size, groups, stride;
} Rounded;

static inline long up_to_group(long n) { return (n + GROUP - 1) / GROUP * GROUP; }

static inline Rounded rounded_rows(const Pass *p, long n, long size) {
    long stride = up_to_group(n), groups = (n + size - 1) / size;
    float *scales = p->scratch + p->rows * stride / 4;
    return (Rounded){(int8_t *)p->scratch, scales, (int32_t *)(scales + p->rows * groups), size, groups, stride};
}

// Group g of row r. What is infinite or not a number makes the scale so: its bits are beyond those of all others.
static void round_group(const float *x, Rounded to, long r, long g, long n) {
    long begin = g * to.size, count = n - begin < to.size ? n - begin : to.size, whole = count - count % LANES;
    float rest[LANES] = {0}, most;
    int32_t bits = 0, sum = 0;
    integers sizes = {0}, sums = {0};
    x += r * n + begin;
    memcpy(rest, x + whole, (count - whole) * sizeof(float));
    for (long j = 0; j < count; j += LANES) {
        integers size = (integers)load(j < whole ? x + j : rest) & 0x7fffffff, more = size > sizes;
        sizes = (size & more) | (sizes & ~more);
    }
    for (int i = 0; i < LANES; i++) bits = sizes[i] > bits ? sizes[i] : bits;
    memcpy(&most, &bits, sizeof most);
    float inverse = most > 0 ? 127 / most : 0;
    int8_t *row = to.numbers + r * to.stride + begin;
    for (long j = 0; j < up_to_group(count); j += LANES) {
        floats some = j < whole ? load(x + j) : j < count ? load(rest) : (floats){0};
        floats shifted = multiply_add(some, spread(inverse), spread(12582912.0f));  // to the nearest integer, in the last bits
        integers numbers = (integers)shifted - 0x4b400000;
        small narrow = __builtin_convertvector(numbers, small);
        memcpy(row + j, &narrow, sizeof narrow);
        sums += numbers;
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    to.scales[r * to.groups + g] = bits < 0x7f800000 ? most / 127 : NAN;
    to.sums[r * to.groups + g] = sum;
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

static inline bytes load_bytes(const uint8_t *p) {
    bytes v;
    memcpy(&v, p, sizeof v);
    return v;
}

// LANES outputs, which are the vector-th, of one row.
static inline void put(const Step *s, long vector, long r, floats sums) {
    long o = vector * LANES, count = s->m - o < LANES ? s->m - o : LANES;
    float *y = s->y + r * s->m + o, row[LANES];
    store(row, sums);
    for (long j = 0; j < count; j++) {
        float sum = row[j] + (s->b ? s->b[o + j] : 0);
        y[j] = s->how ? y[j] + sum : sum;
    }
}

// W vectors of outputs, from the vector-th on, for R rows of x from r on. Each group's sum is exact.
static inline __attribute__((always_inline)) void tile_of_8_bits(const Step *s, Rounded x, long vector, long r,
                                                                 const int R, const int W) {
    floats totals[MOST_ROWS * ABREAST_8];
    integers sums[MOST_ROWS * ABREAST_8];
    const uint8_t *w[ABREAST_8];
    for (int k = 0; k < W; k++)
        w[k] = (const uint8_t *)s->w + (vector + k) / PARTS * x.stride * ROWS + (vector + k) % PARTS * LANES * 4;
    for (int i = 0; i < R * W; i++) totals[i] = (floats){0};
    for (long g = 0; g < x.groups; g++) {
        long end = (g + 1) * x.size < x.stride ? (g + 1) * x.size : x.stride;
        for (int i = 0; i < R * W; i++) sums[i] = (integers){0};
        for (long j = g * x.size; j < end; j += 4)
            for (int k = 0; k < W; k++) {
                bytes weights = load_bytes(w[k] + j * ROWS);
                for (int i = 0; i < R; i++)
                    sums[i * W + k] = add_products(sums[i * W + k], weights, x.numbers + (r + i) * x.stride + j, 8);
            }
        for (int i = 0; i < R; i++) {
            long at = (r + i) * x.groups + g;
            int32_t middle = SIGNED ? 0 : 128 * x.sums[at];
            for (int k = 0; k < W; k++) {
                floats sum = __builtin_convertvector(sums[i * W + k] - middle, floats);
                totals[i * W + k] = multiply_add(sum, spread(x.scales[at]), totals[i * W + k]);
            }
        }
    }
    for (int k = 0; k < W; k++) {
        floats scales = load((const float *)s->v + (vector + k) * LANES);
        for (int i = 0; i < R; i++) put(s, vector + k, r + i, totals[i * W + k] * scales);
    }
}

static inline __attribute__((always_inline)) void tile_of_4_bits(const Step *s, Rounded x, long vector, long r,
                                                                 const int R) {
    long block = vector / PARTS, part = vector % PARTS * LANES;
    const uint8_t *w = (const uint8_t *)s->w + block * x.groups * 4 * ROWS * 4 + part * 4;
    const uint16_t *halves = (const uint16_t *)s->v + block * x.groups * ROWS + part;
    floats totals[MOST_ROWS];
    integers sums[MOST_ROWS];
    for (int i = 0; i < R; i++) totals[i] = (floats){0};
    for (long g = 0; g < x.groups; g++, w += 4 * ROWS * 4) {
        for (int i = 0; i < R; i++) sums[i] = (integers){0} - 8 * x.sums[(r + i) * x.groups + g];
        for (int k = 0; k < 4; k++) {
            bytes some = load_bytes(w + k * ROWS * 4), low = some & 15, high = some >> 4;
            for (int i = 0; i < R; i++) {
                const int8_t *numbers = x.numbers + (r + i) * x.stride + g * GROUP + 4 * k;
                sums[i] = add_products(add_products(sums[i], low, numbers, 4), high, numbers + GROUP / 2, 4);
            }
        }
        floats scales = widen_halves(halves + g * ROWS);
        for (int i = 0; i < R; i++) {
            floats sum = __builtin_convertvector(sums[i], floats);
            totals[i] = multiply_add(sum, scales * x.scales[(r + i) * x.groups + g], totals[i]);
        }
    }
    for (int i = 0; i < R; i++) put(s, vector, r + i, totals[i]);
}

#define ROWS_OF(TILE, ...)                                                       \
    do {                                                                         \
        long r = 0;                                                              \
        for (; r + MOST_ROWS <= rows; r += MOST_ROWS) TILE(s, x, vector, r, MOST_ROWS __VA_ARGS__); \
        if (MOST_ROWS > 4 && r + 4 <= rows) TILE(s, x, vector, r, 4 __VA_ARGS__), r += 4;           \
        if (r + 2 <= rows) TILE(s, x, vector, r, 2 __VA_ARGS__), r += 2;                            \
        if (r < rows) TILE(s, x, vector, r, 1 __VA_ARGS__);                                         \
    } while (0)

static void linear_integers(const Step *s, const Pass *p, Member me) {
    Rounded x = rounded_rows(p, s->n, s->groups == INT8 ? 4 * GROUP : GROUP);
    long rows = p->rows, vectors = (s->m + LANES - 1) / LANES;
    Part part = part_of(rows * x.groups, me);
    for (long i = part.begin; i < part.end; i++) round_group(s->x, x, i / x.groups, i % x.groups, s->n);
    meet(me);
    if (s->groups == INT4) {
        part = part_of(vectors, me);
        for (long vector = part.begin; vector < part.end; vector++) ROWS_OF(tile_of_4_bits, );
        return;
    }
    part = part_of((vectors + ABREAST_8 - 1) / ABREAST_8, me);
    for (long vector = part.begin * ABREAST_8; vector < part.end * ABREAST_8 && vector < vectors; vector += ABREAST_8)
        if (vector + ABREAST_8 <= vectors)
            ROWS_OF(tile_of_8_bits, , ABREAST_8);
        else
            ROWS_OF(tile_of_8_bits, , 1);
}
