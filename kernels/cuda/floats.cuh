// y = x · Wᵀ with float activations, in the one order of sums that every backend keeps: 16 lanes, lane l adding
// columns l, l + 16, …, then a tree; no fused multiply-add. Half a warp is one row's lanes.
#pragma once
#include "gemv.cuh"
#include "quantise.cuh"

// The 16 lanes of this half warp folded; right in the half's first lane.
NB_INLINE float fold_lanes(float value) {
    for (int half = 8; half > 0; half /= 2) value = __fadd_rn(value, __shfl_down_sync(NB_ALL, value, half));
    return value;
}

// Float weights, interleaved so that lane l of block b finds its columns (16 n b + l, + 16, …) in 16 bytes.
template <int KIND>
__global__ void __launch_bounds__(kBlock)
floats_by_floats(const uint4* weights, const float* x, float* y, int cols, int vectors, int rows) {
    constexpr int kValues = KIND == kFloat32 ? 4 : 8;
    const int lane = threadIdx.x % 16, row = (blockIdx.x * kBlock + threadIdx.x) / 16;
    const float* x_row = x + static_cast<int64_t>(blockIdx.y) * cols;
    const uint4* w_row = weights + static_cast<int64_t>(min(row, rows - 1)) * vectors * 16 + lane;
    float sum = 0.0f;
    NB_UNROLL_BY(4)
    for (int b = 0; b < vectors; ++b) {
        const uint4 v = load_once(w_row + b * 16);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        NB_UNROLL
        for (int i = 0; i < kValues; ++i) {
            const int k = (b * kValues + i) * 16 + lane;
            const uint32_t bits = KIND == kFloat32 ? words[i % 4] : words[i / 2] >> 16 * (i % 2) & 0xffff;
            const float w = KIND == kFloat32   ? __uint_as_float(bits)
                            : KIND == kFloat16 ? half_to_float(static_cast<uint16_t>(bits))
                                               : bf16_to_float(bits);
            if (k < cols) sum = __fadd_rn(sum, __fmul_rn(x_row[k], w));
        }
    }
    sum = fold_lanes(sum);
    if (lane == 0 && row < rows) y[static_cast<int64_t>(blockIdx.y) * rows + row] = __fadd_rn(0.0f, sum);
}

// Integer weights as gemv.cuh reads them, one code at a time: the careful path, not the fast one.
template <int BITS>
__global__ void __launch_bounds__(kBlock)
floats_by_codes(const uint8_t* weights, const float* x, float* y, const float* scales, const uint8_t* zeros, int cols,
                int width, int padded, int groups, int scale_stride, int step, int zero, int rows) {
    using P = Packing<BITS>;
    const int lane = threadIdx.x % 16, row = (blockIdx.x * kBlock + threadIdx.x) / 16, safe = min(row, rows - 1);
    const float* x_row = x + static_cast<int64_t>(blockIdx.y) * cols;
    const int64_t blocks = static_cast<int64_t>(groups) * padded / P::kColumns;
    const uint8_t* tile = weights + safe / 16 * blocks * 512 + safe % 8 * 64 + safe % 16 / 8 * 4;
    float y_value = 0.0f;
    for (int g = 0; g < groups; ++g) {
        const int64_t scale_at = static_cast<int64_t>(safe) * scale_stride + g;
        const int offset = zeros ? zeros[scale_at] : zero, end = min(width, cols - g * width);
        float sum = 0.0f;
        for (int k = lane; k < end; k += 16) {
            const int block = (g * padded + k) / P::kColumns, column = (g * padded + k) % P::kColumns;
            const int quarter = column / (P::kColumns / 4), rest = column % (P::kColumns / 4);
            const uint8_t byte = tile[block * 512 + quarter * 16 + rest % 8 / 4 * 8 + rest % 4];
            const int code = BITS == 8 ? static_cast<int8_t>(byte) : byte >> BITS * (rest / 8) & ((1 << BITS % 8) - 1);
            const float level = static_cast<float>(step * code - offset);
            sum = __fadd_rn(sum, __fmul_rn(x_row[g * width + k], level));
        }
        y_value = __fadd_rn(y_value, __fmul_rn(fold_lanes(sum), scales[scale_at]));
    }
    if (lane == 0 && row < rows) y[static_cast<int64_t>(blockIdx.y) * rows + row] = y_value;
}
