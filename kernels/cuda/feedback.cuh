// Rounding with errors fed back (nearbank.kernels.reference.feedback): a block per token and head, a warp for each of
// the nine ranges of codes; the warp of the cheapest writes the row. Channels are rounded one after the other by the
// whole warp, whose lanes then take the error over into the channels to come. Shares lie in shared memory, a few
// channels' at a time.
#pragma once
#include "window.cuh"

constexpr int kRanges = 9, kRangeThreads = 32 * kRanges, kSharesAhead = 16;

// What a range leaves out at one end, of the token's whole: trims 0, 1 and 2 of the definition.
NB_INLINE float trim(int number) { return number == 0 ? 0.0f : number == 1 ? 0.06f : 0.12f; }

struct CodeRange {
    uint32_t scale_bits, offset_bits;
    // Of a token over least … most, both ends trimmed.
    NB_INLINE static CodeRange of(float least, float most, int number, int top) {
        const float below = trim(number / 3), above = trim(number % 3);
        const float low = __fadd_rn(least, __fsub_rn(__fmul_rn(below, most), __fmul_rn(below, least)));
        const float high = __fsub_rn(most, __fsub_rn(__fmul_rn(above, most), __fmul_rn(above, least)));
        const uint32_t offset = floor_bf16(low);
        const float width = __fsub_rn(high, bf16_to_float(offset));
        return {ceil_bf16(__fdiv_rn(width, static_cast<float>(top))), offset};
    }
    NB_INLINE float scale() const { return bf16_to_float(scale_bits); }
    NB_INLINE float inverse() const { return scale() != 0.0f ? __fdiv_rn(1.0f, scale()) : 0.0f; }
};

// The range of one warp: x [dim] in steps becomes codes. Returns their cost. All warps of the block call it.
NB_INLINE float round_fed_back(float* x, const float* shares, const float* weights, float* staged, int dim, int top) {
    const int lane = threadIdx.x % 32;
    float cost = 0.0f;
    for (int first = 0; first < dim; first += kSharesAhead) {
        const int end = min(first + kSharesAhead, dim);
        __syncthreads();
        for (int i = threadIdx.x; i < (end - first) * dim; i += kRangeThreads)
            staged[i] = shares[static_cast<int64_t>(first) * dim + i];
        __syncthreads();
        for (int k = first; k < end; ++k) {
            const float here = x[k];
            const float code = round_even(min(max(here, 0.0f), static_cast<float>(top)));
            const float error = __fsub_rn(here, code);
            const float* share = staged + (k - first) * dim;
            for (int j = k + 1 + lane; j < dim; j += 32) x[j] = __fsub_rn(x[j], __fmul_rn(share[j], error));
            const float weighted = __fmul_rn(error, weights[k]);
            cost = __fadd_rn(cost, __fmul_rn(weighted, weighted));
            __syncwarp();
            if (lane == 0) x[k] = code;
        }
    }
    return cost;
}

// The codes x [dim] of one warp into a row of bytes.
template <int STORED>
NB_INLINE void pack_codes(const float* x, uint8_t* row, int dim, int row_bytes) {
    using R = Row<STORED>;
    for (int b = threadIdx.x % 32; b < row_bytes; b += 32) {
        uint32_t byte = 0;
        NB_UNROLL
        for (int place = 0; place < R::kPerByte; ++place) {
            const int d = R::dimension(b, place);
            if (d < dim) byte |= static_cast<uint32_t>(x[d]) << STORED * place;
        }
        row[b] = static_cast<uint8_t>(byte);
    }
}

// What window_keep put in the ring: keys where there are key_shares, values where there are value_shares (blockIdx.z).
// Before window_round, which counts the tokens. grid (tokens · heads, 1, 2); shared memory: feedback_bytes on the host.
template <int STORED>
__global__ void __launch_bounds__(kRangeThreads)
feed_back(const float* ring_keys, const float* ring_values, uint8_t* keys, uint8_t* values, uint32_t* key_params,
          uint32_t* value_params, const float* key_shares, const float* key_weights, const float* value_shares,
          const float* value_weights, const int* lengths, int tokens, int dim, int layer, int pages, int heads,
          int row_bytes, int capacity, int top, int ring_rows) {
    NB_SHARED(float, staged);
    float* costs = staged + kSharesAhead * dim;
    float* every = costs + kRanges;
    const float* shares = blockIdx.z ? value_shares : key_shares;
    const int start = lengths[layer];
    if (!shares || start + tokens > capacity) return;  // the whole block
    const int token = start + static_cast<int>(blockIdx.x) / heads, head = blockIdx.x % heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float* source = (blockIdx.z ? ring_values : ring_keys) + Window{0, 0, ring_rows}.ring(head, token, dim);
    float least = source[0], most = least;
    for (int d = lane; d < dim; d += 32) {
        most = Largest::of(most, source[d]);
        least = source[d] < least ? source[d] : least;
    }
    most = __fadd_rn(fold_warp<Largest>(most), 0.0f);  // no zero is negative
    least = __fadd_rn(-fold_warp<Largest>(-least), 0.0f);
    const auto range = CodeRange::of(least, most, warp, top);
    const float offset = bf16_to_float(range.offset_bits), inverse = range.inverse();
    float* x = every + warp * dim;
    for (int d = lane; d < dim; d += 32) x[d] = __fmul_rn(__fsub_rn(source[d], offset), inverse);
    const float* weights = (blockIdx.z ? value_weights : key_weights) + head * dim;
    const float cost =
        round_fed_back(x, shares + static_cast<int64_t>(head) * dim * dim, weights, staged, dim, top);
    if (lane == 0) costs[warp] = __fmul_rn(__fmul_rn(cost, range.scale()), range.scale());
    __syncthreads();
    int best = 0;
    for (int other = 1; other < kRanges; ++other) best = costs[other] < costs[best] ? other : best;
    if (warp != best) return;
    const Pages at{layer, pages, heads, row_bytes};
    pack_codes<STORED>(x, (blockIdx.z ? values : keys) + at.row(head, token), dim, row_bytes);
    if (lane == 0)
        (blockIdx.z ? value_params : key_params)[at.slot(head, token)] = range.scale_bits | range.offset_bits << 16;
}
