// y = x · Wᵀ for many tokens: a block of rows times a block of tokens, int8 matrix instructions.
//
// A thread block is 4 × 2 warps; a warp has ROWS tiles of 16 rows and TOKENS blocks of 8 tokens. Weights come
// straight from memory into registers in the order they are needed (see gemv.cuh), one step ahead. Activations
// go through shared memory by asynchronous copies, kStages steps deep; 16-byte units are exchanged within a
// token's row by token % 8, so that no two lanes meet in a bank.
#pragma once
#include "gemv.cuh"

constexpr int kStages = 3;

template <int BITS, int TOKENS>
struct Stages {
    using P = Packing<BITS>;
    static constexpr int kTokens = 16 * TOKENS;                               // of the thread block
    static constexpr int kStep = P::kColumns > 128 ? P::kColumns : 128;       // columns of one stage
    static constexpr int kBlocks = kStep / P::kColumns, kUnits = kStep / 16;  // column blocks, 16-byte units
    int8_t* memory;

    NB_INLINE int8_t* unit(int stage, int token, int u) const {
        return memory + ((stage * kTokens + token) * kUnits + (u ^ (token & 7))) * 16;
    }
    NB_INLINE void fetch(const int8_t* x, int columns, int tokens, int first_token, int step) const {
        if (step * kStep < columns)
            for (int i = threadIdx.x; i < kTokens * kUnits; i += kBlock) {
                const int token = i / kUnits, u = i % kUnits, column = step * kStep + u * 16;
                const bool there = first_token + token < tokens && column < columns;
                const int64_t at = there ? static_cast<int64_t>(first_token + token) * columns + column : 0;
                copy_async(unit(step % kStages, token, u), x + at, there ? 16 : 0);
            }
        copy_commit();
    }
    // The words of one lane for token `token`, column block `block` of the stage.
    NB_INLINE void read(uint32_t (&out)[P::kWords], int stage, int token, int block) const {
        const int at = block * P::kColumns + threadIdx.x % 4 * (4 * P::kWords);
        if (P::kWords == 2) {
            load_words(out, unit(stage, token, at / 16) + at % 16);
            return;
        }
        NB_UNROLL
        for (int i = 0; i < P::kWords / 4; ++i) {
            const uint4 v = *reinterpret_cast<const uint4*>(unit(stage, token, at / 16 + i));
            out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
        }
    }
};

template <int BITS, int ROWS, int TOKENS, bool GROUPED>
__global__ void __launch_bounds__(kBlock, 1)
gemm(const uint4* weights, const int8_t* x, int columns, int blocks_per_group, int row_tiles,
     NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    using P = Packing<BITS>;
    using S = Stages<BITS, TOKENS>;
    NB_SHARED(int8_t, memory);
    const S stages{memory};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = columns / P::kColumns;
    const int first_tile = (blockIdx.x * 4 + warp / 2) * ROWS, first_token = blockIdx.y * S::kTokens;
    const int my_token = warp % 2 * 8 * TOKENS;  // within the thread block
    const int steps = (columns + S::kStep - 1) / S::kStep;

    auto fetch_weights = [&](uint4(&w)[S::kBlocks][ROWS], int step) {
        NB_UNROLL
        for (int b = 0; b < S::kBlocks; ++b)
            NB_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int block = step * S::kBlocks + b, tile = min(first_tile + r, row_tiles - 1);
                if (block < blocks) w[b][r] = weights[(static_cast<int64_t>(tile) * blocks + block) * 32 + lane];
            }
    };
    int sums[ROWS][TOKENS][4] = {};
    float totals[GROUPED ? ROWS : 1][GROUPED ? TOKENS : 1][4] = {};
    auto scale_group = [&](int group) {
        NB_UNROLL
        for (int r = 0; r < ROWS; ++r)
            NB_UNROLL
            for (int t = 0; t < TOKENS; ++t)
                NB_UNROLL
                for (int c = 0; c < 4; ++c) {
                    const int row = (first_tile + r) * 16 + tile_row(lane, c);
                    const int token = first_token + my_token + 8 * t + tile_token(lane, c);
                    if (row < out.rows && token < out.tokens) {
                        const float value = out.value(row, token, group, sums[r][t][c]);
                        float& total = totals[GROUPED ? r : 0][GROUPED ? t : 0][c];
                        total = __fadd_rn(GROUPED ? total : 0.0f, value);
                        if (!GROUPED) out.store(row, token, total);
                    }
                    sums[r][t][c] = 0;
                }
    };

    for (int s = 0; s < kStages - 1; ++s) stages.fetch(x, columns, out.tokens, first_token, s);
    uint4 next[S::kBlocks][ROWS];
    fetch_weights(next, 0);
    for (int step = 0; step < steps; ++step) {
        uint4 w[S::kBlocks][ROWS];
        NB_UNROLL
        for (int b = 0; b < S::kBlocks; ++b)
            NB_UNROLL
            for (int r = 0; r < ROWS; ++r) w[b][r] = next[b][r];
        if (step + 1 < steps) fetch_weights(next, step + 1);
        copy_wait<kStages - 2>();
        __syncthreads();  // this stage has landed, and everyone has left the stage fetched next
        stages.fetch(x, columns, out.tokens, first_token, step + kStages - 1);
        NB_UNROLL
        for (int b = 0; b < S::kBlocks; ++b) {
            const int block = step * S::kBlocks + b;
            if (block < blocks) {
                NB_UNROLL
                for (int t = 0; t < TOKENS; ++t) {
                    uint32_t words[P::kWords];
                    stages.read(words, step % kStages, my_token + 8 * t + lane / 4, b);
                    NB_UNROLL
                    for (int i = 0; i < P::kSteps; ++i) {
                        const uint32_t bytes[2] = {words[2 * i], words[2 * i + 1]};
                        NB_UNROLL
                        for (int r = 0; r < ROWS; ++r) {
                            const uint4 v = w[b][r];
                            const uint32_t a[4] = {v.x >> BITS * i & P::kMask, v.y >> BITS * i & P::kMask,
                                                   v.z >> BITS * i & P::kMask, v.w >> BITS * i & P::kMask};
                            mma_s8(sums[r][t], a, bytes);
                        }
                    }
                }
                if (GROUPED && (block + 1) % blocks_per_group == 0) scale_group(block / blocks_per_group);
            }
        }
    }
    if (!GROUPED) {
        scale_group(0);
        return;
    }
    NB_UNROLL
    for (int r = 0; r < ROWS; ++r)
        NB_UNROLL
        for (int t = 0; t < TOKENS; ++t)
            NB_UNROLL
            for (int c = 0; c < 4; ++c)
                out.store((first_tile + r) * 16 + tile_row(lane, c),
                          first_token + my_token + 8 * t + tile_token(lane, c),
                          totals[GROUPED ? r : 0][GROUPED ? t : 0][c]);
}
