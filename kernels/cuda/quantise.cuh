// Activations to int8 by the largest magnitude of each row, optionally after an RMS or layer norm, in one kernel.
//
// Codes are written group by group, each group padded with zeros to `padded` columns, so that the matrix kernels
// need no tails: column k of group g lies at g · padded + k − g · width. One block of 256 threads per row.
// Float sums run in 256 lanes (lane t adds columns t, t + 256, …), then by a tree: same bits every time.
#pragma once
#include "portable.cuh"

enum Norm { kNoNorm = 0, kRmsNorm = 1, kLayerNorm = 2 };
enum Kind { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };
constexpr int kRowThreads = 256;

template <int KIND>
NB_INLINE float read_float(const void* values, int64_t at) {
    if (KIND == kFloat16) return half_to_float(static_cast<const uint16_t*>(values)[at]);
    if (KIND == kBfloat16) return bf16_to_float(static_cast<const uint16_t*>(values)[at]);
    return static_cast<const float*>(values)[at];
}

struct Add {
    NB_INLINE static float of(float a, float b) { return __fadd_rn(a, b); }
};
struct Largest {
    NB_INLINE static float of(float a, float b) { return b > a ? b : a; }
};

// The block's 256 values folded into one by a tree (t with t + 128, then + 64, …), the same in every thread.
template <class Op>
NB_INLINE float fold_block(float value, float* lanes) {
    lanes[threadIdx.x] = value;
    __syncthreads();
    float tree[8];
    NB_UNROLL
    for (int i = 0; i < 8; ++i) tree[i] = lanes[32 * i + threadIdx.x % 32];
    NB_UNROLL
    for (int half = 4; half > 0; half /= 2)
        NB_UNROLL
        for (int i = 0; i < half; ++i) tree[i] = Op::of(tree[i], tree[i + half]);
    for (int half = 16; half > 0; half /= 2) tree[0] = Op::of(tree[0], __shfl_xor_sync(NB_ALL, tree[0], half));
    __syncthreads();
    return tree[0];
}

struct Normed {
    float centre, factor;
};

template <int NORM, int KIND>
NB_INLINE Normed statistics(const void* x, int64_t row, int cols, float epsilon, float* lanes) {
    Normed out{0.0f, 1.0f};
    if (NORM == kNoNorm) return out;
    if (NORM == kLayerNorm) {
        float sum = 0.0f;
        for (int k = threadIdx.x; k < cols; k += kRowThreads) sum = __fadd_rn(sum, read_float<KIND>(x, row + k));
        out.centre = __fdiv_rn(fold_block<Add>(sum, lanes), static_cast<float>(cols));
    }
    float squares = 0.0f;
    for (int k = threadIdx.x; k < cols; k += kRowThreads) {
        const float away = __fsub_rn(read_float<KIND>(x, row + k), out.centre);
        squares = __fadd_rn(squares, __fmul_rn(away, away));
    }
    const float mean = __fdiv_rn(fold_block<Add>(squares, lanes), static_cast<float>(cols));
    const float nan = __uint_as_float(0x7fc00000u);  // of a row whose squares are beyond float32
    out.factor = finite(mean) ? __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, epsilon))) : nan;
    return out;
}

template <int NORM, int KIND>
NB_INLINE float normed_value(const void* x, int64_t row, int k, Normed norm, const float* gain, const float* bias) {
    float value = read_float<KIND>(x, row + k);
    if (NORM == kNoNorm) return value;
    value = __fmul_rn(__fsub_rn(value, norm.centre), norm.factor);
    if (gain) value = __fmul_rn(value, gain[k]);
    return bias ? __fadd_rn(value, bias[k]) : value;
}

// Sum of each group's codes, one warp per group; `codes` is one padded row.
NB_INLINE void sum_groups(const int8_t* codes, int* sums, int groups, int padded) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int g = warp; g < groups; g += kRowThreads / 32) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(codes + static_cast<int64_t>(g) * padded);
        int sum = 0;
        for (int i = lane; i < padded / 4; i += 32) sum = dot4(words[i], 0x01010101u, sum);
        for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(NB_ALL, sum, half);
        if (lane == 0) sums[g] = sum;
    }
}

