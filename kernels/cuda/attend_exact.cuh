// Attention in the one order of sums that every backend keeps, so that all return the same bits: three passes
// (scores, context of each page, sum of the pages). attend.cuh is the fast one.
#pragma once
#include "floats.cuh"
#include "kv.cuh"

template <int STORED>
NB_INLINE float stored_value(const uint8_t* row, int d) {
    using R = Row<STORED>;
    if (STORED == kStoredFloat) return reinterpret_cast<const float*>(row)[d];
    if (STORED == kStoredHalf) return half_to_float(reinterpret_cast<const uint16_t*>(row)[d]);
    if (STORED == kStoredBf16) return bf16_to_float(reinterpret_cast<const uint16_t*>(row)[d]);
    const int block = d / (16 * R::kPerByte), inside = d % (16 * R::kPerByte);
    return static_cast<float>(R::code(row[block * 16 + inside % 16], inside / 16));
}

// exp(x) for x ≤ 0, rounded as nearbank.kernels.reference.exponential says.
NB_INLINE float exp_non_positive(float x) {
    if (x < -87.0f) return 0.0f;
    const float n = __fsub_rn(__fadd_rn(__fmul_rn(x, 1.4426950408889634f), 12582912.0f), 12582912.0f);
    const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    const float taylor[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                             4.1665795894e-2f, 1.6666665459e-1f, 0.5f};
    float poly = taylor[0];
    NB_UNROLL
    for (int i = 1; i < 6; ++i) poly = __fadd_rn(__fmul_rn(poly, r), taylor[i]);
    const float value = __fadd_rn(__fadd_rn(__fmul_rn(poly, __fmul_rn(r, r)), r), 1.0f);
    return __fmul_rn(value, __uint_as_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23));
}

// How far each query sees, and where: `start` + query + 1 tokens of one sequence, or ends[query] tokens of that one of
// the pool's which ids[query] names. tables [sequence][width], or null.
struct Seen {
    int start, width;
    const int *tables, *ids, *ends;
    NB_INLINE int length(int query) const { return ends ? ends[query] : start + query + 1; }
    NB_INLINE const int* table(int query) const {
        return tables ? tables + static_cast<int64_t>(ids ? ids[query] : 0) * width : nullptr;
    }
};

// Scores of one page for one query: half a warp per token. grid (pages, heads, queries), 256 threads.
template <int STORED>
__global__ void __launch_bounds__(256)
exact_scores(const float* q, const uint8_t* keys, const uint32_t* params, float* scores, float* peaks, float scale,
             int start, int most, int dim, int layer, int pages, int kv_heads, int row_bytes, int width,
             const int* tables, const int* ids, const int* ends) {
    NB_SHARED(float, lanes);
    const int query = blockIdx.z, head = blockIdx.y, heads = gridDim.y, kv = head / (heads / kv_heads);
    const Seen seen{start, width, tables, ids, ends};
    const int length = seen.length(query), lane = threadIdx.x % 16;
    const int64_t first = Pages{layer, pages, kv_heads, row_bytes, seen.table(query)}.slot(kv, blockIdx.x * kPage);
    const int64_t one = static_cast<int64_t>(query) * heads + head;
    const float* q_row = q + one * dim;
    float q_sum = 0.0f, peak = -INFINITY;
    for (int d = lane; d < dim; d += 16) q_sum = __fadd_rn(q_sum, q_row[d]);
    q_sum = fold_lanes(q_sum);
    for (int i = threadIdx.x / 16; i < kPage; i += 16) {
        const int token = blockIdx.x * kPage + i;
        const uint8_t* row = keys + (first + i) * row_bytes;
        float dot = 0.0f;
        if (token < length)
            for (int d = lane; d < dim; d += 16)
                dot = __fadd_rn(dot, __fmul_rn(q_row[d], stored_value<STORED>(row, d)));
        dot = fold_lanes(dot);
        if (token < length && lane == 0) {
            float score = dot;
            if (!Row<STORED>::kIsFloat) {
                const uint32_t param = params[first + i];
                score = __fadd_rn(__fmul_rn(dot, bf16_to_float(param & 0xffff)),
                                  __fmul_rn(bf16_to_float(param >> 16), q_sum));
            } else {
                score = __fadd_rn(dot, __fmul_rn(0.0f, q_sum));
            }
            score = __fmul_rn(score, scale);
            scores[one * most + token] = score;
            peak = Largest::of(peak, score);
        }
    }
    peak = fold_block<Largest>(peak, lanes);
    if (threadIdx.x == 0) peaks[one * gridDim.x + blockIdx.x] = peak;
}

// Σ weight · v within one page, token by token; and in lanes Σ weight · offset and Σ weight. Same grid.
template <int STORED>
__global__ void __launch_bounds__(256)
exact_pages(const uint8_t* values, const uint32_t* params, const float* scores, const float* peaks, float* totals,
            float* sums, int start, int most, int dim, int layer, int pages, int kv_heads, int row_bytes, int width,
            const int* tables, const int* ids, const int* ends) {
    NB_SHARED(float, lanes);
    float* weights = lanes + 256;
    float* scaled = weights + kPage;
    float* offsets = scaled + kPage;
    const int query = blockIdx.z, head = blockIdx.y, heads = gridDim.y, kv = head / (heads / kv_heads);
    const Seen seen{start, width, tables, ids, ends};
    const int first = blockIdx.x * kPage, count = min(seen.length(query) - first, kPage);
    const int64_t one = static_cast<int64_t>(query) * heads + head;
    if (count <= 0) return;  // the whole block
    const int64_t slot = Pages{layer, pages, kv_heads, row_bytes, seen.table(query)}.slot(kv, first);
    const uint8_t* rows = values + slot * row_bytes;
    float peak = -INFINITY;
    for (int p = threadIdx.x; p < static_cast<int>(gridDim.x); p += 256)
        peak = Largest::of(peak, peaks[one * gridDim.x + p]);
    peak = fold_block<Largest>(peak, lanes);
    const int i = threadIdx.x;
    float weight = 0.0f, scale = 1.0f, offset = 0.0f;
    if (i < count) {
        weight = exp_non_positive(__fsub_rn(scores[one * most + first + i], peak));
        if (!Row<STORED>::kIsFloat) {
            const uint32_t param = params[slot + i];
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
        for (int j = 0; j < count; ++j)
            total = __fadd_rn(total, __fmul_rn(scaled[j], stored_value<STORED>(rows + j * row_bytes, d)));
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

// The pages added in order. grid (heads, queries).
__global__ void __launch_bounds__(128)
exact_total(const float* totals, const float* sums, float* out, int start, int pages, int dim, const int* ends) {
    const int used = pages_for(Seen{start, 0, nullptr, nullptr, ends}.length(blockIdx.y));
    const int64_t one = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    float offset = 0.0f, mass = 0.0f;
    for (int p = 0; p < used; ++p) {
        offset = __fadd_rn(offset, sums[(one * pages + p) * 2]);
        mass = __fadd_rn(mass, sums[(one * pages + p) * 2 + 1]);
    }
    for (int d = threadIdx.x; d < dim; d += 128) {
        float total = 0.0f;
        for (int p = 0; p < used; ++p) total = __fadd_rn(total, totals[(one * pages + p) * dim + d]);
        out[one * dim + d] = __fdiv_rn(__fadd_rn(total, offset), mass);
    }
}
