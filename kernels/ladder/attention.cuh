// Decode attention over an int4 cache, from the first idea to the kernel in use: one new token, all its heads.
//
// All rungs take q [heads, dim] and one layer's pages as ../cuda/kv.cuh describes them, and write out [heads, dim].
// They differ in the order of their sums, so their last bits differ. The table in `nearbank.kernels.ladder` says
// what each rung is about.
#pragma once
#include "attend_exact.cuh"

#define NB_ATTEND_RUNG                                                                                              \
    const float *q, const uint8_t *keys, const uint8_t *values, const uint32_t *key_params,                         \
        const uint32_t *value_params, float *out, float *scratch, float scale, int length, int heads, int dim,      \
        int pages, int kv_heads

struct Int4Rows {
    Pages at;
    const uint8_t* rows;
    const uint32_t* params;
    NB_INLINE float value(int head, int token, int d) const {
        const uint32_t param = params[at.slot(head, token)];
        const float code = stored_value<kStored4>(rows + at.row(head, token), d);
        return bf16_to_float(param >> 16) + bf16_to_float(param & 0xffff) * code;
    }
};

// Rung 0. One thread per head, three passes over the cache: scores, their peak, the weighted sum.
__global__ void attend_thread_per_head(NB_ATTEND_RUNG) {
    const int head = blockIdx.x * blockDim.x + threadIdx.x, kv = head / (heads / kv_heads);
    if (head >= heads) return;
    const Pages at{0, pages, kv_heads, (dim + 31) / 32 * 16};
    const Int4Rows k{at, keys, key_params}, v{at, values, value_params};
    float* scores = scratch + static_cast<int64_t>(head) * length;
    float peak = -INFINITY, mass = 0.0f;
    for (int j = 0; j < length; ++j) {
        float score = 0.0f;
        for (int d = 0; d < dim; ++d) score += q[head * dim + d] * k.value(kv, j, d);
        scores[j] = score * scale;
        peak = Largest::of(peak, scores[j]);
    }
    for (int j = 0; j < length; ++j) mass += scores[j] = power_of_two((scores[j] - peak) * 1.4426950408889634f);
    for (int d = 0; d < dim; ++d) {
        float sum = 0.0f;
        for (int j = 0; j < length; ++j) sum += scores[j] * v.value(kv, j, d);
        out[head * dim + d] = sum / mass;
    }
}

// Rung 1. One block per head: a thread per token for the scores, then a thread per dimension for the sum.
__global__ void __launch_bounds__(256) attend_block_per_head(NB_ATTEND_RUNG) {
    NB_SHARED(float, lanes);
    const int head = blockIdx.x, kv = head / (heads / kv_heads);
    const Pages at{0, pages, kv_heads, (dim + 31) / 32 * 16};
    const Int4Rows k{at, keys, key_params}, v{at, values, value_params};
    float* scores = scratch + static_cast<int64_t>(head) * length;
    float peak = -INFINITY, mass = 0.0f;
    for (int j = threadIdx.x; j < length; j += 256) {
        float score = 0.0f;
        for (int d = 0; d < dim; ++d) score += q[head * dim + d] * k.value(kv, j, d);
        scores[j] = score * scale;
        peak = Largest::of(peak, scores[j]);
    }
    peak = fold_block<Largest>(peak, lanes);
    for (int j = threadIdx.x; j < length; j += 256) mass += scores[j] = power_of_two((scores[j] - peak) * 1.4426950408889634f);
    mass = fold_block<Add>(mass, lanes);
    for (int d = threadIdx.x; d < dim; d += 256) {
        float sum = 0.0f;
        for (int j = 0; j < length; ++j) sum += scores[j] * v.value(kv, j, d);
        out[head * dim + d] = sum / mass;
    }
}