// Where position `at` of a row "in steps" comes from: within the columns of one block of weights (see gemv.cuh),
// position 32 i + 16 h + 4 t + byte holds column (columns / 4) t + 8 i + 4 h + byte, so that 32 neighbours are what one
// matrix step multiplies. bits 0: in plain order.
NB_INLINE int in_steps(int at, int bits) {
    if (bits == 0) return at;
    const int columns = 256 / bits, inside = at % columns;
    return at - inside + inside % 16 / 4 * (columns / 4) + inside / 32 * 8 + inside % 32 / 16 * 4 + inside % 4;
}

NB_INLINE bool split_padded(int position, int cols, int width, int padded, int bits, int& k) {
    const int at = in_steps(position, bits), group = at / padded, inside = at - group * padded;
    k = group * width + inside;
    return inside < width && k < cols;
}

// What makes codes of a row: `scale` is NaN where the row is not finite, and then every code is 0.
template <int NORM, int KIND>
struct Rounding {
    const void* x;
    int64_t row;
    const float *gain, *bias;
    Normed norm;
    float scale;

    NB_INLINE static Rounding of(const void* x, int64_t row, int cols, const float* gain, const float* bias,
                                 float epsilon, float* lanes) {
        Rounding out{x, row, gain, bias, statistics<NORM, KIND>(x, row, cols, epsilon, lanes), 0.0f};
        float peak = 0.0f;
        NB_UNROLL_BY(4)
        for (int k = threadIdx.x; k < cols; k += kRowThreads) {
            const float value = out.value(k);
            peak = Largest::of(peak, finite(value) ? magnitude(value) : INFINITY);
        }
        peak = fold_block<Largest>(peak, lanes);
        out.scale = finite(peak) ? __fdiv_rn(peak, 127.0f) : __uint_as_float(0x7fc00000u);
        return out;
    }
    NB_INLINE float value(int k) const { return normed_value<NORM, KIND>(x, row, k, norm, gain, bias); }
    NB_INLINE int code(int k) const {
        if (!(scale > 0.0f)) return 0;
        const float ratio = __fdiv_rn(value(k), scale);
        return static_cast<int>(round_even(min(max(ratio, -127.0f), 127.0f)));
    }
};

// x [M, cols] → codes int8 [M, groups · padded], scales [M] (NaN where the row is not finite), sums [M, groups].
template <int NORM, int KIND>
__global__ void __launch_bounds__(kRowThreads)
quantise_rows(const void* x, int8_t* codes, float* scales, int* sums, int cols, int width, int padded, int groups, int bits,
              const float* gain, const float* bias, float epsilon) {
    NB_SHARED(float, lanes);
    wait_for_previous();
    let_next_begin();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * cols;
    const auto rounding = Rounding<NORM, KIND>::of(x, row, cols, gain, bias, epsilon, lanes);
    const int length = groups * padded;
    int8_t* out = codes + static_cast<int64_t>(blockIdx.x) * length;
    for (int at = threadIdx.x; at < length; at += kRowThreads) {
        int k;
        const bool there = split_padded(at, cols, width, padded, bits, k);
        out[at] = static_cast<int8_t>(there ? rounding.code(k) : 0);
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = rounding.scale;
    __syncthreads();
    sum_groups(out, sums + static_cast<int64_t>(blockIdx.x) * groups, groups, padded);
}

// int8 codes [M, cols] that the caller made, into the padded layout with their sums.
__global__ void __launch_bounds__(kRowThreads)
stage_codes(const int8_t* codes, int8_t* staged, int* sums, int cols, int width, int padded, int groups,
            int bits) {
    const int length = groups * padded;
    const int8_t* row = codes + static_cast<int64_t>(blockIdx.x) * cols;
    int8_t* out = staged + static_cast<int64_t>(blockIdx.x) * length;
    for (int at = threadIdx.x; at < length; at += kRowThreads) {
        int k;
        out[at] = split_padded(at, cols, width, padded, bits, k) ? row[k] : static_cast<int8_t>(0);
    }
    __syncthreads();
    sum_groups(out, sums + static_cast<int64_t>(blockIdx.x) * groups, groups, padded);
}
