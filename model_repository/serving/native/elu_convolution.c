/* Causal convolutions of elu(x) for ONNX Runtime on x86-64 with AVX-512.
 *
 * Operator EluConvolution of domain "personaplex": padded = before followed by elu(x); each step of y is the product of
 * the last history + 1 steps of padded with the matrix, plus bias, plus added; next is the end of padded. `windows` and
 * `tail` are what the graph's own form of it needs, and are not read.
 *
 *     before [B, history, n], x [B, T, n], matrix [(history + 1) * n, out], bias [out], added [B, T, out] or one 0,
 *     windows [T, history + 1], tail [history]  ->  y [B, T, out], next [B, history, n]
 *
 * Operator EluProjection is the same without a history: x, matrix, bias, added -> y.
 *
 * It exists because the graph's own form goes through memory eleven times: four for elu, two for the windows, which are
 * as many times larger as they have steps, and so on. Here elu(x) of some hundred steps lies in the first cache, where
 * windows are nothing but overlapping rows, and what is added is added before y is written. All sums are over the depth
 * of the matrix in order, so a step's answer is the same whatever comes with it.
 */
#include <immintrin.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

enum {
    LANES = 16,           /* of a vector */
    ROWS = 8,             /* steps that share what is read of the matrix */
    LEAST_STEPS = 48,     /* of a chunk: then the matrix is read seldom */
    MOST_STEPS = 240,
    CHUNK_ELEMENTS = 8192, /* of elu(x): the size of a first cache */
    ENOUGH_TASKS = 16,
    LARGE_MATRIX = 1 << 16, /* elements; a smaller one is not worth to be shared by several tasks */
};

typedef struct {
    const Api *api;
    size_t x; /* place of the operand x; matrix, bias and added follow it */
    size_t depth, columns;
    size_t vectors; /* of a panel's width: 1 or 2 */
    size_t panels;
    float *packed; /* [panels][depth][vectors * LANES] */
    float *bias;   /* [panels][vectors * LANES] */
} Matrix;

typedef struct {
    const Matrix *matrix;
    const float *before, *x, *added; /* added: NULL if nothing is */
    float *y;
    size_t rows, steps, history, width; /* B, T, history, n */
    bool whole_windows;                 /* copied, because a row has too few steps for a chunk */
    size_t chunk, chunks_of_row, chunks, groups;
    int failed;
} Convolution;

/* exp(x) - 1 below 0, x above; exp as 2^k * e^r with |r| <= ln(2) / 2 and the Taylor series of e^r to r^7 / 7!. */
static inline __m512 elu(__m512 x) {
    const __m512 below = _mm512_max_ps(_mm512_min_ps(x, _mm512_setzero_ps()), _mm512_set1_ps(-104));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(below, _mm512_set1_ps(1.44269504f)), 0);
    /* ln(2) in two parts, of which the first times a whole number is exact. */
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), below);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 e = _mm512_set1_ps(1.0f / 5040);
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 720));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 120));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 24));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 6));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(0.5f));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1));
    __m512 less = _mm512_sub_ps(_mm512_scalef_ps(e, k), _mm512_set1_ps(1));
    return _mm512_max_ps(less, x);
}

static void elu_of(float *to, const float *from, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) _mm512_storeu_ps(to + i, elu(_mm512_loadu_ps(from + i)));
    if (i < count) {
        __mmask16 there = (1u << (count - i)) - 1;
        _mm512_mask_storeu_ps(to + i, there, elu(_mm512_maskz_loadu_ps(there, from + i)));
    }
}

/* Write the padded input of row `row` at the steps start..stop-1; those before step 0 are its history. */
static void write_padded(const Convolution *convolution, size_t row, ptrdiff_t start, ptrdiff_t stop, float *to) {
    const size_t n = convolution->width;
    if (start < 0) {
        ptrdiff_t end = stop < 0 ? stop : 0;
        size_t first = (size_t)((ptrdiff_t)convolution->history + start), count = (size_t)(end - start) * n;
        memcpy(to, convolution->before + (row * convolution->history + first) * n, count * sizeof *to);
        to += count;
        start = end;
    }
    if (start < stop)
        elu_of(to, convolution->x + (row * convolution->steps + (size_t)start) * n, (size_t)(stop - start) * n);
}

/* y of `rows` steps and one panel of columns. `vectors` and `rows` are constants where this is inlined, so that sums
 * stay in registers. `padded`: the first window; the next ones begin `stride` elements later each. */
