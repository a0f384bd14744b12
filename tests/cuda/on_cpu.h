/* CUDA on a CPU, as far as our operator needs it: put before its source, without nvcc, it makes an operator of ONNX
 * Runtime's CPU provider of it that runs the same kernels.
 *
 * The threads of a block take turns: each runs up to its next shuffle or barrier, then the next one does. All threads of a
 * block must come to the same ones. Asynchronous copies of odd threads arrive at once, those of even threads as late as
 * they may: when the thread waits for them.
 */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#define PROVIDER "CPUExecutionProvider"
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y;
    dim3(unsigned width = 1, unsigned height = 1) : x(width), y(height) {}
};
struct uint4 {
    uint32_t x, y, z, w;
};
static dim3 threadIdx, blockIdx, blockDim;

/* Threads. */
enum { MOST_THREADS = 256, STACK = 1 << 16, MOST_COPIES = 32 };
struct Copy {
    void *to;
    const void *from;
    int group;
};
static struct {
    ucontext_t start;
    jmp_buf at;
    bool started;
    unsigned shuffles;
    int groups, copies;
    Copy pending[MOST_COPIES];
    alignas(16) char stack[STACK];
} threads[MOST_THREADS];
static ucontext_t launcher;
static void (*work)(const void *);
static const void *given;

/* Let the other threads come to this point. */
static void take_turns() {
    const unsigned thread = threadIdx.x;
    if (_setjmp(threads[thread].at)) return;
    const unsigned next = (thread + 1) % blockDim.x;
    threadIdx.x = next;
    if (threads[next].started) _longjmp(threads[next].at, 1);
    threads[next].started = true;
    setcontext(&threads[next].start);
}

static void run_thread() {
    work(given);
    const unsigned thread = threadIdx.x;
    if (thread + 1 == blockDim.x) setcontext(&launcher);
    threadIdx.x = thread + 1;
    if (threads[thread + 1].started) _longjmp(threads[thread + 1].at, 1);
    threads[thread + 1].started = true;
    setcontext(&threads[thread + 1].start);
}

static void run_block() {
    volatile bool done = false;
    for (unsigned thread = 0; thread < blockDim.x; thread++) {
        threads[thread].started = false;
        threads[thread].shuffles = 0;
        threads[thread].groups = threads[thread].copies = 0;
        getcontext(&threads[thread].start);
        threads[thread].start.uc_stack = {threads[thread].stack, 0, STACK};
        makecontext(&threads[thread].start, run_thread, 0);
    }
    getcontext(&launcher);
    if (done) return;
    done = true;
    threadIdx.x = 0;
    threads[0].started = true;
    setcontext(&threads[0].start);
}

template <typename Argument>
static void launch(void (*kernel)(Argument), dim3 blocks, unsigned count, void *, const Argument &argument) {
    static void (*launched)(Argument);
    launched = kernel;
    work = [](const void *data) { launched(*(const Argument *)data); };
    given = &argument;
    blockDim = count;
    for (blockIdx.y = 0; blockIdx.y < blocks.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks.x; blockIdx.x++) run_block();
}

static void __syncthreads() { take_turns(); }

template <typename Value>
static Value __shfl_xor_sync(unsigned, Value value, int mask) {
    /* Two places each: the next shuffle must not overwrite what another thread has yet to read. */
    static Value values[2][MOST_THREADS];
    const unsigned thread = threadIdx.x, place = threads[thread].shuffles++ % 2;
    values[place][thread] = value;
    take_turns();
    return values[place][thread ^ (unsigned)mask];
}

/* Copies to shared memory. */
static void copy_async(void *to, const void *from) {
    auto &thread = threads[threadIdx.x];
    if (threadIdx.x % 2) memcpy(to, from, 16);
    else thread.pending[thread.copies++] = {to, from, thread.groups};
}
static void commit_copies() { threads[threadIdx.x].groups++; }
template <int PENDING>
static void wait_for_copies() {
    auto &thread = threads[threadIdx.x];
    int left = 0;
    for (int index = 0; index < thread.copies; index++) {
        const Copy copy = thread.pending[index];
        if (copy.group < thread.groups - PENDING) memcpy(copy.to, copy.from, 16);
        else thread.pending[left++] = copy;
    }
    thread.copies = left;
}

/* Arithmetic. */
typedef _Float16 __half;
static inline float __half2float(__half x) { return (float)x; }
static inline __half __float2half_rn(float x) { return (__half)x; }
static inline __half __ushort_as_half(uint16_t bits) {
    __half x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
/* To the nearest, ties to even; NaN is 0, what is too large the largest. */
static inline int __float2int_rn(float x) {
    return x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x <= -0x1p31f ? INT32_MIN : (int)lrintf(x);
}
static inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += (int8_t)(a >> i) * (int8_t)(b >> i);
    return sum;
}
static inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t both = (uint64_t)high << 32 | low;
    uint32_t found = 0;
    for (int i = 0; i < 4; i++) found |= (uint32_t)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return found;
}

/* The runtime. */
typedef void *cudaStream_t;
typedef int cudaError_t;
enum { cudaSuccess, cudaMemcpyDeviceToDevice = 3 };
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, int, cudaStream_t) {
    memcpy(to, from, size);
    return cudaSuccess;
}
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline const char *cudaGetErrorString(cudaError_t) { return "no error"; }
