/* The arithmetic of Int8KvAttention.
 *
 * Scores are whole numbers. The query of a head, rotated, is rounded to 15 bits and split into two digits of 8 bits, so
 * that both are multiplied with the stored keys as they are, four elements by an instruction (dp4a). The sums of
 * products are exact, in whatever order they are added.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "onnxruntime_abi.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

constexpr int LANE_ELEMENTS = 16; /* of a head that a thread has: bytes of the widest load */
constexpr float LARGEST_QUERY = 127 * 128;
constexpr float NO_SCORE = -1e30f; /* below every score, and finite: its difference to itself is 0 */

/* A run of one layer: B rows of S columns each. */
struct Run {
    const void *projected;        /* [B, S, 3, heads, head_dim]: queries, keys and values, of type `element` */
    const float *cosines, *sines; /* [B, S, head_dim / 2] */
    const int64_t *position;      /* [B]: of the first column */
    const int64_t *filled;        /* [B]: slots that the last column reads, its own included; 0 reads nothing */
    int8_t *keys, *values;        /* [B, window, heads, head_dim] */
    void *attended;               /* [B, S, heads, head_dim], of type `element` */
    int rows, columns, heads, head_dim, window, element;
    float key_scale, value_scale;
};

struct Pair {
    float first, second;
};

static __device__ __forceinline__ float widened(uint16_t bits, int element) {
    return element == ELEMENT_BFLOAT16 ? __uint_as_float((uint32_t)bits << 16) : __half2float(__ushort_as_half(bits));
}

/* Elements 2 * index and 2 * index + 1 of x. */
static __device__ __forceinline__ Pair load_pair(const void *x, size_t index, int element) {
    if (element == ELEMENT_FLOAT) return ((const Pair *)x)[index];
    uint32_t both = ((const uint32_t *)x)[index];
    return {widened((uint16_t)both, element), widened((uint16_t)(both >> 16), element)};
}

/* Rounds to the nearest, ties to even. */
static __device__ __forceinline__ void store(void *to, size_t index, int element, float x) {
    if (element == ELEMENT_FLOAT) {
        ((float *)to)[index] = x;
    } else if (element == ELEMENT_BFLOAT16) {
        const uint32_t bits = __float_as_uint(x);
        ((uint16_t *)to)[index] = (uint16_t)(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
        ((__half *)to)[index] = __float2half_rn(x);
    }
}

/* As ONNX QuantizeLinear with zero point 0. */
static __device__ __forceinline__ int8_t quantized(float x, float scale) {
    const int code = __float2int_rn(x / scale);
    return (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
}

/* Rotary embedding of elements 2i and 2i + 1 of a head, i = `pair`, at a column's position. */
static __device__ __forceinline__ Pair rotated(const Run &run, Pair x, size_t column, int pair) {
    const size_t at = column * (run.head_dim / 2) + pair;
    const float cosine = run.cosines[at], sine = run.sines[at];
    return {x.first * cosine - x.second * sine, x.first * sine + x.second * cosine};
}

/* Store the new key or value of a column, two elements of it: `index` < B * S * heads * head_dim. */
static __device__ __forceinline__ void write_pair(const Run &run, size_t index) {
    const int width = run.heads * run.head_dim, half = width / 2;
    const size_t column = index / width, row = column / run.columns;
    const int pair = (int)(index % width);
    const bool is_key = pair < half;
    Pair x = load_pair(run.projected, column * (3 * (size_t)half) + half + pair, run.element);
    if (is_key) x = rotated(run, x, column, pair % (run.head_dim / 2));
    const size_t slot = (size_t)(run.position[row] + (int64_t)(column % run.columns)) % run.window;
    const float scale = is_key ? run.key_scale : run.value_scale;
    int8_t *to = (is_key ? run.keys : run.values) + (row * run.window + slot) * width + 2 * (pair % half);
    const int8_t codes[2] = {quantized(x.first, scale), quantized(x.second, scale)};
    memcpy(__builtin_assume_aligned(to, 2), codes, 2);
}

/* Slots that a column reads: causal from the last column back. */
static __device__ __forceinline__ int visible_slots(const Run &run, size_t column) {
    const int64_t later = run.columns - 1 - (int64_t)(column % run.columns);
    const int64_t visible = run.filled[column / run.columns] - later;
    return (int)(visible < 0 ? 0 : visible > run.window ? run.window : visible);
}

/* Load and rotate a lane's elements of a query. Returns the largest magnitude. */
static __device__ __forceinline__ float load_query(const Run &run, size_t column, int head, int lane, float query[LANE_ELEMENTS]) {
    const int width = run.heads * run.head_dim;
    const size_t first = (column * (3 * (size_t)width) + (size_t)(head * run.head_dim + lane * LANE_ELEMENTS)) / 2;
    float largest = 0;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS / 2; i++) {
        const Pair x = load_pair(run.projected, first + i, run.element);
        const Pair turned = rotated(run, x, column, lane * LANE_ELEMENTS / 2 + i);
        query[2 * i] = turned.first;
        query[2 * i + 1] = turned.second;
        largest = fmaxf(largest, fmaxf(fabsf(turned.first), fabsf(turned.second)));
    }
    return largest;
}

/* A lane's elements of a query as 128 * high + low, four to a word; `largest` is that of the head. */
struct Digits {
    uint32_t high[LANE_ELEMENTS / 4], low[LANE_ELEMENTS / 4];
};

static __device__ __forceinline__ Digits digits_of(const float query[LANE_ELEMENTS], float largest) {
    Digits digits = {};
    const float per_step = largest > 1e-30f ? LARGEST_QUERY / largest : 0;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) {
        const int code = __float2int_rn(query[i] * per_step), high = (code + 64) >> 7;
        digits.high[i / 4] |= (uint32_t)(uint8_t)high << 8 * (i % 4);
        digits.low[i / 4] |= (uint32_t)(uint8_t)(code - 128 * high) << 8 * (i % 4);
    }
    return digits;
}

