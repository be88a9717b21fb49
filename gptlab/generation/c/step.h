// What cpu_decoder.py describes: a pass is a list of steps over (rows, ...) arrays.

enum { EMBED, NORM, LINEAR, ROTATE, ATTEND, ACTIVATE, ADD, CONVOLVE };
enum { GELU, GELU_EXACT, RELU, RELU2, SILU, CAP };
enum { FLOAT, BFLOAT16, INT8, INT4 };  // of weights

// What a step does not use is 0.
typedef struct {
    long kind, how, n, m, groups, stride, columns, window;
    double number;
    const void *w, *v;
    const float *b;
    float *x, *y;
} Step;

typedef struct {
    const Step *steps;
    long count;
    const long *token, *sequence, *position;  // of each row
    float *scratch;
    long rows;
} Pass;
