// Attention of rows over the keys and values of their sequences. A cache has a ring of columns for each sequence and head,
// a multiple of KEYS; position p lies in column p modulo that. Keys lie by KEYS columns: the first number of each, then the
// second, ... So queries meet KEYS keys at once, and each sum is taken in one order: by position, in lanes that depend on it.

enum { KEYS = 16, PER_TILE = KEYS / LANES };
enum { QUERIES = LANES == 16 ? 8 : 4, MIXED = QUERIES / 2 };  // that a tile has at most, in registers
enum { SEVERAL = 4 };                                         // vectors of keys or values beside few queries

// LANES of a cache's numbers, from the i-th on.
static inline floats cached(const void *cache, long i, const int is_bfloat16) {
    return is_bfloat16 ? load_bfloat16((const bfloat16 *)cache + i) : load((const float *)cache + i);
}

static inline float cached_one(const void *cache, long i, const int is_bfloat16) {
    return is_bfloat16 ? widen_bfloat16(((const bfloat16 *)cache)[i]) : ((const float *)cache)[i];
}

// n floats into a cache, to the nearest: x[j] into i + j apart.
static void keep(void *cache, long i, long apart, const float *x, long n, int is_bfloat16) {
    bfloat16 some[LANES];
    for (long j = 0; j < n; j++)
        if (is_bfloat16) {
            if (j % LANES == 0) narrow_bfloat16(x + j, some, n - j < LANES ? n - j : LANES);
            ((bfloat16 *)cache)[i + j * apart] = some[j % LANES];
        } else {
            ((float *)cache)[i + j * apart] = x[j];
        }
}

// Some rows, one after the other in a sequence, for one head.
typedef struct {
    const Step *s;
    const float *q;       // of the first row
    float *y, *weights;   // weights: for each row, `room` floats
    long position;        // of the first row
    long base;            // where the sequence's keys of this head begin, in columns
    long begin, room;     // the first position that any row sees, down to a multiple of KEYS; how many follow, up to one
    float slope;
} Queries;

// The scores of R rows for tiles t to t + T of KEYS positions; `most` grows to the largest of each row.
static inline __attribute__((always_inline)) void score(const Queries *a, long t, const int R, const int T, floats *most,
                                                        const int is_bfloat16) {
    const Step *s = a->s;
    long D = s->n, at[SEVERAL];
    floats sums[QUERIES * SEVERAL * PER_TILE];
    const int V = T * PER_TILE;
    for (int i = 0; i < R * V; i++) sums[i] = (floats){0};
    for (int i = 0; i < T; i++) at[i] = (a->base + (a->begin + (t + i) * KEYS) % s->columns) * D;
    for (long d = 0; d < D; d++)
        for (int v = 0; v < V; v++) {
            floats keys = cached(s->w, at[v / PER_TILE] + d * KEYS + v % PER_TILE * LANES, is_bfloat16);
            HOLD(keys);
            for (int i = 0; i < R; i++)
                sums[i * V + v] = multiply_add(spread(a->q[i * s->stride + d]), keys, sums[i * V + v]);
        }
    for (int i = 0; i < R; i++)
        for (int v = 0; v < V; v++) {
            integers back = (integers){0} + (int32_t)(a->position + i - a->begin - t * KEYS - v * LANES) - LANE;
            floats scores = sums[i * V + v] * (float)s->number;
            if (s->b) scores -= a->slope * __builtin_convertvector(back, floats);
            integers seen = (back >= 0) & (back < (int32_t)s->window);
            scores = (floats)(((words)scores & (words)seen) | ((words)spread(-INFINITY) & ~(words)seen));
            store(a->weights + i * a->room + t * KEYS + v * LANES, scores);
            most[i] = larger(scores, most[i]);
        }
}

// NV vectors of the d-th numbers on of R rows' outputs.
static inline __attribute__((always_inline)) void mix(const Queries *a, long d, const int R, const int NV,
                                                      const float *scales, const int is_bfloat16) {
    const Step *s = a->s;
    long D = s->n, last = a->position + R - 1;
    floats sums[MIXED * SEVERAL];
    for (int i = 0; i < R * NV; i++) sums[i] = (floats){0};
    long first = a->position - s->window + 1 > 0 ? a->position - s->window + 1 : 0, column = first % s->columns;
    for (long t = first; t <= last; t++) {
        long value = (a->base + column) * D + d;
        if (++column == s->columns) column = 0;
        for (int v = 0; v < NV; v++) {
            floats some = cached(s->v, value + v * LANES, is_bfloat16);
            HOLD(some);
            for (int i = 0; i < R; i++)
                sums[i * NV + v] = multiply_add(spread(a->weights[i * a->room + t - a->begin]), some, sums[i * NV + v]);
        }
    }
    for (int i = 0; i < R; i++)
        for (int v = 0; v < NV; v++) store(a->y + i * D * s->m + d + v * LANES, sums[i * NV + v] * scales[i]);
}

