// y = x · Wᵀ for few tokens and one scale per row, when there are enough rows for every multiprocessor: a thread
// block finishes 16 · ROWS rows by itself, its warps taking column blocks in turn, so nothing meets in memory.
//
// DEPTH loads of weights (an even number) are on their way before the kernel waits for the one before it: weights
// depend on nobody. RESIDENT blocks share a multiprocessor.
#pragma once
#include "gemv.cuh"

template <int BITS, int ROWS, int TOKENS, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(kBlock, RESIDENT)
gemv_rows(const uint4* weights, const int8_t* x, int columns, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    NB_SHARED(int, gathered);
    using P = Packing<BITS>;
    constexpr int kOutputs = 128 * ROWS * TOKENS, kMine = ROWS * TOKENS / 2 + 1;
    const int warp = threadIdx.x / 32, blocks = columns / P::kColumns;
    const int count = (blocks - warp + kWarps - 1) / kWarps;  // column blocks of this warp
    const int64_t tile = static_cast<int64_t>(blocks) * 32;
    const uint4* mine_w = weights + blockIdx.x * ROWS * tile + warp * 32;
    const int8_t* mine_x = x + warp * P::kColumns;

    Weights<BITS, ROWS> held[DEPTH];
    NB_UNROLL
    for (int d = 0; d < DEPTH; ++d)
        if (d < count) held[d].load(mine_w + d * kWarps * 32, tile);
    RowTerms terms[kMine];
    NB_UNROLL
    for (int i = 0; i * kBlock < kOutputs; ++i)
        terms[i] = out.row_terms(blockIdx.x * 16 * ROWS + (i * kBlock + threadIdx.x) / (8 * TOKENS), 0);
    wait_for_previous();
    let_next_begin();

    Slice<BITS, TOKENS> slices[2];
    if (count > 0) slices[0].load(mine_x, columns, out.tokens);
    int sums[ROWS][TOKENS][4] = {};
    for (int i = 0; i < count; i += DEPTH) {
        NB_UNROLL
        for (int d = 0; d < DEPTH; ++d) {
            const int now = i + d;
            if (now >= count) continue;
            if (now + 1 < count)
                slices[(d + 1) % 2].load(mine_x + (now + 1) * kWarps * P::kColumns, columns, out.tokens);
            multiply(sums, held[d], slices[d % 2]);
            if (now + DEPTH < count) held[d].load(mine_w + (now + DEPTH) * kWarps * 32, tile);
        }
    }
    int mine[kMine];
    gather_warps<ROWS, TOKENS>(sums, gathered, mine);
    NB_UNROLL
    for (int i = 0; i * kBlock < kOutputs; ++i) {
        const int at = i * kBlock + threadIdx.x, token = at % (8 * TOKENS);
        const int row = blockIdx.x * 16 * ROWS + at / (8 * TOKENS);
        if (at < kOutputs && row < out.rows && token < out.tokens)
            out.store(row, token, __fadd_rn(0.0f, out.value(terms[i], token, 0, mine[i])));
    }
}
