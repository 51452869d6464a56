// Caches whose newest tokens are exact (nearbank.kernels.window): their memory, their append, and attention in the
// one order of sums that every backend keeps. Exact rows lie in a ring of a power of two rows per KV head: the
// token at position p in row p & (rows − 1). `keep` exact tokens stay in it, and all of the newest append.
//
// key_group 0 (past-only): keys and values per token, params as in kv.cuh. Otherwise (KIVI) keys of finished groups
// share a scale and an offset per channel, bfloat16 [layer][page][kv head][256 / key_group][2][dim].
#pragma once
#include "attend_exact.cuh"

struct Window {
    int key_group, keep, ring_rows;
    // What the query behind `length` tokens sees rounded.
    NB_INLINE int keys_end(int length) const {
        return key_group ? (length - 1) / key_group * key_group : length - 1;
    }
    NB_INLINE int values_end(int length) const { return key_group ? max(0, length - keep) : length - 1; }
    NB_INLINE int64_t ring(int head, int token, int dim) const {
        return (static_cast<int64_t>(head) * ring_rows + (token & (ring_rows - 1))) * dim;
    }
    NB_INLINE int64_t group(const Pages& at, int head, int token, int dim) const {
        const int64_t page = static_cast<int64_t>(at.layer) * at.pages + token / kPage;
        return ((page * at.heads + head) * (kPage / key_group) + token % kPage / key_group) * 2 * dim;
    }
};

// Bits of one scale or offset after the other in uint16 memory.
NB_INLINE float channel_value(const uint16_t* params, int64_t at) { return bf16_to_float(params[at]); }

// The last `keep` exact rows before lengths[layer], from one ring into another. grid (heads, keep, 2), 128 threads.
__global__ void __launch_bounds__(128)
window_move(const float* old_keys, const float* old_values, float* keys, float* values, const int* lengths, int layer,
            int dim, int old_rows, int rows) {
    const int token = lengths[layer] - 1 - static_cast<int>(blockIdx.y), head = blockIdx.x;
    if (token < 0) return;
    const int64_t from = Window{0, 0, old_rows}.ring(head, token, dim), to = Window{0, 0, rows}.ring(head, token, dim);
    const float* source = blockIdx.z ? old_values : old_keys;
    float* target = blockIdx.z ? values : keys;
    for (int d = threadIdx.x; d < dim; d += 128) target[to + d] = source[from + d];
}

// New k, v [tokens, heads, dim] into the ring, each channel shifted and scaled where there are shifts. One warp per
// (token, head), blockIdx.z chooses k or v.
template <int KIND>
__global__ void __launch_bounds__(128)
window_keep(const void* k, const void* v, float* keys, float* values, const float* key_shift, const float* key_scale,
            const float* value_shift, const float* value_scale, const int* lengths, int tokens, int dim, int layer,
            int heads, int ring_rows, int capacity) {
    const int start = lengths[layer], pair = blockIdx.x * 4 + threadIdx.x / 32;
    if (pair >= tokens * heads || start + tokens > capacity) return;
    const int token = pair / heads, head = pair % heads, channel = head * dim;
    const void* source = blockIdx.z ? v : k;
    const float* shift = blockIdx.z ? value_shift : key_shift;
    const float* scale = blockIdx.z ? value_scale : key_scale;
    float* row = (blockIdx.z ? values : keys) + Window{0, 0, ring_rows}.ring(head, start + token, dim);
    for (int d = threadIdx.x % 32; d < dim; d += 32) {
        float value = read_float<KIND>(source, static_cast<int64_t>(pair) * dim + d);
        if (shift) value = __fdiv_rn(__fsub_rn(value, shift[channel + d]), scale[channel + d]);
        row[d] = value;
    }
}

// One block rounds the keys of a finished group channel by channel.
template <int STORED>
NB_INLINE void round_group(const float* keys, uint8_t* rows, uint16_t* params, const Window& window, const Pages& at,
                           int head, int first, int dim, int top) {
    using R = Row<STORED>;
    const int64_t param = window.group(at, head, first, dim);
    for (int d = threadIdx.x; d < dim; d += 128) {
        float least = keys[window.ring(head, first, dim) + d], most = least;
        for (int i = 1; i < window.key_group; ++i) {
            const float value = keys[window.ring(head, first + i, dim) + d];
            most = Largest::of(most, value);
            least = value < least ? value : least;
        }
        const uint32_t offset = floor_bf16(least);
        const float width = __fsub_rn(most, bf16_to_float(offset));
        params[param + d] = static_cast<uint16_t>(ceil_bf16(__fdiv_rn(width, static_cast<float>(top))));
        params[param + dim + d] = static_cast<uint16_t>(offset);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < window.key_group * at.row_bytes; i += 128) {
        const int token = first + i / at.row_bytes, b = i % at.row_bytes;
        uint32_t byte = 0;
        NB_UNROLL_BY(1)
        for (int place = 0; place < R::kPerByte; ++place) {
            const int d = R::dimension(b, place);
            if (d >= dim) continue;
            const float scale = channel_value(params, param + d), offset = channel_value(params, param + dim + d);
            float code = 0.0f;
            if (scale != 0.0f)
                code = round_even(__fdiv_rn(__fsub_rn(keys[window.ring(head, token, dim) + d], offset), scale));
            byte |= static_cast<uint32_t>(min(max(code, 0.0f), static_cast<float>(top))) << STORED * place;
        }
        rows[at.row(head, token) + b] = static_cast<uint8_t>(byte);
    }
}