// One pass over K and V for one head and a range of tokens: a warp per token, its lanes sharing the dimensions; the
// peak so far rescales what was added before it. Leaves [peak, mass, totals] in `part`.
constexpr int kLadderDims = 8;  // dimensions per lane at most: head dimensions up to 256
NB_INLINE void one_pass(const Int4Rows& k, const Int4Rows& v, const float* query, int kv, int from, int to, int dim,
                        float scale, float* warps, float* part) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float peak = -INFINITY, mass = 0.0f, totals[kLadderDims] = {};
    for (int j = from + warp; j < to; j += 8) {
        float score = 0.0f;
        for (int d = lane; d < dim; d += 32) score += query[d] * k.value(kv, j, d);
        score = fold_warp<Add>(score) * scale * 1.4426950408889634f;
        const float higher = max(peak, score), factor = power_of_two(peak - higher), weight = power_of_two(score - higher);
        mass = mass * factor + weight;
        NB_UNROLL
        for (int i = 0; i < kLadderDims; ++i)
            if (lane + 32 * i < dim) totals[i] = totals[i] * factor + weight * v.value(kv, j, lane + 32 * i);
        peak = higher;
    }
    float* mine = warps + warp * (dim + 2);
    if (lane == 0) mine[0] = peak, mine[1] = mass;
    NB_UNROLL
    for (int i = 0; i < kLadderDims; ++i)
        if (lane + 32 * i < dim) mine[2 + lane + 32 * i] = totals[i];
    __syncthreads();
    float all = -INFINITY, sum = 0.0f;
    for (int w = 0; w < 8; ++w) all = max(all, warps[w * (dim + 2)]);
    for (int d = threadIdx.x; d < dim; d += 256) {
        float total = 0.0f;
        sum = 0.0f;
        for (int w = 0; w < 8; ++w) {
            const float* other = warps + w * (dim + 2);
            const float factor = other[0] == -INFINITY ? 0.0f : power_of_two(other[0] - all);
            sum += other[1] * factor;
            total += other[2 + d] * factor;
        }
        part[2 + d] = total;
        if (d == 0) part[0] = all, part[1] = sum;
    }
}

// Rung 2. One pass with a running peak: no scores in memory, and lanes read neighbouring bytes.
__global__ void __launch_bounds__(256) attend_one_pass(NB_ATTEND_RUNG) {
    NB_SHARED(float, warps);
    const int head = blockIdx.x, kv = head / (heads / kv_heads);
    const Pages at{0, pages, kv_heads, (dim + 31) / 32 * 16};
    float* part = scratch + static_cast<int64_t>(head) * (dim + 2);
    one_pass({at, keys, key_params}, {at, values, value_params}, q + head * dim, kv, 0, length, dim, scale, warps, part);
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += 256) out[head * dim + d] = part[2 + d] / part[1];
}

// Rung 3. The tokens split over blocks, so that few heads still fill the device; a second kernel joins the parts.
__global__ void __launch_bounds__(256) attend_split(NB_ATTEND_RUNG) {
    NB_SHARED(float, warps);
    const int head = blockIdx.x, kv = head / (heads / kv_heads), splits = gridDim.y;
    const int share = (length + splits - 1) / splits, from = blockIdx.y * share;
    const Pages at{0, pages, kv_heads, (dim + 31) / 32 * 16};
    float* part = scratch + (static_cast<int64_t>(head) * splits + blockIdx.y) * (dim + 2);
    one_pass({at, keys, key_params}, {at, values, value_params}, q + head * dim, kv, from, min(from + share, length), dim,
             scale, warps, part);
}
__global__ void __launch_bounds__(256) attend_join(const float* scratch, float* out, int splits, int dim) {
    const float* parts = scratch + static_cast<int64_t>(blockIdx.x) * splits * (dim + 2);
    float peak = -INFINITY;
    for (int s = 0; s < splits; ++s) peak = max(peak, parts[s * (dim + 2)]);
    for (int d = threadIdx.x; d < dim; d += 256) {
        float mass = 0.0f, total = 0.0f;
        for (int s = 0; s < splits; ++s) {
            const float* part = parts + s * (dim + 2);
            const float factor = part[0] == -INFINITY ? 0.0f : power_of_two(part[0] - peak);
            mass += part[1] * factor;
            total += part[2 + d] * factor;
        }
        out[blockIdx.x * dim + d] = total / mass;
    }
}

// Rung 4 is `attend` in ../cuda/attend.cuh: the heads that share K and V read them once, on matrix instructions.
