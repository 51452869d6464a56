// y = x · Wᵀ for one token, x rounded to int8 on the way in: what a decode step is made of.
//
// A thread block finishes 16 rows at a time and goes on with the tile gridDim.x further. Its warps take parts of the
// columns in turn: groups where each has its scale, else blocks of weights. DEPTH loads of weights per warp are on
// their way before the kernel waits for the one before it (weights depend on nobody) and stay so across tiles. Every
// block rounds x for itself: that costs less than a kernel. Groups are scaled where their sums are and added in order.
#pragma once
#include "gemv.cuh"
#include "quantise.cuh"

// What the result needs of x besides its codes: with groups, `sum` is 0 and each group's sum lies in shared memory.
struct OneRow {
    float scale;
    int sum;
};

// x rounded into `codes`, every group padded with zeros; `lanes` and `sums` are scratch and answer, all shared memory.
template <int NORM, int KIND, bool GROUPED>
NB_INLINE OneRow round_row(const void* x, int8_t* codes, float* lanes, int* sums, int cols, int width, int padded,
                           int groups, const float* gain, const float* bias, float epsilon) {
    const auto rounding = Rounding<NORM, KIND>::of(x, 0, cols, gain, bias, epsilon, lanes);
    int sum = 0;
    NB_UNROLL_BY(2)
    for (int at = threadIdx.x; at < groups * padded; at += kBlock) {
        int k;
        const int code = split_padded(at, cols, width, padded, 0, k) ? rounding.code(k) : 0;
        codes[at] = static_cast<int8_t>(code);
        sum += code;
    }
    if (GROUPED) {
        __syncthreads();
        sum_groups(codes, sums, groups, padded);
        __syncthreads();
        return {rounding.scale, 0};
    }
    for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(NB_ALL, sum, half);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    NB_UNROLL
    for (int w = 0; w < kWarps; ++w) sum += sums[w];
    return {rounding.scale, sum};
}

