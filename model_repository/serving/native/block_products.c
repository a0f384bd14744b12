/* Products with block-quantized matrices for ONNX Runtime on x86-64 with AVX-512 VNNI.
 *
 * Operator MatMulNBits of domain "personaplex": the operands and the answer are those of com.microsoft's operator of
 * that name (see ONNX Runtime's ContribOperators.md) at accuracy level 4, with blocks of 128. Each row of x is rounded
 * to 8 bits by blocks; sums of products within a block are whole numbers, so they are exact; blocks are added in order.
 * A row's answer is therefore the same whatever rows come with it.
 *
 * It exists because ONNX Runtime's kernel multiplies two rows at a time and unpacks the matrix for each pair anew. Here
 * up to eight rows share what is read and unpacked.
 *
 * At load the matrix is laid out anew: 16 columns (rows of the checkpoint's matrix) make a tile, which is read from its
 * beginning to its end, block by block: 16 x 128 codes, then the scales and the zero points of the 16. A vector of 64
 * bytes holds for each column four codes that follow each other, at 4 bits twice: in its lower halves, and the next four
 * in the upper ones. Of a scale the upper 16 bits are kept: scales must be bfloat16 numbers.
 */
#include <immintrin.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

enum {
    BLOCK = 128,          /* elements of a row to a scale */
    TILE = 16,            /* columns: the 32-bit lanes of a vector */
    ROWS = 8,             /* that share what is unpacked: as many sums, and what they are made of, fit the registers */
    TILES_PER_TASK = 4,   /* small enough that cores finish together */
    ROWS_PER_TASK = 16,   /* of x to be rounded */
    MOST_DIMENSIONS = 8,  /* of x */
};

/* Bytes of a block of a tile: codes; scale and zero point of each column. */
#define CODE_BYTES(BITS) ((size_t)(TILE * BLOCK * (BITS) / 8))
enum { SCALE_BYTES = 2 * TILE, FACTOR_BYTES = SCALE_BYTES + TILE };
#define BLOCK_BYTES(BITS) (CODE_BYTES(BITS) + FACTOR_BYTES)

typedef struct {
    const Api *api;
    size_t bits, columns, tiles, depth, blocks;
    uint8_t *packed; /* [tiles][blocks] of BLOCK_BYTES */
} Matrix;

/* x rounded: codes [rows][blocks * BLOCK], scale and scale * (sum of codes) [rows][blocks]. */
typedef struct {
    const Matrix *matrix;
    const float *x;
    float *y;
    size_t rows;
    int8_t *codes;
    float *scales, *sums;
} Product;

static void round_row(const Product *product, size_t row) {
    const Matrix *matrix = product->matrix;
    const float *x = product->x + row * matrix->depth;
    int8_t *codes = product->codes + row * matrix->blocks * BLOCK;
    for (size_t block = 0; block < matrix->blocks; block++, x += BLOCK, codes += BLOCK) {
        size_t left = matrix->depth - block * BLOCK;
        __m512 part[BLOCK / 16], largest = _mm512_setzero_ps();
        for (int i = 0; i < BLOCK / 16; i++) {
            size_t first = 16 * (size_t)i;
            __mmask16 there = left >= first + 16 ? 0xffff : left <= first ? 0 : (1u << (left - first)) - 1;
            part[i] = _mm512_maskz_loadu_ps(there, x + first);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(part[i]));
        }
        float most = _mm512_reduce_max_ps(largest);
        /* What is smaller is nothing: 127 over it might be no number any more. */
        __m512 per_step = _mm512_set1_ps(most > 1e-35f ? 127 / most : 0);
        __m512i sum = _mm512_setzero_si512();
        for (int i = 0; i < BLOCK / 16; i++) {
            __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(part[i], per_step));
            sum = _mm512_add_epi32(sum, code);
            _mm_storeu_si128((__m128i *)(codes + 16 * i), _mm512_cvtsepi32_epi8(code));
        }
        float scale = most / 127;
        product->scales[row * matrix->blocks + block] = scale;
        product->sums[row * matrix->blocks + block] = scale * (float)_mm512_reduce_add_epi32(sum);
    }
}

static void round_rows(void *data, size_t task) {
    const Product *product = data;
    size_t stop = (task + 1) * ROWS_PER_TASK;
    for (size_t row = task * ROWS_PER_TASK; row < (stop < product->rows ? stop : product->rows); row++)
        round_row(product, row);
}