// The outputs of R rows for one head.
static inline __attribute__((always_inline)) void attend_tile(const Queries *a, const int R, const int is_bfloat16) {
    const Step *s = a->s;
    const int T = (R == QUERIES ? 2 : SEVERAL) / PER_TILE;
    long tiles = a->room / KEYS, t = 0, D = s->n, d = 0;
    floats most[QUERIES];
    float scales[QUERIES];
    for (int i = 0; i < R; i++) most[i] = spread(-INFINITY);
    for (; t + T <= tiles; t += T) score(a, t, R, T, most, is_bfloat16);
    for (; t < tiles; t++) score(a, t, R, 1, most, is_bfloat16);
    for (int i = 0; i < R; i++) {
        float *weights = a->weights + i * a->room, largest = largest_of(most[i]);
        floats sums = {0}, none = spread(-INFINITY);
        for (long j = 0; j < a->room; j += LANES) {
            floats scores = load(weights + j), e = exponential(scores - largest);
            e = (floats)((words)e & ~(words)(scores == none));
            store(weights + j, e);
            sums += e;
        }
        scales[i] = 1 / total(sums);
    }
    for (int first = 0; first < R; first += MIXED) {
        Queries b = *a;
        const int some = R < MIXED ? R : MIXED;
        b.position += first, b.weights += first * a->room, b.y += first * D * s->m;
        for (d = 0; d + SEVERAL * LANES <= D; d += SEVERAL * LANES) mix(&b, d, some, SEVERAL, scales + first, is_bfloat16);
        for (; d + LANES <= D; d += LANES) mix(&b, d, some, 1, scales + first, is_bfloat16);
    }
    for (; d < D; d++)
        for (int i = 0; i < R; i++) {
            float sum = 0;
            for (long place = a->begin; place <= a->position + i; place++) {
                float weight = a->weights[i * a->room + place - a->begin];
                if (weight) sum += weight * cached_one(s->v, (a->base + place % s->columns) * D + d, is_bfloat16);
            }
            a->y[i * D * s->m + d] = sum * scales[i];
        }
}

// Rows r to end, of one sequence and one after the other, for head h.
static void attend_rows(const Step *s, const Pass *p, long r, long end, long h, float *weights) {
    long D = s->n, H = s->m, K = s->groups;
    while (r < end) {
        int R = end - r >= QUERIES ? QUERIES : end - r >= 4 ? 4 : end - r >= 2 ? 2 : 1;
        long position = p->position[r], first = position - s->window + 1 > 0 ? position - s->window + 1 : 0;
        Queries a = {s, s->x + r * s->stride + h * D, s->y + (r * H + h) * D, weights, position};
        a.base = (p->sequence[r] * K + h * K / H) * s->columns;
        a.begin = first / KEYS * KEYS, a.room = (position + R - 1) / KEYS * KEYS + KEYS - a.begin;
        a.slope = s->b ? s->b[h] : 0;
#define OF(ROWS_HERE) s->how ? attend_tile(&a, ROWS_HERE, 1) : attend_tile(&a, ROWS_HERE, 0)
        if (R == QUERIES)
            OF(QUERIES);
        else if (R == 4)
            OF(4);
        else if (R == 2)
            OF(2);
        else
            OF(1);
#undef OF
        r += R;
    }
}

// x: rows of m query heads, `groups` key heads and as many value heads of n each; w, v: the caches of keys and of values,
// (B, groups, columns, n), in bfloat16 where `how` is 1; b: ALiBi's slopes; number: the scores' scale. Into y (rows, m n).
static void attend(const Step *s, const Pass *p, Member me) {
    long D = s->n, H = s->m, K = s->groups, S = s->columns, blocks = (p->rows + QUERIES - 1) / QUERIES;
    Part part = part_of(p->rows * K, me);
    for (long i = part.begin; i < part.end; i++) {
        long r = i / K, g = i % K, column = p->position[r] % S, base = (p->sequence[r] * K + g) * S * D;
        const float *x = s->x + r * s->stride + (H + g) * D;
        keep((void *)s->w, base + column / KEYS * KEYS * D + column % KEYS, KEYS, x, D, s->how);
        keep((void *)s->v, base + column * D, 1, x + K * D, D, s->how);
    }
    meet(me);
    float *weights = p->scratch + me.thread * QUERIES * (S + 2 * KEYS);
    for (long i = me.thread; i < H * blocks; i += me.threads) {
        long h = i / blocks, r = i % blocks * QUERIES, end = r + QUERIES < p->rows ? r + QUERIES : p->rows;
        while (r < end) {
            long next = r + 1;
            while (next < end && p->sequence[next] == p->sequence[r] && p->position[next] == p->position[next - 1] + 1) next++;
            attend_rows(s, p, r, next, h, weights);
            r = next;
        }
    }
}
