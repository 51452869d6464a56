// The ternary matrix-vector product, from the first idea to the kernel in use: y = x · Wᵀ for one token.
//
// All rungs take W as it lies in a file: `packed` [rows, row_bytes], four codes (weight + 1) per byte, low bits
// first, row_bytes a multiple of 16; x int8 codes, padded with zeros to 4 · row_bytes; scales [rows]. With the sum
// of x known, Σ weight · x = Σ code · x − Σ x. All give the same bits. The table in `nearbank.kernels.ladder` says
// what each rung is about.
#pragma once
#include "portable.cuh"

#define NB_GEMV_RUNG \
    const uint8_t *packed, const int8_t *x, const float *scales, float *y, float x_scale, int x_sum, int rows, int row_bytes

NB_INLINE float ternary_value(int code_sum, int x_sum, float x_scale, float scale) {
    return __fadd_rn(0.0f, __fmul_rn(__int2float_rn(code_sum - x_sum), __fmul_rn(x_scale, scale)));
}
NB_INLINE int warp_sum(int value) {
    for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(NB_ALL, value, half);
    return value;
}

// Rung 0. One thread per row. Neighbouring threads read memory a whole row apart: each load fetches 32 bytes to use
// one, and one row's thread waits for every byte in turn.
__global__ void gemv_thread_per_row(NB_GEMV_RUNG) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int sum = 0;
    for (int b = 0; b < row_bytes; ++b) {
        const int byte = packed[static_cast<int64_t>(row) * row_bytes + b];
        for (int i = 0; i < 4; ++i) sum += (byte >> 2 * i & 3) * x[4 * b + i];
    }
    y[row] = ternary_value(sum, x_sum, x_scale, scales[row]);
}

// Rung 1. One warp per row: 32 lanes read 32 neighbouring bytes in one transaction, and add up by shuffles.
__global__ void gemv_warp_per_row(NB_GEMV_RUNG) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    int sum = 0;
    for (int b = lane; b < row_bytes; b += 32) {
        const int byte = packed[static_cast<int64_t>(row) * row_bytes + b];
        for (int i = 0; i < 4; ++i) sum += (byte >> 2 * i & 3) * x[4 * b + i];
    }
    sum = warp_sum(sum);
    if (lane == 0) y[row] = ternary_value(sum, x_sum, x_scale, scales[row]);
}

// Rung 2. 16 bytes per load, and four multiplications per instruction: a shift by 2 i and one mask turn a word of 16
// codes into the four lanes that dp4a takes. Those are columns i, i + 4, i + 8, i + 12, so x comes shuffled alike:
// within 16 columns, position 4 i + b holds column 4 b + i.
NB_INLINE int dot_word(uint32_t word, const uint32_t* x_words, int sum) {
    NB_UNROLL
    for (int i = 0; i < 4; ++i) sum = dot4(word >> 2 * i & 0x03030303u, x_words[i], sum);
    return sum;
}
NB_INLINE int dot_vector(uint4 w, const uint32_t* x_words, int sum) {
    sum = dot_word(w.x, x_words, sum);
    sum = dot_word(w.y, x_words + 4, sum);
    sum = dot_word(w.z, x_words + 8, sum);
    return dot_word(w.w, x_words + 12, sum);
}
__global__ void gemv_wide_loads(NB_GEMV_RUNG) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const uint4* w = reinterpret_cast<const uint4*>(packed + static_cast<int64_t>(row) * row_bytes);
    const uint32_t* x_words = reinterpret_cast<const uint32_t*>(x);
    int sum = 0;
    for (int v = lane; v < row_bytes / 16; v += 32) sum = dot_vector(w[v], x_words + 16 * v, sum);
    sum = warp_sum(sum);
    if (lane == 0) y[row] = ternary_value(sum, x_sum, x_scale, scales[row]);
}

// Rung 3. Four rows per warp: x is loaded once for four rows, and four independent 16-byte loads are in flight
// before the first is used. Loads that are read once keep out of the first cache, which x then has to itself.
__global__ void gemv_four_rows(NB_GEMV_RUNG) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 4, lane = threadIdx.x % 32;
    if (first >= rows) return;
    const uint4* x_vectors = reinterpret_cast<const uint4*>(x);
    int sums[4] = {0, 0, 0, 0};
    for (int v = lane; v < row_bytes / 16; v += 32) {
        uint4 w[4];
        NB_UNROLL
        for (int r = 0; r < 4; ++r) {
            const int64_t row = min(first + r, rows - 1);
            w[r] = load_once(reinterpret_cast<const uint4*>(packed + row * row_bytes) + v);
        }
        uint32_t x_words[16];
        NB_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint4 part = x_vectors[4 * v + i];
            x_words[4 * i] = part.x, x_words[4 * i + 1] = part.y;
            x_words[4 * i + 2] = part.z, x_words[4 * i + 3] = part.w;
        }
        NB_UNROLL
        for (int r = 0; r < 4; ++r) sums[r] = dot_vector(w[r], x_words, sums[r]);
    }
    NB_UNROLL
    for (int r = 0; r < 4; ++r) {
        const int sum = warp_sum(sums[r]);
        if (lane == 0 && first + r < rows) y[first + r] = ternary_value(sum, x_sum, x_scale, scales[first + r]);
    }
}

// The next rungs are `gemv_groups` and `gemv_stream` in ../cuda/gemv.cuh and `gemv_rows` in ../cuda/gemv_rows.cuh.
