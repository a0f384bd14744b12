/* CUDA's runtime as far as ONNX Runtime's CUDA provider needs it to load, place nodes, bind, capture and replay:
 * device memory is the host's, and kernels compute nothing. The functions that are not here succeed and do nothing;
 * `check.py` adds them. Linked five times, under the names of the libraries that the provider asks for. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver_types.h"

static long allocations, replays, captures, pageable, stale;

long stand_in_allocations(void) { return allocations; }
long stand_in_replays(void) { return replays; }
long stand_in_captures(void) { return captures; }
long stand_in_pageable(void) { return pageable; }
long stand_in_stale(void) { return stale; }

/* What the last capture recorded: names of kernels, of calls of cuBLAS, of copies. */
static const char *nodes[1 << 16];
static int capturing, recorded;
static void record(const char *name) { if (capturing && recorded < 1 << 16) nodes[recorded++] = name; }
void stand_in_record(const char *name) { record(name); }
int stand_in_nodes(void) { return recorded; }
const char *stand_in_node(int index) { return nodes[index]; }
int cudaStreamBeginCapture(void) { capturing = 1; recorded = 0; return 0; }

/* Kernels are known by the address of their host function. */
static struct { const void *host; const char *name; } kernels[1 << 17];
static int registered;
void __cudaRegisterFunction(void **binary, const char *host, char *device, const char *name) {
    (void)binary; (void)device;
    if (registered < 1 << 17) { kernels[registered].host = host; kernels[registered++].name = name; }
}
static int launched(const void *host) {
    for (int index = 0; capturing && index < registered; index++)
        if (kernels[index].host == host) { record(kernels[index].name); return 0; }
    record("unknown kernel");
    return 0;
}
int __cudaGetKernel(const void **kernel, const void *host) { *kernel = host; return 0; }
int __cudaLaunchKernel(const void *kernel) { return launched(kernel); }
int cudaLaunchKernel(const void *host) { return launched(host); }
int cudaLaunchCooperativeKernel(const void *host) { return launched(host); }
int cudaLaunchKernelExC(const void *config, const void *host) { (void)config; return launched(host); }
#define CUBLAS(name) int name(void) { record(#name); return 0; }
CUBLAS(cublasGemmEx)
CUBLAS(cublasGemmBatchedEx)
CUBLAS(cublasGemmStridedBatchedEx)
CUBLAS(cublasSgemm_v2)
CUBLAS(cublasSgemmBatched)
CUBLAS(cublasSgemmStridedBatched)
CUBLAS(cublasLtMatmul)

/* One device, like an H100. */
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp *device, int index) {
    (void)index;
    memset(device, 0, sizeof *device);
    strcpy(device->name, "stand-in");
    device->totalGlobalMem = 80ull << 30;
    device->major = 9;
    device->multiProcessorCount = 132;
    device->warpSize = 32;
    device->maxThreadsPerBlock = device->maxThreadsDim[0] = device->maxThreadsDim[1] = 1024;
    device->maxThreadsDim[2] = 64;
    device->maxThreadsPerMultiProcessor = 2048;
    device->maxGridSize[0] = 2147483647;
    device->maxGridSize[1] = device->maxGridSize[2] = 65535;
    device->regsPerBlock = device->regsPerMultiprocessor = 65536;
    device->sharedMemPerBlock = 49152;
    device->sharedMemPerBlockOptin = 232448;
    device->sharedMemPerMultiprocessor = 233472;
    return 0;
}
int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    (void)device;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
        default: *value = 1;
    }
    return 0;
}
int cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 2; return 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = (void *)pointer;
    return 0;
}