/* y[rows, 16 columns of a tile]; `bits` and `rows` are constants where this is inlined, so that loops become straight
 * lines and sums stay in registers. */
static inline __attribute__((always_inline)) void tile_rows(
    const int bits, const int rows, const Product *product, size_t tile, size_t row
) {
    const Matrix *matrix = product->matrix;
    const size_t blocks = matrix->blocks, stride = blocks * BLOCK;
    const uint8_t *vectors = matrix->packed + tile * blocks * BLOCK_BYTES(bits);
    const int8_t *codes = product->codes + row * stride;
    const float *scales = product->scales + row * blocks, *sums = product->sums + row * blocks;
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 totals[ROWS];
    for (int r = 0; r < rows; r++) totals[r] = _mm512_setzero_ps();
    for (size_t block = 0; block < blocks; block++, vectors += FACTOR_BYTES, codes += BLOCK) {
        __m512i dots[ROWS];
        for (int r = 0; r < rows; r++) dots[r] = _mm512_setzero_si512();
        for (int k = 0; k < BLOCK; k += 32 / bits, vectors += 64) {
            __m512i vector = _mm512_loadu_si512(vectors);
            /* A lone row waits for memory alone, which the processor sees coming; more rows take their time between. */
            if (rows > 1) _mm_prefetch((const char *)vectors + 4096, _MM_HINT_T0);
            __m512i weights[2] = {vector, vector};
            if (bits == 4) {
                weights[0] = _mm512_and_si512(vector, low_half);
                weights[1] = _mm512_and_si512(_mm512_srli_epi16(vector, 4), low_half);
            }
            for (int half = 0; half < 8 / bits; half++)
                for (int r = 0; r < rows; r++) {
                    int32_t four;
                    memcpy(&four, codes + (size_t)r * stride + k + 4 * half, sizeof four);
                    dots[r] = _mm512_dpbusd_epi32(dots[r], weights[half], _mm512_set1_epi32(four));
                }
        }
        __m512i scale_bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)vectors));
        __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(scale_bits, 16));
        __m128i zero_codes = _mm_loadu_si128((const __m128i *)(vectors + SCALE_BYTES));
        __m512 zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zero_codes));
        for (int r = 0; r < rows; r++) {
            __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r]), _mm512_set1_ps(scales[(size_t)r * blocks + block]));
            dot = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[(size_t)r * blocks + block]), dot);
            totals[r] = _mm512_fmadd_ps(dot, scale, totals[r]);
        }
    }
    size_t left = matrix->columns - tile * TILE;
    __mmask16 there = left >= TILE ? 0xffff : (1u << left) - 1;
    float *y = product->y + row * matrix->columns + tile * TILE;
    for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(y + (size_t)r * matrix->columns, there, totals[r]);
}

#define CASE(BITS, COUNT) \
    case COUNT: \
        tile_rows(BITS, COUNT, product, tile, row); \
        break;
#define CASES(BITS) \
    switch (rows) { \
        CASE(BITS, 1) CASE(BITS, 2) CASE(BITS, 3) CASE(BITS, 4) CASE(BITS, 5) CASE(BITS, 6) CASE(BITS, 7) CASE(BITS, 8) \
    }

static void multiply_tiles(void *data, size_t task) {
    const Product *product = data;
    const Matrix *matrix = product->matrix;
    size_t stop = (task + 1) * TILES_PER_TASK;
    for (size_t tile = task * TILES_PER_TASK; tile < (stop < matrix->tiles ? stop : matrix->tiles); tile++)
        for (size_t row = 0; row < product->rows; row += ROWS) {
            size_t rows = product->rows - row < ROWS ? product->rows - row : ROWS;
            if (matrix->bits == 4) CASES(4) else CASES(8)
        }
}