// What window_keep put in the ring, rounded once: values and past-only keys token by token, other keys group by group.
// blockIdx.z chooses keys or values; feedback.cuh has written those with bit z of `written`. The last block to finish
// adds to lengths[layer], as in append_rows.
template <int STORED>
__global__ void __launch_bounds__(128)
window_round(const float* ring_keys, const float* ring_values, uint8_t* keys, uint8_t* values, void* key_params,
             uint32_t* value_params, int* lengths, int* finished, int tokens, int dim, int layer, int pages, int heads,
             int row_bytes, int capacity, int top, int key_group, int ring_rows, int written) {
    const int start = lengths[layer], pair = blockIdx.x * 4 + threadIdx.x / 32;
    const Pages at{layer, pages, heads, row_bytes};
    const Window window{key_group, 0, ring_rows};
    const bool fits = start + tokens <= capacity && !(written >> blockIdx.z & 1), by_group = key_group && blockIdx.z == 0;
    if (fits && by_group) {
        const int group = start / key_group + static_cast<int>(blockIdx.x) / heads;
        if (group < (start + tokens) / key_group)
            round_group<STORED>(ring_keys, keys, static_cast<uint16_t*>(key_params), window, at,
                                static_cast<int>(blockIdx.x) % heads, group * key_group, dim, top);
    }
    if (fits && !by_group && pair < tokens * heads) {
        const int token = start + pair / heads, head = pair % heads;
        const float* source = blockIdx.z ? ring_values : ring_keys;
        uint8_t* rows = blockIdx.z ? values : keys;
        uint32_t* params = blockIdx.z ? value_params : static_cast<uint32_t*>(key_params);
        write_row<STORED, kFloat32>(source, window.ring(head, token, dim), dim, rows + at.row(head, token),
                                    params + at.slot(head, token), row_bytes, top);
    }
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(&finished[layer], 1) == static_cast<int>(gridDim.x) * 2 - 1) {
        finished[layer] = 0;
        lengths[layer] = start + tokens;
    }
}

// Scores of one page of positions for one query: half a warp per token. grid (pages, heads, queries), 256 threads.
template <int STORED>
__global__ void __launch_bounds__(256)
window_scores(const float* q, const float* q_scale, const uint8_t* keys, const void* params, const float* ring,
              float* scores, float* peaks, float scale, int start, int most, int dim, int layer, int pages,
              int kv_heads, int row_bytes, int key_group, int keep, int ring_rows) {
    NB_SHARED(float, lanes);
    const int query = blockIdx.z, head = blockIdx.y, heads = gridDim.y, kv = head / (heads / kv_heads);
    const int length = start + query + 1, lane = threadIdx.x % 16;
    const Pages at{layer, pages, kv_heads, row_bytes};
    const Window window{key_group, keep, ring_rows};
    const int rounded = window.keys_end(length);
    const int64_t one = static_cast<int64_t>(query) * heads + head;
    const auto q_at = [&](int d) {
        return q_scale ? __fmul_rn(q[one * dim + d], q_scale[kv * dim + d]) : q[one * dim + d];
    };
    float q_sum = 0.0f, peak = -INFINITY;
    for (int d = lane; d < dim; d += 16) q_sum = __fadd_rn(q_sum, q_at(d));
    q_sum = fold_lanes(q_sum);
    for (int i = threadIdx.x / 16; i < kPage; i += 16) {
        const int token = blockIdx.x * kPage + i;
        const bool exact = token >= rounded, here = token < length;
        const uint16_t* channels = static_cast<const uint16_t*>(params);
        const int64_t group = key_group && here && !exact ? window.group(at, kv, token, dim) : 0;
        float dot = 0.0f, shift = 0.0f;
        for (int d = lane; here && d < dim; d += 16) {
            const float value = exact ? ring[window.ring(kv, token, dim) + d]
                                      : stored_value<STORED>(keys + at.row(kv, token), d);
            float factor = q_at(d);
            if (key_group && !exact) {
                shift = __fadd_rn(shift, __fmul_rn(factor, channel_value(channels, group + dim + d)));
                factor = __fmul_rn(factor, channel_value(channels, group + d));
            }
            dot = __fadd_rn(dot, __fmul_rn(factor, value));
        }
        dot = fold_lanes(dot);
        shift = fold_lanes(shift);
        if (here && lane == 0) {
            float score = dot;
            if (!exact && key_group) score = __fadd_rn(dot, shift);
            if (!exact && !key_group) {
                const uint32_t param = static_cast<const uint32_t*>(params)[at.slot(kv, token)];
                score = __fadd_rn(__fmul_rn(dot, bf16_to_float(param & 0xffff)),
                                  __fmul_rn(bf16_to_float(param >> 16), q_sum));
            }
            score = __fmul_rn(score, scale);
            scores[one * most + token] = score;
            peak = Largest::of(peak, score);
        }
    }
    peak = fold_block<Largest>(peak, lanes);
    if (threadIdx.x == 0) peaks[one * gridDim.x + blockIdx.x] = peak;
}