static inline __attribute__((always_inline)) void multiply(
    const int vectors, const int rows, const Convolution *convolution, const float *padded, size_t stride,
    size_t panel, size_t step
) {
    const Matrix *matrix = convolution->matrix;
    const size_t width = (size_t)vectors * LANES, first = panel * width, left = matrix->columns - first;
    const float *weights = matrix->packed + panel * matrix->depth * width;
    __m512 sums[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_setzero_ps();
    for (size_t d = 0; d < matrix->depth; d++, weights += width) {
        __m512 column[2];
        for (int v = 0; v < vectors; v++) column[v] = _mm512_loadu_ps(weights + v * LANES);
        for (int r = 0; r < rows; r++) {
            __m512 one = _mm512_set1_ps(padded[(size_t)r * stride + d]);
            for (int v = 0; v < vectors; v++) sums[r][v] = _mm512_fmadd_ps(one, column[v], sums[r][v]);
        }
    }
    for (int v = 0; v < vectors; v++) {
        size_t from = (size_t)v * LANES;
        if (from >= left) break;
        __mmask16 there = left - from >= LANES ? 0xffff : (1u << (left - from)) - 1;
        __m512 bias = _mm512_loadu_ps(matrix->bias + first + from);
        for (int r = 0; r < rows; r++) {
            size_t at = (step + (size_t)r) * matrix->columns + first + from;
            __m512 sum = _mm512_add_ps(sums[r][v], bias);
            if (convolution->added) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(there, convolution->added + at));
            _mm512_mask_storeu_ps(convolution->y + at, there, sum);
        }
    }
}

#define MULTIPLY(VECTORS, COUNT) \
    for (; done + COUNT <= steps; done += COUNT) \
        multiply(VECTORS, COUNT, convolution, padded + done * stride, stride, panel, step + done);

/* y of steps that follow each other, and of the panels of a group. */
static void multiply_steps(
    const Convolution *convolution, const float *padded, size_t stride, size_t step, size_t steps, size_t group
) {
    const Matrix *matrix = convolution->matrix;
    const size_t start = matrix->panels * group / convolution->groups;
    const size_t stop = matrix->panels * (group + 1) / convolution->groups;
    for (size_t panel = start; panel < stop; panel++) {
        size_t done = 0;
        if (matrix->vectors == 1) {
            MULTIPLY(1, 8) MULTIPLY(1, 4) MULTIPLY(1, 2) MULTIPLY(1, 1)
        } else {
            MULTIPLY(2, 8) MULTIPLY(2, 4) MULTIPLY(2, 2) MULTIPLY(2, 1)
        }
    }
}

