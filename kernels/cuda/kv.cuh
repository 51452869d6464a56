// The KV cache's memory: where a token's row lies, how it is quantised, and the append that does it once.
//
// Pages are [layer][page][kv head][256 tokens][row]. A row of 4-bit codes is blocks of 16 bytes; byte i of a block
// has value i in its low half and value i + 16 in its high half (2 bits: four values). Scale and offset, both
// bfloat16, lie in pairs beside: value = offset + scale · code.
// Sequences of a pool share the pages of a layer; each has a row in `tables` that says which are its own.
#pragma once
#include "quantise.cuh"

constexpr int kPage = 256;
enum Stored { kStored2 = 2, kStored4 = 4, kStored8 = 8, kStoredHalf = 16, kStoredBf16 = 17, kStoredFloat = 32 };

template <int STORED>
struct Row {
    static constexpr bool kIsFloat = STORED >= 16;
    static constexpr int kBytesPerFloat = STORED == kStoredFloat ? 4 : 2;
    static constexpr int kPerByte = kIsFloat ? 1 : 8 / (kIsFloat ? 8 : STORED);
    // The dimension at place p of byte b.
    NB_INLINE static int dimension(int byte, int place) { return byte / 16 * 16 * kPerByte + place * 16 + byte % 16; }
    NB_INLINE static int code(uint32_t byte, int place) {
        return byte >> (kIsFloat ? 0 : STORED) * place & ((1u << (kIsFloat ? 8 : STORED)) - 1);
    }
};

// `table`: a sequence's pages in order; ~page where others hold the page too; null where page i is i itself.
struct Pages {
    int layer, pages, heads, row_bytes;
    const int* table = nullptr;
    NB_INLINE int page_of(int token) const {
        if (!table) return token / kPage;
        const int entry = table[token / kPage];
        return max(entry, ~entry);
    }
    NB_INLINE int64_t slot(int head, int token) const {  // counts rows
        const int64_t page = static_cast<int64_t>(layer) * pages + page_of(token);
        return (page * heads + head) * kPage + token % kPage;
    }
    NB_INLINE int64_t row(int head, int token) const { return slot(head, token) * row_bytes; }
    // Whether the pages of these tokens are there and nobody else's.
    NB_INLINE bool writable(int token, int count) const {
        bool all = true;
        for (int i = token / kPage; table && i * kPage < token + count; ++i) all = all && table[i] >= 0;
        return all;
    }
};

NB_INLINE int pages_for(int tokens) { return (tokens + kPage - 1) / kPage; }

template <class Op>
NB_INLINE float fold_warp(float value) {
    for (int half = 16; half > 0; half /= 2) value = Op::of(value, __shfl_xor_sync(NB_ALL, value, half));
    return value;
}

// One warp writes one row; lanes take bytes (or values) in turn. `source` is that row of k or v.
template <int STORED, int KIND>
NB_INLINE void write_row(const void* source, int64_t first, int dim, uint8_t* row, uint32_t* param, int row_bytes,
                         int top) {
    using R = Row<STORED>;
    const int lane = threadIdx.x % 32;
    if (R::kIsFloat) {
        for (int d = lane; d < row_bytes / R::kBytesPerFloat; d += 32) {
            const float value = d < dim ? read_float<KIND>(source, first + d) : 0.0f;
            if (STORED == kStoredFloat) reinterpret_cast<float*>(row)[d] = value;
            if (STORED == kStoredHalf) reinterpret_cast<uint16_t*>(row)[d] = float_to_half(value);
            if (STORED == kStoredBf16)
                reinterpret_cast<uint16_t*>(row)[d] = static_cast<uint16_t>(float_to_bf16(value));
        }
        return;
    }
    const float start = read_float<KIND>(source, first);
    float least = start, most = start;
    for (int d = lane; d < dim; d += 32) {
        const float value = read_float<KIND>(source, first + d);
        most = Largest::of(most, value);
        least = value < least ? value : least;
    }
    most = fold_warp<Largest>(most);
    least = -fold_warp<Largest>(-least);
    const uint32_t offset_bits = floor_bf16(least);
    const float offset = bf16_to_float(offset_bits);
    const uint32_t scale_bits = ceil_bf16(__fdiv_rn(__fsub_rn(most, offset), static_cast<float>(top)));
    const float scale = bf16_to_float(scale_bits);
    for (int b = lane; b < row_bytes; b += 32) {
        uint32_t byte = 0;
        NB_UNROLL_BY(1)
        for (int place = 0; place < R::kPerByte; ++place) {
            const int d = R::dimension(b, place);
            float code = 0.0f;
            if (d < dim && scale != 0.0f)
                code = round_even(__fdiv_rn(__fsub_rn(read_float<KIND>(source, first + d), offset), scale));
            code = min(max(code, 0.0f), static_cast<float>(top));
            byte |= static_cast<uint32_t>(code) << (R::kIsFloat ? 0 : STORED) * place;
        }
        row[b] = static_cast<uint8_t>(byte);
    }
    if (lane == 0) *param = scale_bits | offset_bits << 16;
}

// k, v [tokens, heads, dim] behind the tokens that lengths[layer] counts. One warp per (token, head), blockIdx.z
// chooses k or v. The last block to finish adds to lengths[layer], so a captured graph can be played again; a
// length above `capacity` stays as a mark that nothing was written.
// PAGED: k, v [sequences, tokens, heads, dim] of those that `ids` names (null: the one there is), blockIdx.y of them,
// each with its row of tables [sequence][pages of capacity] and of lengths [sequence][layer]. 10 blocks a multiprocessor
// at least: without a number the compiler wants 16, and spills.
template <int STORED, int KIND, bool PAGED = false>
__global__ void __launch_bounds__(128, PAGED ? 10 : 0)
append_rows(const void* k, const void* v, uint8_t* keys, uint8_t* values, uint32_t* key_params,
            uint32_t* value_params, int* lengths, int* finished, int tokens, int dim, int layer, int pages,
            int heads, int row_bytes, int capacity, int top, const int* tables, const int* ids, int layers) {
    wait_for_previous();
    let_next_begin();
    const int id = PAGED && ids ? ids[blockIdx.y] : 0, counter = id * layers + layer;
    const int start = lengths[counter], pair = blockIdx.x * 4 + threadIdx.x / 32;
    const int64_t table = static_cast<int64_t>(id) * pages_for(capacity);
    const Pages at{layer, pages, heads, row_bytes, PAGED ? tables + table : nullptr};
    const bool fits = start + tokens <= capacity && at.writable(start, tokens);
    if (pair < tokens * heads && fits) {
        const int token = pair / heads, head = pair % heads;
        const int64_t row = at.row(head, start + token), slot = at.slot(head, start + token);
        const int64_t first = (PAGED ? static_cast<int64_t>(blockIdx.y) * tokens * heads + pair : pair) * dim;
        if (blockIdx.z == 0)
            write_row<STORED, KIND>(k, first, dim, keys + row, key_params + slot, row_bytes, top);
        else
            write_row<STORED, KIND>(v, first, dim, values + row, value_params + slot, row_bytes, top);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const int blocks = static_cast<int>(gridDim.x) * 2;
        if (atomicAdd(&finished[counter], 1) == blocks - 1) {
            finished[counter] = 0;
            lengths[counter] = (fits || !PAGED ? start : max(start, capacity)) + tokens;
        }
    }
}
