// y = x · Wᵀ for one token and one scale per row, x rounded to int8 on the way in: what a decode step is made of.
//
// A thread block finishes 16 rows at a time, its warps taking column blocks in turn, and goes on with the tile
// gridDim.x further. DEPTH loads of weights per warp are on their way before the kernel waits for the one before it
// (weights depend on nobody) and stay so across tiles. Every block rounds x for itself: that costs less than a kernel.
#pragma once
#include "gemv.cuh"
#include "quantise.cuh"

// What the result needs of x besides its codes.
struct OneRow {
    float scale;
    int sum;
};

// x rounded into `codes` (shared memory), zeros behind it.
template <int NORM, int KIND>
NB_INLINE OneRow round_row(const void* x, int8_t* codes, float* lanes, int cols, int columns, const float* gain,
                           const float* bias, float epsilon) {
    const auto rounding = Rounding<NORM, KIND>::of(x, 0, cols, gain, bias, epsilon, lanes);
    int sum = 0;
    NB_UNROLL_BY(2)
    for (int k = threadIdx.x; k < columns; k += kBlock) {
        const int code = k < cols ? rounding.code(k) : 0;
        codes[k] = static_cast<int8_t>(code);
        sum += code;
    }
    for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(NB_ALL, sum, half);
    int* sums = reinterpret_cast<int*>(lanes);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    NB_UNROLL
    for (int w = 0; w < kWarps; ++w) sum += sums[w];
    return {rounding.scale, sum};
}

// SOURCE: 3 · norm + kind of x.
template <int BITS, int SOURCE, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(kBlock, RESIDENT)
gemv_one(const uint4* weights, const void* x, int cols, int columns, int row_tiles, const float* gain,
         const float* bias, float epsilon, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    using P = Packing<BITS>;
    NB_SHARED(float, lanes);  // 256 floats, then two sides of [warp][16 rows], then x's codes
    int* gathered = reinterpret_cast<int*>(lanes + kBlock);
    int8_t* codes = reinterpret_cast<int8_t*>(gathered + 2 * 16 * kWarps);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = columns / P::kColumns;
    const int turns = (blocks + kWarps - 1) / kWarps, grid = gridDim.x;

    // The next piece to load, and where it is.
    Weights<BITS, 1> held[DEPTH];
    int load_tile = blockIdx.x, load_turn = 0;
    auto load = [&](Weights<BITS, 1>& piece) {
        const int block = load_turn * kWarps + warp;
        if (load_tile < row_tiles && block < blocks)
            piece.load(weights + (static_cast<int64_t>(load_tile) * blocks + block) * 32, 0);
        if (++load_turn == turns) load_turn = 0, load_tile += grid;
    };
    NB_UNROLL
    for (int d = 0; d < DEPTH; ++d) load(held[d]);
    auto terms_of = [&](int tile) { return threadIdx.x < 16 ? out.row_terms(tile * 16 + threadIdx.x, 0) : RowTerms{}; };
    RowTerms terms = terms_of(blockIdx.x);
    wait_for_previous();
    let_next_begin();
    const OneRow row = round_row<SOURCE / 3, SOURCE % 3>(x, codes, lanes, cols, columns, gain, bias, epsilon);

    int tile = blockIdx.x, turn = 0, side = 0, sums[2][4] = {};
    auto multiply_one = [&](const uint4& w) {
        uint32_t words[P::kWords];
        load_words(words, codes + (turn * kWarps + warp) * P::kColumns + lane % 4 * (4 * P::kWords));
        NB_UNROLL
        for (int i = 0; i < P::kSteps; ++i) {
            const uint32_t a[4] = {w.x >> BITS * i & P::kMask, w.y >> BITS * i & P::kMask, w.z >> BITS * i & P::kMask,
                                   w.w >> BITS * i & P::kMask};
            const uint32_t b[2] = {words[2 * i], words[2 * i + 1]};  // all 8 columns are this token
            mma_s8(sums[i % 2], a, b);
        }
    };
    auto close = [&] {
        int* mine = gathered + side * 16 * kWarps;
        if (lane % 4 == 0) {
            mine[warp * 16 + lane / 4] = sums[0][0] + sums[1][0];
            mine[warp * 16 + lane / 4 + 8] = sums[0][2] + sums[1][2];
        }
        __syncthreads();
        if (threadIdx.x < 16) {
            int sum = 0;
            NB_UNROLL
            for (int w = 0; w < kWarps; ++w) sum += mine[w * 16 + threadIdx.x];
            out.store(tile * 16 + threadIdx.x, 0, __fadd_rn(0.0f, out.scaled(terms, sum, row.sum, row.scale)));
        }
        tile += grid, turn = 0, side ^= 1;
        terms = terms_of(tile);
        NB_UNROLL
        for (int c = 0; c < 4; ++c) sums[0][c] = sums[1][c] = 0;
    };
    while (tile < row_tiles) {
        NB_UNROLL
        for (int d = 0; d < DEPTH; ++d) {
            if (tile >= row_tiles) continue;
            if (turn * kWarps + warp < blocks) multiply_one(held[d].w[0]);
            load(held[d]);
            if (++turn == turns) close();
        }
    }
}