static Status *compute(void *kernel, KernelContext *context) {
    const Matrix *matrix = kernel;
    const Api *api = matrix->api;
    const Tensor *x;
    Tensor *y;
    Shape *shape;
    size_t count, elements;
    int64_t sizes[MOST_DIMENSIONS];
    Product product = {.matrix = matrix};
    TRY(context_input(api, context, 0, &x));
    TRY(tensor_shape(api, x, &shape));
    Status *failed = dimension_count(api, shape, &count);
    if (!failed && (count < 1 || count > MOST_DIMENSIONS))
        failed = create_status(api, INVALID_ARGUMENT, "MatMulNBits: expected x of 1 to 8 dimensions");
    if (!failed) failed = dimensions(api, shape, sizes, count);
    if (!failed) failed = element_count(api, shape, &elements);
    release_shape(api, shape);
    if (failed) return failed;
    if (sizes[count - 1] != (int64_t)matrix->depth)
        return create_status(api, INVALID_ARGUMENT, "MatMulNBits: the last dimension of x is not K");
    sizes[count - 1] = (int64_t)matrix->columns;
    TRY(context_output(api, context, 0, sizes, count, &y));
    TRY(tensor_data(api, x, (void **)&product.x));
    TRY(tensor_data(api, y, (void **)&product.y));
    product.rows = elements / matrix->depth;
    size_t blocks = product.rows * matrix->blocks;
    product.codes = malloc(blocks * (BLOCK + 2 * sizeof(float)));
    if (!product.codes) return create_status(api, FAILED, "MatMulNBits: no memory for x rounded to 8 bits");
    product.scales = (float *)(product.codes + blocks * BLOCK);
    product.sums = product.scales + blocks;
    if (product.rows <= ROWS_PER_TASK) round_rows(&product, 0);
    else failed = parallel_for(api, context, round_rows, tasks(product.rows, ROWS_PER_TASK), 0, &product);
    if (!failed) failed = parallel_for(api, context, multiply_tiles, tasks(matrix->tiles, TILES_PER_TASK), 0, &product);
    free(product.codes);
    return failed;
}

/* Codes [columns][blocks][BLOCK * bits / 8], scales [columns][blocks] and, at 4 bits, zero points
 * [columns][ceil(blocks / 2)], two to a byte, low half first -> `packed`. Whether the scales were bfloat16 numbers. */
static bool pack(Matrix *matrix, const uint8_t *codes, const uint32_t *scales, const uint8_t *zeros) {
    const size_t bits = matrix->bits, blocks = matrix->blocks, of_block = BLOCK * bits / 8;
    uint32_t lost = 0;
    for (size_t column = 0; column < matrix->columns; column++) {
        const size_t lane = column % TILE;
        uint8_t *packed = matrix->packed + column / TILE * blocks * BLOCK_BYTES(bits);
        for (size_t block = 0; block < blocks; block++, packed += BLOCK_BYTES(bits)) {
            const uint8_t *from = codes + (column * blocks + block) * of_block;
            uint8_t *to = packed + 4 * lane, *factors = packed + CODE_BYTES(bits);
            if (bits == 8)
                for (size_t k = 0; k < BLOCK; k += 4, to += 64) memcpy(to, from + k, 4);
            else
                for (size_t k = 0; k < BLOCK; k += 8, to += 64)
                    for (size_t j = 0; j < 4; j++) {
                        /* Of eight codes in a row, j and j + 4 share a byte. */
                        uint8_t low = from[(k + j) / 2] >> 4 * (j % 2) & 15;
                        uint8_t high = from[(k + j + 4) / 2] >> 4 * (j % 2) & 15;
                        to[j] = low | high << 4;
                    }
            uint32_t scale = scales[column * blocks + block];
            uint16_t kept = scale >> 16;
            lost |= scale & 0xffff;
            memcpy(factors + sizeof kept * lane, &kept, sizeof kept);
            uint8_t zero = bits == 8 ? 128 : 8;
            if (zeros) zero = zeros[column * ((blocks + 1) / 2) + block / 2] >> 4 * (block % 2) & 15;
            factors[SCALE_BYTES + lane] = zero;
        }
    }
    return !lost;
}

static Status *operand(const Matrix *matrix, const KernelInfo *info, size_t index, size_t expected, const void **data) {
    size_t found;
    TRY(constant(matrix->api, info, index, &found, data));
    if (found == expected) return NULL;
    return create_status(matrix->api, INVALID_ARGUMENT, "MatMulNBits: an operand's size is not K by N");
}

static void destroy(void *kernel) {
    Matrix *matrix = kernel;
    free(matrix->packed);
    free(matrix);
}

