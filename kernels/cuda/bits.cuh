// One-bit activations times binary weights: AND and popcount of 256 columns per matrix instruction.
//
// The weights' tiles (see gemv.cuh) are the A operand as they lie; activations are packed in the same order:
// bit 8 · byte + i of word h of lane quarter t is column 64 t + 8 i + 4 h + byte of a 256-column block.
// With a weight 2c − 1 and an activation 2a − 1 (signed) or a, the sum needs only Σ c·a, Σ c and Σ a.
#pragma once
#include "gemv.cuh"

// codes [M, cols] of −1 and 1 (is_signed) or 0 and 1 → bits [M, blocks, 4, 2] words, sums Σ a, and the scales again,
// NaN for a row with any other code. One block of 256 threads per row.
template <bool SIGNED>
__global__ void __launch_bounds__(kBlock)
pack_bits(const int8_t* codes, const float* scales, uint32_t* bits, float* checked, int* sums, int cols, int blocks) {
    NB_SHARED(int, counts);  // [2]: ones, wrong codes
    if (threadIdx.x < 2) counts[threadIdx.x] = 0;
    __syncthreads();
    const int8_t* row = codes + static_cast<int64_t>(blockIdx.x) * cols;
    uint32_t* out = bits + static_cast<int64_t>(blockIdx.x) * blocks * 8;
    int ones = 0, wrong = 0;
    for (int w = threadIdx.x; w < blocks * 8; w += kBlock) {
        const int first = w / 8 * 256 + w % 8 / 2 * 64 + w % 2 * 4;
        uint32_t word = 0;
        for (int bit = 0; bit < 32; ++bit) {
            const int k = first + bit % 8 * 8 + bit / 8;
            if (k >= cols) continue;
            const int code = row[k];
            wrong |= SIGNED ? code != 1 && code != -1 : code != 0 && code != 1;
            word |= static_cast<uint32_t>(code > 0) << bit;
        }
        out[w] = word;
        ones += __popc(word);
    }
    atomicAdd(&counts[0], ones);
    atomicAdd(&counts[1], wrong);
    __syncthreads();
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = counts[0];
        checked[blockIdx.x] = counts[1] ? __uint_as_float(0x7fc00000u) : scales[blockIdx.x];
    }
}

// y [M, rows]; row_ones [rows] = Σ c. One thread block per 16 rows and 8 · TOKENS tokens; warps share the columns.
template <int TOKENS, bool SIGNED>
__global__ void __launch_bounds__(kBlock)
binary_gemm(const uint4* weights, const uint32_t* bits, const float* scales, const float* x_scales, const int* x_ones,
            const int* row_ones, float* y, int cols, int blocks, int rows, int tokens, int scale_stride) {
    NB_SHARED(int, gathered);
    constexpr int kOutputs = 128 * TOKENS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_token = blockIdx.y * 8 * TOKENS;
    const uint4* tile = weights + static_cast<int64_t>(blockIdx.x) * blocks * 32 + lane;
    int counts[1][TOKENS][4] = {};
    NB_UNROLL_BY(4)
    for (int block = warp; block < blocks; block += kWarps) {
        const uint4 w = load_once(tile + static_cast<int64_t>(block) * 32);
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        NB_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const int token = first_token + 8 * t + lane / 4;
            uint32_t b[2] = {0, 0};
            if (token < tokens) {
                const uint32_t* at = bits + (static_cast<int64_t>(token) * blocks + block) * 8 + lane % 4 * 2;
                const uint2 v = *reinterpret_cast<const uint2*>(at);
                b[0] = v.x, b[1] = v.y;
            }
            mma_b1(counts[0][t], a, b);
        }
    }
    int mine[TOKENS / 2 + 1];
    gather_warps<1, TOKENS>(counts, gathered, mine);
    NB_UNROLL
    for (int i = 0; i * kBlock < kOutputs; ++i) {
        const int at = i * kBlock + threadIdx.x, row = blockIdx.x * 16 + at / (8 * TOKENS);
        const int token = first_token + at % (8 * TOKENS);
        if (at >= kOutputs || row >= rows || token >= tokens) continue;
        const int both = mine[i], x_ones_here = x_ones[token];
        const int sum = SIGNED ? 4 * both - 2 * row_ones[row] - 2 * x_ones_here + cols : 2 * both - x_ones_here;
        const float scale = __fmul_rn(x_scales[token], scales[static_cast<int64_t>(row) * scale_stride]);
        y[static_cast<int64_t>(token) * rows + row] = __fadd_rn(0.0f, __fmul_rn(__int2float_rn(sum), scale));
    }
}