/* What a whole number is worth as a score, in powers of two. */
static __device__ __forceinline__ float score_step(const Run &run, float largest) {
    return largest / LARGEST_QUERY * run.key_scale * 1.44269504f / sqrtf((float)run.head_dim);
}

/* A lane's part of the product of query and key. */
static __device__ __forceinline__ int dot(const Digits &query, const uint32_t key[LANE_ELEMENTS / 4]) {
    int high = 0, low = 0;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS / 4; i++) {
        high = __dp4a((int)query.high[i], (int)key[i], high);
        low = __dp4a((int)query.low[i], (int)key[i], low);
    }
    return 128 * high + low;
}

/* A signed byte of a word, by way of 2^23 + 128 + byte: a conversion takes four to eight times as long. */
static __device__ __forceinline__ float byte_of(uint32_t word, int index) {
    return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7650 + index)) - 8388736.0f;
}

/* A softmax over some of the slots so far: the largest score, and the sum of 2^(score - largest), by which `values` are
 * weighted. */
struct Softmax {
    float largest, sum;
};

/* Admit scores up to `score`. Returns the factor for what was weighted before. */
static __device__ __forceinline__ float admit(Softmax &softmax, float score) {
    const float before = softmax.largest;
    softmax.largest = fmaxf(before, score);
    const float factor = exp2f(before - softmax.largest);
    softmax.sum *= factor;
    return factor;
}

/* The weight of a slot, which is counted. */
static __device__ __forceinline__ float weigh(Softmax &softmax, float score) {
    const float weight = exp2f(score - softmax.largest);
    softmax.sum += weight;
    return weight;
}

/* Add another softmax. Returns the factors for what was weighted by this one and by the other. */
static __device__ __forceinline__ Pair merge(Softmax &softmax, const Softmax &other) {
    const float factor = admit(softmax, other.largest), of_other = exp2f(other.largest - softmax.largest);
    softmax.sum += of_other * other.sum;
    return {factor, of_other};
}

/* Factor from weighted codes to values; nothing was read where the sum is 0. */
static __device__ __forceinline__ float normalization(const Run &run, const Softmax &softmax) {
    return softmax.sum == 0 ? 0 : run.value_scale / softmax.sum;
}