int cudaMemGetInfo(size_t *free, size_t *total) { *free = 79ull << 30; *total = 80ull << 30; return 0; }
int cudaMalloc(void **pointer, size_t size) {
    allocations++;
    *pointer = aligned_alloc(256, (size + 255) / 256 * 256);
    return *pointer ? 0 : 2;
}
/* Blocks of pinned memory. */
static struct { const char *start; size_t size; } pinned[1 << 12];
static int blocks;
int cudaMallocHost(void **pointer, size_t size) {
    int code = cudaMalloc(pointer, size);
    if (blocks < 1 << 12) { pinned[blocks].start = *pointer; pinned[blocks++].size = size; }
    return code;
}
int cudaHostAlloc(void **pointer, size_t size) { return cudaMallocHost(pointer, size); }
static int is_pinned(const char *address) {
    for (int index = 0; index < blocks; index++)
        if (address >= pinned[index].start && address < pinned[index].start + pinned[index].size) return 1;
    return 0;
}
int cudaMallocFromPoolAsync(void **pointer, size_t size) { return cudaMalloc(pointer, size); }
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaFreeHost(void *pointer) { free(pointer); return 0; }
int cudaFreeAsync(void *pointer) { free(pointer); return 0; }
/* `kind`: 1 to the device, 2 from it, 3 on it. A driver copies from and to memory that is not pinned by way of its own. */
static const char *copied(void *to, const void *from, int kind) {
    if (kind == 3) return "copy on the device";
    if (is_pinned(kind == 1 ? from : to)) return "copy of pinned memory";
    pageable++;
    return "copy of pageable memory";
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    copied(to, from, kind);
    memcpy(to, from, size);
    return 0;
}
/* What captured copies to the device read: a replay reads the same addresses, which must still hold the same. */
static struct { const void *from; void *held; size_t size; } captured[1 << 12];
static int copies;
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind) {
    record(copied(to, from, kind));
    if (capturing && kind == 1 && copies < 1 << 12) {
        captured[copies].from = from;
        captured[copies].size = size;
        captured[copies++].held = memcpy(malloc(size), from, size);
    }
    memcpy(to, from, size);
    return 0;
}
int cudaMemcpy2D(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height) {
    for (size_t row = 0; row < height; row++) memcpy(to + row * to_pitch, from + row * from_pitch, width);
    return 0;
}
int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height) {
    return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height);
}
static void set(char *to, int value, size_t size) {
    /* Zeros of a large block are given back to the system: caches take memory only where they are written. */
    size_t page = 4096, first = -(size_t)to % page;
    if (value == 0 && size > 1 << 20) {
        size_t whole = (size - first) / page * page;
        madvise(to + first, whole, MADV_DONTNEED);
        memset(to, 0, first);
        memset(to + first + whole, 0, size - first - whole);
    } else memset(to, value, size);
}
int cudaMemset(void *to, int value, size_t size) { set(to, value, size); return 0; }
int cudaMemsetAsync(void *to, int value, size_t size) { record("cudaMemsetAsync"); set(to, value, size); return 0; }

/* Handles: anything but null. */
static int handle(void **made) { *made = (void *)1; return 0; }
int cudaStreamCreate(void **made) { return handle(made); }
int cudaStreamCreateWithFlags(void **made) { return handle(made); }
int cudaEventCreate(void **made) { return handle(made); }
int cudaEventCreateWithFlags(void **made) { return handle(made); }
int cudaMemPoolCreate(void **made) { return handle(made); }
int cublasCreate_v2(void **made) { return handle(made); }
int cublasLtCreate(void **made) { return handle(made); }
int cublasGetMathMode(void *cublas, int *mode) { (void)cublas; *mode = 0; return 0; }
void **__cudaRegisterFatBinary(void *binary) { static void *registered; (void)binary; return &registered; }
int cudaMemPoolGetAttribute(void *pool, int attribute, unsigned long long *value) {
    (void)pool; (void)attribute; *value = 0; return 0;
}

int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; capturing = 0; return handle(graph); }
int cudaGraphInstantiate(void **executable) { captures++; return handle(executable); }
int cudaGraphLaunch(void *executable, void *stream) {
    (void)executable; (void)stream;
    replays++;
    for (int index = 0; index < copies; index++)
        stale += memcmp(captured[index].from, captured[index].held, captured[index].size) != 0;
    return 0;
}

static const char text[] = "stand-in";
const char *cudaGetErrorName(int code) { (void)code; return text; }
const char *cudaGetErrorString(int code) { (void)code; return text; }
const char *cublasGetStatusName(int code) { (void)code; return text; }
const char *cublasGetStatusString(int code) { (void)code; return text; }
