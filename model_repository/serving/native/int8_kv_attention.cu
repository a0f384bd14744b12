/* Attention of ONNX Runtime graphs over keys and values of 8 bits, for CUDA.
 *
 * Operator Int8KvAttention of domain "personaplex", for B rows of S columns, heads * D = dim and a ring of W slots:
 *   projected [B, S, 3 * dim] float, float16 or bfloat16: queries, keys, values;
 *   cosines, sines [B, S, D / 2] float32; position, filled [B] int64; keys, values [B, W, dim] int8
 *   -> attended [B, S, dim] of the type of `projected`; keys, values with the new ones in slots position.. mod W.
 * Attributes: num_heads, key_scale, value_scale. Bind the outputs `keys` and `values` to the memory of the inputs: they
 * are then updated in place, else copied as a whole. Where S > 1 the columns must not wrap around the ring.
 *
 * A run is two kernels, without memory of its own and without synchronization, so it can be captured. `write` rotates,
 * rounds and stores. In `attend` a block has one head of one column, and reads every byte of its keys and values once:
 *
 * - 8 threads (D = 128) have a slot, 16 elements each. Each group of threads takes every n-th slot and has a softmax of
 *   its own; at the end those of a warp are merged by shuffles, then those of the warps in shared memory. Until then
 *   there is no barrier. The order of additions depends on the number of filled slots alone: what a row gets is the
 *   same, bit for bit, whatever rows run beside it.
 * - A thread copies its 16 bytes of each key and value to its own place in shared memory, two tiles ahead (cp.async),
 *   and reads them there: 32 KB per block, 128 KB per multiprocessor of an H200, are on their way at any time.
 * - A warp executes about 200 instructions per 2 KB. By this count an H200 that reads 4.8 TB/s issues half of what it
 *   can: the kernel waits for memory.
 * - A head is not split over several blocks. From 5 rows on, 32 heads each keep 132 multiprocessors busy. With one row
 *   of a full window a split would save 0.4 ms of a frame, by estimate. It would take a third kernel and a buffer for
 *   the parts, and its number of parts would depend on the rows.
 *
 * Tests run the kernels on a CPU, see tests/cuda/on_cpu.h.
 */
#include <stdlib.h>

#include "int8_kv_attention.cuh"

#ifndef PROVIDER
#define PROVIDER "CUDAExecutionProvider"
#endif

constexpr int THREADS = 256;  /* of a block */
constexpr int POSITIONS = 2;  /* slots of a tile that a group of threads takes together */
constexpr int STAGES = 3;     /* tiles in shared memory, one of which is used */
constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

#ifdef __CUDACC__ /* tests/cuda/on_cpu.h has others */

