// A forward pass of some tokens: a list of steps, carried out by one team of threads, as fast as the weights come from
// memory, which are read once for all rows. Every sum is taken in one order, however many rows or threads there are: the
// same bits for a row in any batch.
#include "vectors.h"

#include "team.h"

#include "step.h"

#include "attention.h"
#include "integers.h"
#include "products.h"

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

static inline floats activation(floats x, long how, float cap) {
    floats zero = {0};
    if (how == GELU) {  // the tanh approximation: x / (1 + e^(-2u))
        floats u = 0.7978845608f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * u));
    }
    if (how == CAP) {  // cap tanh(x / cap)
        words number = (words)(x == x);
        return (floats)(((words)(cap - 2 * cap / (1.0f + exponential(2 / cap * x))) & number) | ((words)x & ~number));
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


// y (rows, n) = `number` times rows of w, which is `groups` (v: the scales of integers), by token; plus those of b, by
// position.
static void embed(const Step *s, const Pass *p, Member me) {
    Part part = part_of(p->rows, me);
    for (long r = part.begin; r < part.end; r++) {
        long n = s->n, token = p->token[r], groups = up_to_group(n) / GROUP, block = token / ROWS, row = token % ROWS;
        const float *b = s->b ? s->b + p->position[r] * n : 0;
        for (long j = 0; j < n; j++) {
            float x;
            long g = j / GROUP, k = j % GROUP;
            if (s->groups == FLOAT) {
                x = ((const float *)s->w)[token * n + j];
            } else if (s->groups == BFLOAT16) {
                x = widen_bfloat16(((const bfloat16 *)s->w)[token * n + j]);
            } else if (s->groups == INT8) {
                const uint8_t *w = (const uint8_t *)s->w + ((block * groups + g) * 8 + k / 4) * ROWS * 4;
                x = (w[row * 4 + k % 4] - 128) * ((const float *)s->v)[token];
            } else {
                const uint8_t *w = (const uint8_t *)s->w + ((block * groups + g) * 4 + k % 16 / 4) * ROWS * 4;
                int four = w[row * 4 + k % 4] >> (k < 16 ? 0 : 4) & 15;
                x = (four - 8) * widen_half((const uint16_t *)s->v + (block * groups + g) * ROWS + row);
            }
            s->y[r * n + j] = x * (float)s->number + (b ? b[j] : 0);
        }
    }
}

// y (rows, m) = x (rows, n) w^T + b, or y + that where `how` is 1. groups: what w is; v: the scales of integers.
static void linear(const Step *s, const Pass *p, Member me) {
    if (s->groups == FLOAT)
        linear_float(s, p, me);
    else if (s->groups == BFLOAT16)
        linear_bfloat16(s, p, me);
    else
        linear_integers(s, p, me);
}

// Each of `groups` vectors of n in a row. how: 1 without the mean (RMSNorm), 0 with (LayerNorm).
static void norm(const Step *s, const Pass *p, Member me) {
    const float *w = s->w;
    Part part = part_of(p->rows * s->groups, me);
    for (long i = part.begin; i < part.end; i++) {
        long at = i / s->groups * s->stride + i % s->groups * s->n, n = s->n;
        const float *x = s->x + at;
        float *y = s->y + at, mean = s->how ? 0 : sum(x, n, 0, 0) / n, square = sum(x, n, mean, 1);
        float scale = 1 / sqrtf(square / n + (float)s->number);
        for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * (w ? w[j] : 1) + (s->b ? s->b[j] : 0);
    }
}

// The pairs (i, i + m/2) of the first m columns of `groups` heads of a row, by position * b[i], and times `number`.
static void rotate(const Step *s, const Pass *p, Member me) {
    Part part = part_of(p->rows, me);
    for (long r = part.begin; r < part.end; r++)
        for (long i = 0; i < s->m / 2; i++) {
            float angle = p->position[r] * s->b[i];
            float c = (float)s->number * cosf(angle), d = (float)s->number * sinf(angle);
            for (long h = 0; h < s->groups; h++) {
                float *x = s->x + r * s->stride + h * s->n + i, a = x[0], b = x[s->m / 2];
                x[0] = a * c - b * d;
                x[s->m / 2] = b * c + a * d;
            }
        }
}

// y (rows, n) = activation of x (rows, stride), times x's second half where groups is 2. number: the cap of CAP.
static void activate(const Step *s, const Pass *p, Member me) {
    long blocks = (s->n + LANES - 1) / LANES;
    Part part = part_of(p->rows * blocks, me);
    for (long i = part.begin; i < part.end; i++) {
        long r = i / blocks, j = i % blocks * LANES, count = s->n - j < LANES ? s->n - j : LANES;
        floats x = {0}, gate = {0};
        memcpy(&x, s->x + r * s->stride + j, count * sizeof(float));
        x = activation(x, s->how, (float)s->number);
        if (s->groups == 2) {
            memcpy(&gate, s->x + r * s->stride + s->n + j, count * sizeof(float));
            x *= gate;
        }
        memcpy(s->y + r * s->n + j, &x, count * sizeof(float));
    }
}

// y (rows, n) = x, or y + x where `how` is 1.
static void add(const Step *s, const Pass *p, Member me) {
    Part part = part_of(p->rows * s->n, me);
    for (long i = part.begin; i < part.end; i++) s->y[i] = s->how ? s->y[i] + s->x[i] : s->x[i];
}

// y (rows, n) = x plus the weighted sum of the last m inputs, channel by channel; w: (m, n); v: those inputs, (B, columns, n).
static void convolve(const Step *s, const Pass *p, Member me) {
    const float *w = s->w;
    float *read = (float *)s->v;
    Part part = part_of(s->n, me);
    for (long r = 0; r < p->rows; r++)
        for (long c = part.begin; c < part.end; c++) {
            float *ring = read + p->sequence[r] * s->columns * s->n + c, x = s->x[r * s->n + c], sum = x;
            ring[p->position[r] % s->columns * s->n] = x;
            for (long tap = 0; tap < s->m; tap++) {
                long at = p->position[r] - (s->m - 1) + tap;
                if (at >= 0) sum += w[tap * s->n + c] * ring[at % s->columns * s->n];
            }
            s->y[r * s->n + c] = sum;
        }
}

static void carry_out(const void *pass, Member me) {
    const Pass *p = pass;
    for (const Step *s = p->steps; s < p->steps + p->count; s++) {
        switch (s->kind) {
            case EMBED: embed(s, p, me); break;
            case NORM: norm(s, p, me); break;
            case LINEAR: linear(s, p, me); break;
            case ROTATE: rotate(s, p, me); break;
            case ATTEND: attend(s, p, me); break;
            case ACTIVATE: activate(s, p, me); break;
            case ADD: add(s, p, me); break;
            case CONVOLVE: convolve(s, p, me); break;
        }
        if (s + 1 < p->steps + p->count) meet(me);
    }
}

// token, sequence, position: of each row. scratch: for each row as many floats as the widest input up to a multiple of 32,
// or for each thread 8 (columns + 32), whichever is more. threads: how many take part at most.
void cpu_decoder(const Step *steps, long count, const long *token, const long *sequence, const long *position,
                 float *scratch, long rows, long threads) {
    Pass pass = {steps, count, token, sequence, position, scratch, rows};
    work_together(carry_out, &pass, threads);
}