// Σ weight · v of each page's rounded values, token by token, and in lanes Σ weight · offset and Σ weight; the last
// block along x does so for the exact values. grid (pages + 1, heads, queries).
template <int STORED>
__global__ void __launch_bounds__(256)
window_pages(const uint8_t* values, const uint32_t* params, const float* ring, const float* scores, const float* peaks,
             float* totals, float* sums, int start, int most, int dim, int layer, int pages, int kv_heads,
             int row_bytes, int key_group, int keep, int ring_rows) {
    NB_SHARED(float, lanes);
    float* weights = lanes + 256;
    float* scaled = weights + kPage;
    float* offsets = scaled + kPage;
    const int query = blockIdx.z, head = blockIdx.y, heads = gridDim.y, kv = head / (heads / kv_heads);
    const Pages at{layer, pages, kv_heads, row_bytes};
    const Window window{key_group, keep, ring_rows};
    const int length = start + query + 1, rounded = window.values_end(length), used = gridDim.x - 1;
    const bool exact = static_cast<int>(blockIdx.x) == used;
    const int first = exact ? rounded : blockIdx.x * kPage;
    const int count = exact ? length - rounded : min(rounded - first, kPage);
    const int64_t one = static_cast<int64_t>(query) * heads + head;
    if (count <= 0) return;  // the whole block
    float peak = -INFINITY;
    for (int p = threadIdx.x; p < used; p += 256) peak = Largest::of(peak, peaks[one * used + p]);
    peak = fold_block<Largest>(peak, lanes);
    const int i = threadIdx.x;
    float weight = 0.0f, scale = 1.0f, offset = 0.0f;
    if (i < count) {
        weight = exp_non_positive(__fsub_rn(scores[one * most + first + i], peak));
        if (!exact) {
            const uint32_t param = params[at.slot(kv, first + i)];
            scale = bf16_to_float(param & 0xffff);
            offset = bf16_to_float(param >> 16);
        }
    }
    weights[i] = weight;
    scaled[i] = __fmul_rn(weight, scale);
    offsets[i] = __fmul_rn(weight, offset);
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += 256) {
        float total = 0.0f;
        for (int j = 0; j < count; ++j) {
            const float value = exact ? ring[window.ring(kv, first + j, dim) + d]
                                      : stored_value<STORED>(values + at.row(kv, first + j), d);
            total = __fadd_rn(total, __fmul_rn(scaled[j], value));
        }
        totals[(one * gridDim.x + blockIdx.x) * dim + d] = total;
    }
    if (threadIdx.x < 32) {
        const float* terms = threadIdx.x < 16 ? offsets : weights;
        float sum = 0.0f;
        for (int j = threadIdx.x % 16; j < count; j += 16) sum = __fadd_rn(sum, terms[j]);
        sum = fold_lanes(sum);
        if (threadIdx.x % 16 == 0) sums[(one * gridDim.x + blockIdx.x) * 2 + threadIdx.x / 16] = sum;
    }
}

// The pages added in order, then the exact values; channels put back where there are any. grid (heads, queries).
__global__ void __launch_bounds__(128)
window_total(const float* totals, const float* sums, const float* value_shift, const float* value_scale, float* out,
             int start, int used, int dim, int kv_heads, int key_group, int keep) {
    const int head = blockIdx.x, query = blockIdx.y, kv = head / (static_cast<int>(gridDim.x) / kv_heads);
    const int pages = (Window{key_group, keep, 1}.values_end(start + query + 1) + kPage - 1) / kPage;
    const int64_t one = static_cast<int64_t>(query) * gridDim.x + head;
    float offset = 0.0f, mass = 0.0f;
    for (int p = 0; p < pages; ++p) {
        offset = __fadd_rn(offset, sums[(one * (used + 1) + p) * 2]);
        mass = __fadd_rn(mass, sums[(one * (used + 1) + p) * 2 + 1]);
    }
    mass = __fadd_rn(mass, sums[(one * (used + 1) + used) * 2 + 1]);
    for (int d = threadIdx.x; d < dim; d += 128) {
        float total = 0.0f;
        for (int p = 0; p < pages; ++p) total = __fadd_rn(total, totals[(one * (used + 1) + p) * dim + d]);
        total = __fadd_rn(total, totals[(one * (used + 1) + used) * dim + d]);
        float value = __fdiv_rn(__fadd_rn(total, offset), mass);
        if (value_shift) value = __fadd_rn(__fmul_rn(value, value_scale[kv * dim + d]), value_shift[kv * dim + d]);
        out[one * dim + d] = value;
    }
}