static __device__ __forceinline__ void copy_async(void *to, const void *from) {
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* All copies but those of the last `PENDING` groups are there. */
template <int PENDING>
static __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static void launch(void (*kernel)(Run), dim3 blocks, unsigned threads, cudaStream_t stream, const Run &run) {
    kernel<<<blocks, threads, 0, stream>>>(run);
}

#endif

namespace int8_kv {

static __global__ void write(const Run run) {
    const size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < (size_t)run.rows * run.columns * run.heads * run.head_dim) write_pair(run, index);
}

/* Block (head, column). LANES: threads that have a slot. */
template <int LANES>
static __global__ void __launch_bounds__(THREADS, 4) attend(const Run run) {
    constexpr int GROUPS = THREADS / LANES;
    __shared__ uint4 staged[STAGES][POSITIONS][2][THREADS];
    const int thread = threadIdx.x, lane = thread % LANES, group = thread / LANES;
    const int head = blockIdx.x, width = run.heads * run.head_dim;
    const size_t column = blockIdx.y;
    const int visible = visible_slots(run, column);
    const size_t first = column / run.columns * run.window * width + head * run.head_dim + lane * LANE_ELEMENTS;

    int next = group;
    size_t at = first + (size_t)group * width;
    const auto fetch = [&](int stage) {
#pragma unroll
        for (int i = 0; i < POSITIONS; i++, next += GROUPS, at += (size_t)GROUPS * width) {
            if (next < visible) {
                copy_async(&staged[stage][i][0][thread], run.keys + at);
                copy_async(&staged[stage][i][1][thread], run.values + at);
            }
        }
        commit_copies();
    };
    for (int stage = 0; stage < STAGES - 1; stage++) fetch(stage);

    float weighted[LANE_ELEMENTS];
    float largest = load_query(run, column, head, lane, weighted);
    for (int other = 1; other < LANES; other *= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, other));
    const Digits query = digits_of(weighted, largest);
    const float step = score_step(run, largest);
    Softmax softmax = {NO_SCORE, 0};
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) weighted[i] = 0;

    int stage = 0, last = STAGES - 1;
    for (int tile = 0; tile < visible; tile += GROUPS * POSITIONS) {
        wait_for_copies<STAGES - 2>();
        fetch(last);
        float scores[POSITIONS], highest = NO_SCORE;
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) {
            const uint4 key = staged[stage][i][0][thread];
            const uint32_t words[] = {key.x, key.y, key.z, key.w};
            int product = dot(query, words);
#pragma unroll
            for (int other = 1; other < LANES; other *= 2) product += __shfl_xor_sync(ALL, product, other);
            scores[i] = tile + i * GROUPS + group < visible ? (float)product * step : -INFINITY;
            highest = fmaxf(highest, scores[i]);
        }
        const float factor = admit(softmax, highest);
#pragma unroll
        for (int i = 0; i < LANE_ELEMENTS; i++) weighted[i] *= factor;
#pragma unroll
        for (int i = 0; i < POSITIONS; i++) {
            const float weight = weigh(softmax, scores[i]);
            const uint4 value = staged[stage][i][1][thread];
            const uint32_t words[] = {value.x, value.y, value.z, value.w};
#pragma unroll
            for (int j = 0; j < LANE_ELEMENTS; j++) weighted[j] += weight * byte_of(words[j / 4], j % 4);
        }
        last = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

#pragma unroll
    for (int other = LANES; other < WARP; other *= 2) {
        const Softmax theirs = {
            __shfl_xor_sync(ALL, softmax.largest, other), __shfl_xor_sync(ALL, softmax.sum, other)
        };
        const Pair factors = merge(softmax, theirs);
#pragma unroll
        for (int i = 0; i < LANE_ELEMENTS; i++)
            weighted[i] = weighted[i] * factors.first + __shfl_xor_sync(ALL, weighted[i], other) * factors.second;
    }
    constexpr int WARPS = THREADS / WARP, HEAD_DIM = LANES * LANE_ELEMENTS;
    auto *of_warps = reinterpret_cast<float(*)[HEAD_DIM]>(staged);
    auto *softmaxes = reinterpret_cast<Softmax *>(of_warps + WARPS);
    __syncthreads();
    if (thread % WARP < LANES) {
#pragma unroll
        for (int i = 0; i < LANE_ELEMENTS; i++) of_warps[thread / WARP][lane * LANE_ELEMENTS + i] = weighted[i];
        if (lane == 0) softmaxes[thread / WARP] = softmax;
    }
    __syncthreads();
    if (thread < HEAD_DIM) {
        softmax = softmaxes[0];
        float sum = of_warps[0][thread];
        for (int warp = 1; warp < WARPS; warp++) {
            const Pair factors = merge(softmax, softmaxes[warp]);
            sum = sum * factors.first + of_warps[warp][thread] * factors.second;
        }
        store(run.attended, (column * run.heads + head) * HEAD_DIM + thread, run.element, sum * normalization(run, softmax));
    }
}

} // namespace int8_kv

#define TRY(CALL) \
    do { \
        Status *status = (CALL); \
        if (status) return status; \
    } while (0)

struct Kernel {
    const Api *api;
    int64_t heads;
    float key_scale, value_scale;
};

static Status *checked(const Api *api, cudaError_t code) {
    return code == cudaSuccess ? nullptr : create_status(api, FAILED, cudaGetErrorString(code));
}