static Status *prepare(Matrix *matrix, const KernelInfo *info) {
    const Api *api = matrix->api;
    int64_t depth, columns, bits, block_size;
    size_t inputs;
    const void *codes, *scales, *zeros = NULL;
    TRY(attribute_integer(api, info, "K", &depth));
    TRY(attribute_integer(api, info, "N", &columns));
    TRY(attribute_integer(api, info, "bits", &bits));
    TRY(attribute_integer(api, info, "block_size", &block_size));
    if (depth < 1 || columns < 1 || (bits != 4 && bits != 8) || block_size != BLOCK)
        return create_status(api, INVALID_ARGUMENT, "MatMulNBits: expected 4 or 8 bits and blocks of 128");
    matrix->bits = (size_t)bits;
    matrix->depth = (size_t)depth;
    matrix->columns = (size_t)columns;
    matrix->blocks = tasks(matrix->depth, BLOCK);
    matrix->tiles = tasks(matrix->columns, TILE);
    size_t scale_count = matrix->columns * matrix->blocks;
    TRY(operand(matrix, info, 1, scale_count * BLOCK * matrix->bits / 8, &codes));
    TRY(operand(matrix, info, 2, scale_count, &scales));
    TRY(input_count(api, info, &inputs));
    if (inputs > 3 && bits == 8)
        return create_status(api, INVALID_ARGUMENT, "MatMulNBits: expected no zero points with 8 bits");
    if (inputs > 3) TRY(operand(matrix, info, 3, matrix->columns * ((matrix->blocks + 1) / 2), &zeros));
    size_t tile_bytes = matrix->blocks * BLOCK_BYTES(matrix->bits), bytes = matrix->tiles * tile_bytes;
    matrix->packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!matrix->packed) return create_status(api, FAILED, "MatMulNBits: no memory for the matrix");
    /* The columns that the last tile may lack are read as well. */
    memset(matrix->packed + bytes - tile_bytes, 0, tile_bytes);
    if (!pack(matrix, codes, scales, zeros))
        return create_status(api, INVALID_ARGUMENT, "MatMulNBits: expected scales that are bfloat16 numbers");
    return NULL;
}

static Status *create_kernel(const Op *op, const Api *api, const KernelInfo *info, void **kernel) {
    (void)op;
    Matrix *matrix = calloc(1, sizeof *matrix);
    if (!matrix) return create_status(api, FAILED, "MatMulNBits: no memory");
    matrix->api = api;
    Status *failed = prepare(matrix, info);
    if (failed) destroy(matrix);
    else *kernel = matrix;
    return failed;
}

/* The shape of x with N in place of K; what ONNX Runtime gives is a copy of its own. */
static Status *infer_shape(const Op *op, ShapeContext *context) {
    const Api *api = registered_api;
    const Attribute *attribute;
    Shape *shape;
    size_t count;
    int64_t sizes[MOST_DIMENSIONS];
    (void)op;
    TRY(known_input_shape(api, context, 0, &shape));
    TRY(dimension_count(api, shape, &count));
    if (count < 1 || count > MOST_DIMENSIONS) return NULL;
    TRY(dimensions(api, shape, sizes, count));
    TRY(known_attribute(api, context, "N", &attribute));
    TRY(read_integer(api, attribute, &sizes[count - 1]));
    TRY(set_dimensions(api, shape, sizes, count));
    return set_output_shape(api, context, 0, shape);
}

static const char *name(const Op *op) { return (void)op, "MatMulNBits"; }
static int input_type(const Op *op, size_t index) {
    return (void)op, index == 1 || index == 3 ? ELEMENT_UINT8 : ELEMENT_FLOAT;
}
static size_t inputs(const Op *op) { return (void)op, 4; }
static int output_type(const Op *op, size_t index) { return (void)op, (void)index, ELEMENT_FLOAT; }
static size_t outputs(const Op *op) { return (void)op, 1; }
static int input_kind(const Op *op, size_t index) { return (void)op, index == 3 ? OPTIONAL : REQUIRED; }

const Op block_product = {
    COMMON_FIELDS,
    .name = name,
    .input_type = input_type,
    .inputs = inputs,
    .input_kind = input_kind,
    .output_type = output_type,
    .outputs = outputs,
    .create_kernel_v2 = create_kernel,
    .compute_v2 = compute,
    .destroy = destroy,
    .infer_shape = infer_shape,
};
