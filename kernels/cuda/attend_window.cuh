// The fast attention of attend.cuh for caches whose newest tokens are exact (window.cuh). A block takes what its
// queries see rounded as ever; the last of a group's blocks also attends the newest tokens, in float32 and with each
// warp a part of its own. Keys that share a scale per channel over some tokens are met by queries times that scale.
#pragma once
#include "attend.cuh"
#include "window.cuh"

// GROUP: tokens that share the parameters of a key channel, 0 where every token has its own.
template <int GROUP>
struct Windowed {
    static constexpr int kGroup = GROUP;
    static constexpr bool kNewest = true;
    Window window;
    const float *ring_keys, *ring_values, *key_scale, *value_shift, *value_scale;  // the last three may be null

    NB_INLINE int rounded(int length) const { return window.values_end(length); }  // keys are rounded at least so far
    NB_INLINE float of_query(float value, int kv, int d, int dim) const {
        return key_scale ? value * key_scale[kv * dim + d] : value;
    }
    NB_INLINE float of_result(float value, int kv, int d, int dim) const {
        return value_shift ? value * value_scale[kv * dim + d] + value_shift[kv * dim + d] : value;
    }
    NB_INLINE const uint16_t* group_params(const Attention& a, int kv, int token, int dim) const {
        return static_cast<const uint16_t*>(a.key_params) + window.group(a.at, kv, token, dim);
    }

    // A key's value as queries meet it: exact, or rounded with its group's scale and offset.
    template <int STORED, int DIM>
    NB_INLINE float key(const Attention& a, int kv, int token, bool exact, int d) const {
        if (exact || !GROUP) return ring_keys[window.ring(kv, token, DIM) + d];
        const uint16_t* params = group_params(a, kv, token, DIM);
        const float code = stored_value<STORED>(a.keys + a.at.row(kv, token), d);
        return code * bf16_to_float(params[d]) + bf16_to_float(params[DIM + d]);
    }

    // This warp's share of the newest tokens of each query, behind the parts of the rounded ones.
    template <int STORED, int DIM>
    NB_INLINE void newest(const Attention& a, const Rows& rows, const Parts<DIM>& parts) const {
        constexpr int kLane = DIM / 32, kAtOnce = 4;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = rows.kv;
        int dims[kLane];
        NB_UNROLL
        for (int j = 0; j < kLane; ++j) dims[j] = place_dimension<STORED, DIM>(lane * kLane + j);
        for (int r = 0; r < rows.count; ++r) {
            const int length = a.length - a.queries + rows.token(r) + 1, keys_end = window.keys_end(length);
            const float* query = a.q + rows.query(r) * DIM;
            float q[kLane], sum[kLane], peak = kNone, mass = 0.0f;
            NB_UNROLL
            for (int j = 0; j < kLane; ++j) {
                q[j] = of_query(query[dims[j]], kv, dims[j], DIM) * (a.scale * 1.4426950408889634f);
                sum[j] = 0.0f;
            }
            for (int first = rounded(length) + warp; first < length; first += kAtOnce * kAttendWarps) {
                float scores[kAtOnce], most = peak;
                NB_UNROLL
                for (int i = 0; i < kAtOnce; ++i) {
                    const int token = min(first + i * kAttendWarps, length - 1);
                    float dot = 0.0f;
                    NB_UNROLL
                    for (int j = 0; j < kLane; ++j)
                        dot += q[j] * key<STORED, DIM>(a, kv, token, token >= keys_end, dims[j]);
                    scores[i] = first + i * kAttendWarps < length ? fold_warp<Add>(dot) : -INFINITY;
                    most = max(most, scores[i]);
                }
                const float factor = power_of_two(peak - most);
                peak = most, mass *= factor;
                NB_UNROLL
                for (int j = 0; j < kLane; ++j) sum[j] *= factor;
                NB_UNROLL
                for (int i = 0; i < kAtOnce; ++i) {
                    const int token = min(first + i * kAttendWarps, length - 1);
                    const float weight = power_of_two(scores[i] - peak);
                    mass += weight;
                    NB_UNROLL
                    for (int j = 0; j < kLane; ++j)
                        sum[j] += weight * ring_values[window.ring(kv, token, DIM) + dims[j]];
                }
            }
            store_floats(parts.row(kAttendWarps + warp, r) + lane * kLane, sum);
            if (lane == 0) parts.head(kAttendWarps + warp, r, peak, mass);
        }
    }
};

// As `attend`, over a windowed cache: keys per token, or with GROUP tokens of a channel sharing a scale.
template <int STORED, int DIM, int RESIDENT, int GROUP>
__global__ void __launch_bounds__(kAttendThreads, RESIDENT)
attend_window(const float* q, const uint8_t* keys, const uint8_t* values, const void* key_params,
              const uint32_t* value_params, const int* lengths, float* parts, int* arrived, float* out, float scale,
              int queries, int shared, int layer, int pages, int kv_heads, int capacity, const float* ring_keys,
              const float* ring_values, const float* key_scale, const float* value_shift, const float* value_scale,
              int keep, int ring_rows) {
    wait_for_previous();
    let_next_begin();
    const Pages at{layer, pages, kv_heads, Shape<STORED, DIM>::kRowBytes};
    const Windowed<GROUP> cache{{GROUP, keep, ring_rows}, ring_keys, ring_values, key_scale, value_shift, value_scale};
    const int block = blockIdx.z;
    attend_block<STORED, DIM, false>(Attention{q, keys, values, key_params, value_params, parts, arrived, out, scale,
                                               queries, shared, capacity, lengths[layer], block, at},
                                     cache);
}