static Status *execute(const Api *api, const Run &run, cudaStream_t stream) {
    const size_t pairs = (size_t)run.rows * run.columns * run.heads * run.head_dim;
    const dim3 blocks((unsigned)run.heads, (unsigned)(run.rows * run.columns));
    if (!pairs) return nullptr;
    launch(int8_kv::write, dim3((unsigned)((pairs + THREADS - 1) / THREADS)), THREADS, stream, run);
    const auto attend = run.head_dim == 16   ? int8_kv::attend<1>
                        : run.head_dim == 32 ? int8_kv::attend<2>
                        : run.head_dim == 64 ? int8_kv::attend<4>
                                             : int8_kv::attend<8>;
    launch(attend, blocks, THREADS, stream, run);
    return checked(api, cudaGetLastError());
}

enum { PROJECTED, COSINES, SINES, POSITION, FILLED, KEYS, VALUES, INPUTS };
enum { ATTENDED, NEW_KEYS, NEW_VALUES, OUTPUTS };

struct Operand {
    const void *data;
    int64_t sizes[3];
    int element;
};

static Status *operand(const Api *api, const KernelContext *context, size_t index, size_t dimensions_expected, Operand *found) {
    const Tensor *tensor;
    Shape *shape;
    size_t count;
    TRY(context_input(api, context, index, &tensor));
    TRY(tensor_shape(api, tensor, &shape));
    Status *failed = dimension_count(api, shape, &count);
    if (!failed && count != dimensions_expected)
        failed = create_status(api, INVALID_ARGUMENT, "Int8KvAttention: an operand has another number of dimensions");
    if (!failed) failed = dimensions(api, shape, found->sizes, count);
    if (!failed) failed = element_type(api, shape, &found->element);
    release_shape(api, shape);
    return failed ? failed : tensor_data(api, tensor, (void **)&found->data);
}

static Status *compute(void *data, KernelContext *context) {
    const Kernel &kernel = *(const Kernel *)data;
    const Api *api = kernel.api;
    Operand in[INPUTS];
    void *out[OUTPUTS], *stream;
    for (size_t index = 0; index < INPUTS; index++)
        TRY(operand(api, context, index, index == POSITION || index == FILLED ? 1 : 3, &in[index]));
    const int64_t rows = in[PROJECTED].sizes[0], columns = in[PROJECTED].sizes[1], dim = in[PROJECTED].sizes[2] / 3;
    const int64_t window = in[KEYS].sizes[1], head_dim = dim / kernel.heads;
    if (head_dim != 16 && head_dim != 32 && head_dim != 64 && head_dim != 128)
        return create_status(api, INVALID_ARGUMENT, "Int8KvAttention: expected heads of 16, 32, 64 or 128 elements");
    const int64_t expected[INPUTS][3] = {
        {rows, columns, 3 * kernel.heads * head_dim},
        {rows, columns, head_dim / 2},
        {rows, columns, head_dim / 2},
        {rows},
        {rows},
        {rows, window, dim},
        {rows, window, dim},
    };
    for (int index = 0; index < INPUTS; index++)
        for (int i = 0; i < (index == POSITION || index == FILLED ? 1 : 3); i++)
            if (in[index].sizes[i] != expected[index][i])
                return create_status(api, INVALID_ARGUMENT, "Int8KvAttention: the sizes of operands differ");
    const int element = in[PROJECTED].element;
    if (element != ELEMENT_FLOAT && element != ELEMENT_FLOAT16 && element != ELEMENT_BFLOAT16)
        return create_status(api, INVALID_ARGUMENT, "Int8KvAttention: expected float32, float16 or bfloat16");
    const int64_t attended[] = {rows, columns, dim};
    TRY(compute_stream(api, context, &stream));
    for (size_t index = 0; index < OUTPUTS; index++) {
        Tensor *tensor;
        TRY(context_output(api, context, index, index == ATTENDED ? attended : in[KEYS].sizes, 3, &tensor));
        TRY(tensor_data(api, tensor, &out[index]));
        const void *before = in[index == NEW_KEYS ? KEYS : VALUES].data;
        if (index != ATTENDED && out[index] != before)
            TRY(checked(
                api,
                cudaMemcpyAsync(
                    out[index], before, (size_t)(rows * window * dim), cudaMemcpyDeviceToDevice, (cudaStream_t)stream
                )
            ));
    }
    const Run run = {
        .projected = in[PROJECTED].data,
        .cosines = (const float *)in[COSINES].data,
        .sines = (const float *)in[SINES].data,
        .position = (const int64_t *)in[POSITION].data,
        .filled = (const int64_t *)in[FILLED].data,
        .keys = (int8_t *)out[NEW_KEYS],
        .values = (int8_t *)out[NEW_VALUES],
        .attended = out[ATTENDED],
        .rows = (int)rows,
        .columns = (int)columns,
        .heads = (int)kernel.heads,
        .head_dim = (int)head_dim,
        .window = (int)window,
        .element = element,
        .key_scale = kernel.key_scale,
        .value_scale = kernel.value_scale,
    };
    return execute(api, run, (cudaStream_t)stream);
}