static void convolve_chunk(void *data, size_t task) {
    Convolution *convolution = data;
    const size_t chunk = task / convolution->groups, group = task % convolution->groups;
    const size_t n = convolution->width, depth = convolution->matrix->depth, history = convolution->history;
    /* Windows a power of two apart would all lie in the same lines of the cache. */
    const size_t apart = convolution->whole_windows ? depth + LANES : n;
    const size_t held = convolution->whole_windows ? convolution->chunk * apart : (convolution->chunk + history) * n;
    float *padded = aligned_alloc(64, (held * sizeof *padded + 63) / 64 * 64);
    if (!padded) {
        __atomic_store_n(&convolution->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    if (convolution->whole_windows) {
        size_t first = chunk * convolution->chunk, total = convolution->rows * convolution->steps;
        size_t steps = total - first < convolution->chunk ? total - first : convolution->chunk;
        for (size_t i = 0; i < steps; i++) {
            size_t row = (first + i) / convolution->steps;
            ptrdiff_t step = (ptrdiff_t)((first + i) % convolution->steps);
            write_padded(convolution, row, step - (ptrdiff_t)history, step + 1, padded + i * apart);
        }
        multiply_steps(convolution, padded, apart, first, steps, group);
    } else {
        size_t row = chunk / convolution->chunks_of_row, first = chunk % convolution->chunks_of_row * convolution->chunk;
        size_t left = convolution->steps - first, steps = left < convolution->chunk ? left : convolution->chunk;
        ptrdiff_t start = (ptrdiff_t)first - (ptrdiff_t)history, stop = (ptrdiff_t)(first + steps);
        write_padded(convolution, row, start, stop, padded);
        multiply_steps(convolution, padded, apart, row * convolution->steps + first, steps, group);
    }
    free(padded);
}

/* The three dimensions of operand `index`. */
static Status *three(const Api *api, const KernelContext *context, size_t index, const float **data, int64_t sizes[3]) {
    const Tensor *tensor;
    Shape *shape;
    size_t count;
    TRY(context_input(api, context, index, &tensor));
    TRY(tensor_shape(api, tensor, &shape));
    Status *failed = dimension_count(api, shape, &count);
    if (!failed && count != 3) failed = create_status(api, INVALID_ARGUMENT, "elu convolution: expected 3 dimensions");
    if (!failed) failed = dimensions(api, shape, sizes, 3);
    release_shape(api, shape);
    if (failed) return failed;
    return tensor_data(api, tensor, (void **)data);
}

static Status *added_to(
    const Api *api, const KernelContext *context, size_t index, size_t expected, const float **data
) {
    const Tensor *tensor;
    Shape *shape;
    size_t count;
    TRY(context_input(api, context, index, &tensor));
    TRY(tensor_shape(api, tensor, &shape));
    Status *failed = element_count(api, shape, &count);
    release_shape(api, shape);
    if (failed) return failed;
    TRY(tensor_data(api, tensor, (void **)data));
    if (count == 1 && expected != 1 && **data == 0) *data = NULL;
    else if (count != expected)
        return create_status(api, INVALID_ARGUMENT, "elu convolution: added is neither 0 nor of y's size");
    return NULL;
}

static size_t limited(size_t value, size_t least, size_t most) {
    return value < least ? least : value > most ? most : value;
}

static Status *compute(void *kernel, KernelContext *context) {
    const Matrix *matrix = kernel;
    const Api *api = matrix->api;
    Convolution convolution = {.matrix = matrix};
    int64_t earlier[3], sizes[3];
    Tensor *y, *next;
    TRY(three(api, context, matrix->x, &convolution.x, sizes));
    if (matrix->x) TRY(three(api, context, 0, &convolution.before, earlier));
    else memcpy(earlier, (int64_t[3]){sizes[0], 0, sizes[2]}, sizeof earlier);
    convolution.rows = (size_t)sizes[0];
    convolution.steps = (size_t)sizes[1];
    convolution.width = (size_t)sizes[2];
    convolution.history = (size_t)earlier[1];
    size_t n = convolution.width, history = convolution.history, total = convolution.rows * convolution.steps;
    if (earlier[0] != sizes[0] || earlier[2] != sizes[2] || (history + 1) * n != matrix->depth)
        return create_status(api, INVALID_ARGUMENT, "elu convolution: before, x and the matrix do not fit each other");
    TRY(added_to(api, context, matrix->x + 3, total * matrix->columns, &convolution.added));
    sizes[2] = (int64_t)matrix->columns;
    TRY(context_output(api, context, 0, sizes, 3, &y));
    TRY(tensor_data(api, y, (void **)&convolution.y));
    convolution.chunk = limited(CHUNK_ELEMENTS / n, LEAST_STEPS, MOST_STEPS);
    convolution.whole_windows = convolution.steps < LEAST_STEPS;
    convolution.chunks_of_row = tasks(convolution.steps, convolution.chunk);
    convolution.chunks =
        convolution.whole_windows ? tasks(total, convolution.chunk) : convolution.rows * convolution.chunks_of_row;
    convolution.groups = 1;
    if (matrix->depth * matrix->columns >= LARGE_MATRIX && convolution.chunks < ENOUGH_TASKS)
        convolution.groups = limited(ENOUGH_TASKS / limited(convolution.chunks, 1, ENOUGH_TASKS), 1, matrix->panels);
    size_t count = convolution.chunks * convolution.groups;
    if (count == 1) convolve_chunk(&convolution, 0);
    else if (count) TRY(parallel_for(api, context, convolve_chunk, count, 0, &convolution));
    if (convolution.failed) return create_status(api, FAILED, "elu convolution: no memory for elu(x)");
    if (!matrix->x) return NULL;
    float *end;
    TRY(context_output(api, context, 1, earlier, 3, &next));
    TRY(tensor_data(api, next, (void **)&end));
    for (size_t row = 0; row < convolution.rows; row++, end += history * n) {
        ptrdiff_t stop = (ptrdiff_t)convolution.steps;
        write_padded(&convolution, row, stop - (ptrdiff_t)history, stop, end);
    }
    return NULL;
}

static void destroy(void *kernel) {
    Matrix *matrix = kernel;
    free(matrix->packed);
    free(matrix->bias);
    free(matrix);
}

static Status *prepare(Matrix *matrix, const KernelInfo *info) {
    const Api *api = matrix->api;
    const float *weights, *bias;
    size_t elements;
    TRY(constant(api, info, matrix->x + 1, &elements, (const void **)&weights));
    TRY(constant(api, info, matrix->x + 2, &matrix->columns, (const void **)&bias));
    if (!matrix->columns || !elements || elements % matrix->columns)
        return create_status(api, INVALID_ARGUMENT, "elu convolution: the matrix and the bias do not fit each other");
    matrix->depth = elements / matrix->columns;
    matrix->vectors = matrix->columns <= LANES ? 1 : 2;
    size_t width = matrix->vectors * LANES;
    matrix->panels = tasks(matrix->columns, width);
    matrix->packed = aligned_alloc(64, matrix->panels * matrix->depth * width * sizeof *matrix->packed);
    matrix->bias = aligned_alloc(64, matrix->panels * width * sizeof *matrix->bias);
    if (!matrix->packed || !matrix->bias)
        return create_status(api, FAILED, "elu convolution: no memory for the matrix");
    float *to = matrix->packed;
    for (size_t panel = 0; panel < matrix->panels; panel++)
        for (size_t d = 0; d < matrix->depth; d++)
            for (size_t lane = 0, column = panel * width; lane < width; lane++, column++)
                *to++ = column < matrix->columns ? weights[d * matrix->columns + column] : 0;
    for (size_t column = 0; column < matrix->panels * width; column++)
        matrix->bias[column] = column < matrix->columns ? bias[column] : 0;
    return NULL;
}

static Status *create(const Api *api, const KernelInfo *info, size_t x, void **kernel) {
    Matrix *matrix = calloc(1, sizeof *matrix);
    if (!matrix) return create_status(api, FAILED, "elu convolution: no memory");
    matrix->api = api;
    matrix->x = x;
    Status *failed = prepare(matrix, info);
    if (failed) destroy(matrix);
    else *kernel = matrix;
    return failed;
}

/* y has the shape of x with that of the bias as its last dimension, next that of before. */
static Status *infer(ShapeContext *context, size_t at) {
    const Api *api = registered_api;
    Shape *before, *x, *bias;
    size_t count;
    int64_t sizes[3];
    TRY(known_input_shape(api, context, at, &x));
    TRY(known_input_shape(api, context, at + 2, &bias));
    TRY(dimension_count(api, x, &count));
    if (count != 3) return NULL;
    TRY(dimensions(api, x, sizes, 3));
    TRY(dimension_count(api, bias, &count));
    if (count != 1) return NULL;
    TRY(dimensions(api, bias, &sizes[2], 1));
    TRY(set_dimensions(api, x, sizes, 3));
    TRY(set_output_shape(api, context, 0, x));
    if (!at) return NULL;
    TRY(known_input_shape(api, context, 0, &before));
    return set_output_shape(api, context, 1, before);
}

static Status *create_convolution(const Op *op, const Api *api, const KernelInfo *info, void **kernel) {
    return (void)op, create(api, info, 1, kernel);
}
static Status *create_projection(const Op *op, const Api *api, const KernelInfo *info, void **kernel) {
    return (void)op, create(api, info, 0, kernel);
}
static Status *infer_convolution(const Op *op, ShapeContext *context) { return (void)op, infer(context, 1); }
static Status *infer_projection(const Op *op, ShapeContext *context) { return (void)op, infer(context, 0); }
static const char *name_of_convolution(const Op *op) { return (void)op, "EluConvolution"; }
static const char *name_of_projection(const Op *op) { return (void)op, "EluProjection"; }
static size_t seven(const Op *op) { return (void)op, 7; }
static size_t four(const Op *op) { return (void)op, 4; }
static size_t two(const Op *op) { return (void)op, 2; }
static size_t one(const Op *op) { return (void)op, 1; }
static int input_type(const Op *op, size_t index) { return (void)op, index < 5 ? ELEMENT_FLOAT : ELEMENT_INT64; }
static int output_type(const Op *op, size_t index) { return (void)op, (void)index, ELEMENT_FLOAT; }

const Op elu_convolution = {
    COMMON_FIELDS,
    .name = name_of_convolution,
    .input_type = input_type,
    .inputs = seven,
    .input_kind = required,
    .output_type = output_type,
    .outputs = two,
    .create_kernel_v2 = create_convolution,
    .compute_v2 = compute,
    .destroy = destroy,
    .infer_shape = infer_convolution,
};

const Op elu_projection = {
    COMMON_FIELDS,
    .name = name_of_projection,
    .input_type = input_type,
    .inputs = four,
    .input_kind = required,
    .output_type = output_type,
    .outputs = one,
    .create_kernel_v2 = create_projection,
    .compute_v2 = compute,
    .destroy = destroy,
    .infer_shape = infer_projection,
};