// SOURCE: 3 · norm + kind of x. Shared memory, in this order: 256 floats; what the warps bring together of two tiles,
// [2][parts][16 rows], parts being warps or groups; x's codes; the groups' sums (at least 8).
template <int BITS, int SOURCE, bool GROUPED, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(kBlock, RESIDENT)
gemv_one(const uint4* weights, const void* x, int cols, int width, int padded, int row_tiles, const float* gain,
         const float* bias, float epsilon, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    using P = Packing<BITS>;
    const int columns = groups * padded, blocks = columns / P::kColumns, grid = gridDim.x;
    const int parts = GROUPED ? groups : blocks, pieces = GROUPED ? padded / P::kColumns : 1;
    const int kept = GROUPED ? groups : kWarps, turns = (parts + kWarps - 1) / kWarps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    NB_SHARED(float, lanes);
    float* brought = lanes + kBlock;
    int8_t* codes = reinterpret_cast<int8_t*>(brought + 2 * 16 * kept);
    int* x_group_sums = reinterpret_cast<int*>(codes + columns);

    // The next weights to load, and where they are.
    Weights<BITS, 1> held[DEPTH];
    int load_tile = blockIdx.x, load_turn = 0, load_piece = 0;
    auto load = [&](Weights<BITS, 1>& to) {
        const int part = load_turn * kWarps + warp;
        if (load_tile < row_tiles && part < parts)
            to.load(weights + (static_cast<int64_t>(load_tile) * blocks + part * pieces + load_piece) * 32, 0);
        if (++load_piece < pieces) return;
        load_piece = 0;
        if (++load_turn == turns) load_turn = 0, load_tile += grid;
    };
    NB_UNROLL
    for (int d = 0; d < DEPTH; ++d) load(held[d]);

    int tile = blockIdx.x, turn = 0, piece = 0, side = 0, sums[2][4] = {};
    // With groups, lanes 4g and 4g + 1 scale rows g and g + 8, and know their terms one part ahead; else threads 0 … 15
    // know those of their row.
    const int my_row = GROUPED ? lane / 4 + 8 * (lane % 4) : threadIdx.x;
    const bool scales_rows = GROUPED ? lane % 4 < 2 : threadIdx.x < 16;
    auto terms_of = [&](int of_tile, int part) {
        const bool there = scales_rows && of_tile < row_tiles && (!GROUPED || part < parts);
        return there ? out.row_terms(of_tile * 16 + my_row, GROUPED ? part : 0) : RowTerms{};
    };
    int ahead_tile = tile, ahead_turn = 0;
    auto next_terms = [&] {
        if (++ahead_turn == turns) ahead_turn = 0, ahead_tile += grid;
        return terms_of(ahead_tile, ahead_turn * kWarps + warp);
    };
    RowTerms terms = terms_of(tile, warp);
    RowTerms ahead = GROUPED ? next_terms() : terms;
    wait_for_previous();
    let_next_begin();
    const OneRow row = round_row<SOURCE / 3, SOURCE % 3, GROUPED>(x, codes, lanes, x_group_sums, cols, width, padded,
                                                                  groups, gain, bias, epsilon);

    auto multiply_one = [&](const uint4& w, int block) {
        uint32_t words[P::kWords];
        load_words(words, codes + block * P::kColumns + lane % 4 * (4 * P::kWords));
        NB_UNROLL
        for (int i = 0; i < P::kSteps; ++i) {
            const uint32_t a[4] = {w.x >> BITS * i & P::kMask, w.y >> BITS * i & P::kMask, w.z >> BITS * i & P::kMask,
                                   w.w >> BITS * i & P::kMask};
            const uint32_t b[2] = {words[2 * i], words[2 * i + 1]};  // all 8 columns are this token
            mma_s8(sums[i % 2], a, b);
        }
    };
    auto clear = [&] {
        NB_UNROLL
        for (int c = 0; c < 4; ++c) sums[0][c] = sums[1][c] = 0;
    };
    auto end_group = [&](int part) {
        const int sum = lane % 4 ? sums[0][2] + sums[1][2] : sums[0][0] + sums[1][0];
        if (scales_rows && part < parts)
            brought[(side * kept + part) * 16 + my_row] = out.scaled(terms, sum, x_group_sums[part], row.scale);
        terms = ahead, ahead = next_terms();
        clear();
    };
    auto end_tile = [&] {
        float* mine = brought + side * kept * 16;
        if (!GROUPED && lane % 4 == 0) {
            reinterpret_cast<int*>(mine)[warp * 16 + lane / 4] = sums[0][0] + sums[1][0];
            reinterpret_cast<int*>(mine)[warp * 16 + lane / 4 + 8] = sums[0][2] + sums[1][2];
        }
        __syncthreads();
        if (threadIdx.x < 16) {
            float value = 0.0f;
            int sum = 0;
            NB_UNROLL_BY(8)
            for (int i = 0; i < kept; ++i) {
                if (GROUPED) value = __fadd_rn(value, mine[i * 16 + threadIdx.x]);
                else sum += reinterpret_cast<int*>(mine)[i * 16 + threadIdx.x];
            }
            if (!GROUPED) value = __fadd_rn(0.0f, out.scaled(terms, sum, row.sum, row.scale));
            out.store(tile * 16 + threadIdx.x, 0, value);
        }
        tile += grid, turn = 0, side ^= 1;
        if (!GROUPED) terms = terms_of(tile, 0), clear();
    };
    while (tile < row_tiles) {
        NB_UNROLL
        for (int d = 0; d < DEPTH; ++d) {
            if (tile >= row_tiles) continue;
            const int part = turn * kWarps + warp;
            if (part < parts) multiply_one(held[d].w[0], part * pieces + piece);
            load(held[d]);
            if (++piece < pieces) continue;
            piece = 0;
            if (GROUPED) end_group(part);
            if (++turn == turns) end_tile();
        }
    }
}