static Status *create_kernel(const Op *, const Api *api, const KernelInfo *info, void **made) {
    Kernel kernel = {api, 0, 0, 0};
    TRY(attribute_integer(api, info, "num_heads", &kernel.heads));
    TRY(attribute_float(api, info, "key_scale", &kernel.key_scale));
    TRY(attribute_float(api, info, "value_scale", &kernel.value_scale));
    if (kernel.heads < 1 || !(kernel.key_scale > 0) || !(kernel.value_scale > 0))
        return create_status(api, INVALID_ARGUMENT, "Int8KvAttention: expected heads and scales above 0");
    *made = malloc(sizeof kernel);
    if (!*made) return create_status(api, FAILED, "Int8KvAttention: no memory");
    memcpy(*made, &kernel, sizeof kernel);
    return nullptr;
}

static void destroy(void *kernel) { free(kernel); }
static const char *name(const Op *) { return "Int8KvAttention"; }
static const char *provider(const Op *) { return PROVIDER; }
static size_t inputs(const Op *) { return INPUTS; }
static size_t outputs(const Op *) { return OUTPUTS; }
static int input_type(const Op *, size_t index) {
    if (index == PROJECTED) return ELEMENT_ANY;
    return index <= SINES ? ELEMENT_FLOAT : index <= FILLED ? ELEMENT_INT64 : ELEMENT_INT8;
}
static int output_type(const Op *, size_t index) { return index == ATTENDED ? ELEMENT_ANY : ELEMENT_INT8; }
static int kind(const Op *, size_t) { return REQUIRED; }
static int memory(const Op *, size_t) { return 0; }
static int none(const Op *) { return 0; }
static int first_version(const Op *) { return 1; }
static int last_version(const Op *) { return INT32_MAX; }

/* What ONNX Runtime calls when a session's options name this library. */
extern "C" __attribute__((visibility("default"))) Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    static const Op op = {
        .version = ABI_VERSION,
        .create_kernel = nullptr,
        .name = name,
        .provider = provider,
        .input_type = input_type,
        .inputs = inputs,
        .output_type = output_type,
        .outputs = outputs,
        .compute = nullptr,
        .destroy = destroy,
        .input_kind = kind,
        .output_kind = kind,
        .input_memory = memory,
        .variadic_input_least = none,
        .variadic_input_same = none,
        .variadic_output_least = none,
        .variadic_output_same = none,
        .create_kernel_v2 = create_kernel,
        .compute_v2 = compute,
        .infer_shape = nullptr,
        .first_version = first_version,
        .last_version = last_version,
    };
    const Api *api = base->get_api(ABI_VERSION);
    OpDomain *domain;
    TRY(create_domain(api, "personaplex", &domain));
    TRY(add_op(api, domain, &op));
    return add_domain(api, options, domain);
}
