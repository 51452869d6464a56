// Flash decoding over the quantised cache: split over the tokens, on matrix instructions, K and V read once.
//
// A thread block takes 8 queries (of the heads that share a KV head, or of neighbouring tokens) and a range of
// tokens; each of its 8 warps takes every eighth tile of 16 tokens (attend_tile.cuh), or of 32 where those share
// parameters of keys. A part of a sum is [DIM totals] with [peak, mass]: warps leave theirs in shared memory, blocks
// theirs in `parts`, and the last block of a group to finish joins these. Totals lie in the order in which lanes hold
// them, so that no two lanes meet in a bank.
#pragma once
#include "attend_tile.cuh"

constexpr int kAttendWarps = 8, kAttendThreads = 32 * kAttendWarps, kMostParts = 2 * kAttendWarps;

// The parts of a block's warps in shared memory, as join_row wants them.
template <int DIM>
struct Parts {
    static constexpr int kRow = DIM + 4;    // in floats; so far apart, rows 2t and columns of 8 groups meet no bank
    static constexpr int kLane = DIM / 32;  // neighbouring places that one lane joins
    float *peaks, *masses, *totals;         // [8][kMostParts], [8][kMostParts], [part][8][kRow]
    int* last;                              // whether this block is the last of its group

    NB_INLINE explicit Parts(float* shared)
        : peaks(shared), masses(shared + 8 * kMostParts), totals(shared + 2 * 8 * kMostParts + 4),
          last(reinterpret_cast<int*>(shared + 2 * 8 * kMostParts)) {}
    NB_INLINE float* row(int part, int row) const { return totals + (part * 8 + row) * kRow; }
    // One lane says so.
    NB_INLINE void head(int part, int row, float peak, float mass) const {
        peaks[row * kMostParts + part] = peak, masses[row * kMostParts + part] = mass;
    }
};

template <int N>
NB_INLINE void load_floats(float (&out)[N], const float* at) {
    NB_UNROLL
    for (int i = 0; i < N; i += 2) {
        const float2 v = *reinterpret_cast<const float2*>(at + i);
        out[i] = v.x, out[i + 1] = v.y;
    }
}
template <int N>
NB_INLINE void store_floats(float* at, const float (&values)[N]) {
    NB_UNROLL
    for (int i = 0; i < N; i += 2) *reinterpret_cast<float2*>(at + i) = {values[i], values[i + 1]};
}

// The first `count` parts of a row, joined: this lane's places, and [peak, mass].
template <int DIM>
NB_INLINE float2 join_row(const Parts<DIM>& parts, int row, int count, float (&sum)[DIM / 32]) {
    constexpr int kLane = Parts<DIM>::kLane;
    const float *peaks = parts.peaks + row * kMostParts, *masses = parts.masses + row * kMostParts;
    float most = kNone, mass = 0.0f;
    NB_UNROLL_BY(8)
    for (int p = 0; p < count; ++p) most = max(most, peaks[p]);
    NB_UNROLL
    for (int i = 0; i < kLane; ++i) sum[i] = 0.0f;
    NB_UNROLL_BY(8)
    for (int p = 0; p < count; ++p) {
        const float factor = power_of_two(peaks[p] - most);
        float part[kLane];
        load_floats(part, parts.row(p, row) + threadIdx.x % 32 * kLane);
        mass += factor * masses[p];
        NB_UNROLL
        for (int i = 0; i < kLane; ++i) sum[i] += factor * part[i];
    }
    return {most, mass};
}

// A warp's sums into its part.
template <int STORED, int DIM>
NB_INLINE void leave(Running<STORED, DIM>& state, const Parts<DIM>& parts) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int bits = 1; bits < 4; bits *= 2) {
        state.mass += __shfl_xor_sync(NB_ALL, state.mass, bits);
        state.offset += __shfl_xor_sync(NB_ALL, state.offset, bits);
    }
    if (t == 0) parts.head(warp, group, state.peak, state.mass);
    float added[2];
    state.of_totals(state.offset, added);
    NB_UNROLL
    for (int r = 0; r < 2; ++r) {
        added[r] -= state.weights[r];
        float* row = parts.row(warp, 2 * t + r);
        NB_UNROLL
        for (int n = 0; n < DIM / 16; ++n)
            *reinterpret_cast<float2*>(row + 16 * n + 2 * group) = {state.total[n][r] + added[r],
                                                                    state.total[n][2 + r] + added[r]};
    }
}

// The dimension of a place in a part.
template <int STORED, int DIM>
NB_INLINE int place_dimension(int place) {
    return Shape<STORED, DIM>::total_dimension(place % 16 / 2, place / 16, place % 2 * 2);
}

// What splits `first`, `first` + stride, … below `splits` left of a row, joined; as join_row.
template <int DIM>
NB_INLINE float2 join_splits(const float* totals, const float2* heads, int row, int first, int stride, int splits,
                             float (&sum)[DIM / 32]) {
    constexpr int kLane = DIM / 32, kAtOnce = 16 / kLane;
    float most = kNone, mass = 0.0f;
    NB_UNROLL
    for (int i = 0; i < kLane; ++i) sum[i] = 0.0f;
    for (int s = first; s < splits; s += kAtOnce * stride) {
        float part[kAtOnce][kLane];
        float2 head[kAtOnce];
        float before = most;
        NB_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
            const int at = s + i * stride < splits ? s + i * stride : s;
            head[i] = heads[at * 8 + row];
            load_floats(part[i], totals + (at * 8 + row) * static_cast<int64_t>(DIM) + threadIdx.x % 32 * kLane);
        }
        NB_UNROLL
        for (int i = 0; i < kAtOnce; ++i) most = max(most, head[i].x);
        before = power_of_two(before - most);
        mass *= before;
        NB_UNROLL
        for (int i = 0; i < kLane; ++i) sum[i] *= before;
        NB_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
            const float factor = s + i * stride < splits ? power_of_two(head[i].x - most) : 0.0f;
            mass += factor * head[i].y;
            NB_UNROLL
            for (int j = 0; j < kLane; ++j) sum[j] += factor * part[i][j];
        }
    }
    return {most, mass};
}

// a / b for 0 ≤ a < 2²² and 0 < b: fewer instructions than a division that knows no bounds.
NB_INLINE int divided(int a, int b) {
    const int near = static_cast<int>(__fdividef(static_cast<float>(a), static_cast<float>(b)));
    const int left = a - near * b;
    return left < 0 ? near - 1 : left >= b ? near + 1 : near;
}

// What a launch is given.
struct Attention {
    const float* q;
    const uint8_t *keys, *values;
    const void* key_params;
    const uint32_t* value_params;
    float* parts;
    int* arrived;
    float* out;
    float scale;
    int queries, shared, capacity;  // shared: query heads of a KV head
    int length, block;              // tokens of the sequence; which 8 of its queries
    Pages at;
};

// A block's 8 queries: row r is query token (first + r) / shared, head kv · shared + (first + r) % shared.
struct Rows {
    int kv, shared, first, count, heads;
    NB_INLINE int token(int row) const { return divided(first + row, shared); }
    NB_INLINE int64_t query(int row) const {
        const int of = token(row);
        return static_cast<int64_t>(of) * heads + kv * shared + first + row - of * shared;
    }
};

// A cache whose tokens are all rounded. Others are in attend_window.cuh.
struct AllRounded {
    static constexpr int kGroup = 0;        // tokens that share the parameters of a key channel; 0: per token
    static constexpr bool kNewest = false;  // whether `newest` has a part of its own
    NB_INLINE int rounded(int length) const { return length; }  // of the tokens that a query sees
    NB_INLINE float of_query(float value, int, int, int) const { return value; }
    NB_INLINE float of_result(float value, int, int, int) const { return value; }
};

// A lane's tiles, one after the other: where the rows and parameters of K or V begin.
template <int STORED, int DIM, bool PAIRED>
struct Cursor {
    static constexpr int kBytes = Shape<STORED, DIM>::kRowBytes;
    const uint8_t* rows;
    const uint32_t* params;

    int64_t slot;  // of the tile

    // At the lane's `row` of a tile, and its `byte` of that row.
    NB_INLINE void open(const uint8_t* all, const void* all_params, const Pages& at, int kv, int tile, int row,
                        int byte) {
        slot = at.slot(kv, tile * 16);
        place(all, all_params, row, byte);
    }
    NB_INLINE void place(const uint8_t* all, const void* all_params, int row, int byte) {
        rows = all + (slot + row) * kBytes + byte;
        params = static_cast<const uint32_t*>(all_params) + slot + 2 * (threadIdx.x % 4);
    }
    // From tile i to the warp's next one: 8 tiles on, or, two by two, the second of two and then 15 tiles on.
    NB_INLINE static int next(int i) { return PAIRED ? i % 2 ? i + 15 : i + 1 : i + kAttendWarps; }
    NB_INLINE void advance(const Pages& at, int i) {
        const int page = at.heads * kPage;  // tokens from a page of a KV head to its next
        const int step = PAIRED ? (i % 2 ? page - 16 : 16) : i & 8 ? page - 128 : 128;
        rows += static_cast<int64_t>(step) * kBytes;
        params += step;
    }
    // The same where a table says which page is next, or where pointers kept from tile to tile are too many registers.
    NB_INLINE void look_up(const uint8_t* all, const void* all_params, const Pages& at, int kv, int i, int row,
                           int byte) {
        slot = i & 8 ? at.slot(kv, next(i) * 16) : slot + 128;
        place(all, all_params, row, byte);
    }
};

// A lane's words of its query times the scales of softmax and channels, in powers of two.
template <int STORED, int DIM, class Cache>
NB_INLINE void scale_queries(float (&raw)[DIM / 4], const uint4 (&words)[DIM / 16], const Cache& cache, int kv,
                             float scale) {
    NB_UNROLL
    for (int i = 0; i < DIM / 4; ++i) {
        const int d = Unpack<STORED>::run(threadIdx.x % 4 * Shape<STORED, DIM>::kKeyBytes, i / 4) + i % 4;
        const uint4 v = words[i / 4];
        const float value = __uint_as_float(i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w);
        raw[i] = cache.of_query(value, kv, d, DIM) * (scale * 1.4426950408889634f);
    }
}

// Every tile of this warp from tile `i` to `to` into its sums. `lengths`: what this lane's query sees rounded, and the
// least and the most that one of the block's does.
template <int STORED, int DIM, bool PAGED, class Cache>
NB_INLINE void attend_tiles(Running<STORED, DIM>& state, const Attention& a, const Cache& cache, const Rows& rows,
                            int i, int to, const int (&lengths)[3], const uint4 (&words)[DIM / 16]) {
    using S = Shape<STORED, DIM>;
    constexpr bool kPaired = Cache::kGroup != 0;
    const int lane = threadIdx.x % 32, row = lane / 4, t = lane % 4;
    // Never 1, but the compiler does not know: a constant it would make anew for every use.
    const uint32_t biases = 0x43004300u | (a.capacity < 0);
    Cursor<STORED, DIM, kPaired> keys, values;
    const void* key_params = kPaired ? nullptr : a.key_params;
    const int key_byte = t * S::kKeyBytes, value_byte = row * S::kValueBytes;
    // The next tile's K is on its way while this one's weights are found, its V while the next scores are.
    Tokens<STORED, DIM> tile;
    if (i < to) {
        keys.open(a.keys, key_params, a.at, rows.kv, i, row, key_byte);
        values.open(a.values, a.value_params, a.at, rows.kv, i, 2 * t, value_byte);
        tile.template load_keys<kPaired>(keys.rows, keys.params);
        tile.load_values(values.rows, values.params);
    }
    float raw[DIM / 4];
    scale_queries<STORED, DIM>(raw, words, cache, rows.kv, a.scale);
    Queries<STORED, DIM> queries;
    GroupParams<STORED, DIM> group;
    if constexpr (kPaired) {
        if (i < to) group.load(cache.group_params(a, rows.kv, i * 16, DIM));
    } else {
        queries.set(raw, biases);
    }
    float shift = 0.0f;
    for (int next; i < to; i = next) {
        next = keys.next(i);
        if constexpr (kPaired)
            if (i % 2 == 0) {
                shift = group.apply(queries, raw, biases);
                if (i + 16 < to) group.load(cache.group_params(a, rows.kv, i * 16 + 256, DIM));
            }
        float scores[4];
        queries.template score<kPaired>(scores, tile, shift, biases);
        if (next < to) {
            if constexpr (PAGED || DIM > 128)
                keys.look_up(a.keys, key_params, a.at, rows.kv, i, row, key_byte);
            else
                keys.advance(a.at, i);
            tile.template load_keys<kPaired>(keys.rows, keys.params);
        }
        if (i * 16 + 16 > lengths[1]) {
            NB_UNROLL
            for (int s = 0; s < 4; ++s)
                if (i * 16 + 2 * t + s / 2 * 8 + s % 2 >= lengths[0]) scores[s] = -INFINITY;
            tile.forget_values(lengths[2] - i * 16);
        }
        state.rescale(scores);
        state.weigh(tile, scores, biases);
        if (next < to) {
            if constexpr (PAGED || DIM > 128)
                values.look_up(a.values, a.value_params, a.at, rows.kv, i, 2 * t, value_byte);
            else
                values.advance(a.at, i);
            tile.load_values(values.rows, values.params);
        }
    }
}

template <int STORED, int DIM, class Cache>
NB_INLINE void write_out(const Attention& a, const Cache& cache, const Rows& rows, int row,
                         const float (&sum)[DIM / 32], float mass) {
    NB_UNROLL
    for (int i = 0; i < DIM / 32; ++i) {
        const int d = place_dimension<STORED, DIM>(threadIdx.x % 32 * (DIM / 32) + i);
        a.out[rows.query(row) * DIM + d] = cache.of_result(sum[i] / mass, rows.kv, d, DIM);
    }
}

// One block; grid (splits, KV heads, blocks of 8 queries), kAttendThreads threads. NaN where the length exceeds the
// capacity. parts: per group of splits that meet, [split][8][DIM], and behind all of these [split][8][2]; arrived:
// [KV head][block of queries], zeros. PAGED: pages lie as a table says.
template <int STORED, int DIM, bool PAGED, class Cache>
NB_INLINE void attend_block(const Attention& a, const Cache& cache) {
    constexpr int kLane = DIM / 32;
    NB_SHARED(float, shared);  // Parts
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, splits = gridDim.x, first = a.block * 8;
    const Rows rows{static_cast<int>(blockIdx.y), a.shared, first, min(8, a.queries * a.shared - first),
                    a.shared * a.at.heads};
    const int mine = min(lane / 4, rows.count - 1);  // lanes without a query repeat the last one
    const float* query = a.q + rows.query(mine) * DIM;
    uint4 words[DIM / 16];
    NB_UNROLL
    for (int c = 0; c < DIM / 16; ++c)
        words[c] = load_once(reinterpret_cast<const uint4*>(
            query + Unpack<STORED>::run(lane % 4 * Shape<STORED, DIM>::kKeyBytes, c)));
    const int start = a.length - a.queries;
    const bool fits = a.length <= a.capacity;
    const auto seen = [&](int row) { return fits ? cache.rounded(start + rows.token(row) + 1) : 0; };
    const int lengths[3] = {seen(mine), seen(0), seen(rows.count - 1)};
    constexpr int kUnit = Cache::kGroup ? 2 : 1;  // tiles that go to one warp together
    const int units = (lengths[2] + 16 * kUnit - 1) / (16 * kUnit), share = divided(units + splits - 1, splits);
    const int from = blockIdx.x * share, to = min(from + share, units);
    Running<STORED, DIM> state;
    attend_tiles<STORED, DIM, PAGED>(state, a, cache, rows, (from + warp) * kUnit, to * kUnit, lengths, words);

    const Parts<DIM> parts(shared);
    const int64_t group = static_cast<int64_t>(rows.kv) * gridDim.z + blockIdx.z;
    const int64_t groups = static_cast<int64_t>(a.at.heads) * gridDim.z;
    const bool newest = Cache::kNewest && fits && static_cast<int>(blockIdx.x) == splits - 1;
    leave<STORED, DIM>(state, parts);
    if constexpr (Cache::kNewest)
        if (newest) cache.template newest<STORED, DIM>(a, rows, parts);
    __syncthreads();
    float sum[kLane];
    float2 head{0.0f, 0.0f};
    if (warp < rows.count) head = join_row<DIM>(parts, warp, newest ? kMostParts : kAttendWarps, sum);
    if (splits > 1) {
        float* totals = a.parts + group * splits * 8 * DIM;
        float2* heads = reinterpret_cast<float2*>(a.parts + groups * splits * 8 * DIM) + group * splits * 8;
        if (warp < rows.count) {
            store_floats(totals + (blockIdx.x * 8 + warp) * static_cast<int64_t>(DIM) + lane * kLane, sum);
            if (lane == 0) heads[blockIdx.x * 8 + warp] = head;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            *parts.last = arrive(a.arrived + group) == splits - 1;
            if (*parts.last) a.arrived[group] = 0;
        }
        __syncthreads();
        if (!*parts.last) return;  // the whole block
        for (int r = 0; r < rows.count; ++r) {
            head = join_splits<DIM>(totals, heads, r, warp, kAttendWarps, splits, sum);
            store_floats(parts.row(warp, r) + lane * kLane, sum);
            if (lane == 0) parts.head(warp, r, head.x, head.y);
        }
        __syncthreads();
        if (warp < rows.count) head = join_row<DIM>(parts, warp, kAttendWarps, sum);
    }
    if (warp < rows.count) write_out<STORED, DIM>(a, cache, rows, warp, sum, head.y);
}

// q [queries, KV heads · shared, DIM] at the last `queries` of the lengths[layer] tokens → out alike, as attend_block
// says. RESIDENT blocks share a multiprocessor. PAGED: q [sequences, queries, …] of those that `ids` names, each with
// its own table and lengths, as in kv.cuh.
template <int STORED, int DIM, int RESIDENT, bool PAGED = false>
__global__ void __launch_bounds__(kAttendThreads, RESIDENT)
attend(const float* q, const uint8_t* keys, const uint8_t* values, const uint32_t* key_params,
       const uint32_t* value_params, const int* lengths, float* parts, int* arrived, float* out, float scale,
       int queries, int shared, int layer, int pages, int kv_heads, int capacity, const int* tables, const int* ids,
       int layers) {
    wait_for_previous();
    let_next_begin();
    const int blocks = (queries * shared + 7) / 8, sequence = PAGED ? blockIdx.z / blocks : 0;
    const int id = PAGED && ids ? ids[sequence] : 0;
    const int* table = PAGED ? tables + static_cast<int64_t>(id) * pages_for(capacity) : nullptr;
    const Pages at{layer, pages, kv_heads, Shape<STORED, DIM>::kRowBytes, table};
    const int64_t origin = static_cast<int64_t>(sequence) * queries * kv_heads * shared * DIM;
    const int length = lengths[id * layers + layer], block = blockIdx.z - sequence * blocks;
    attend_block<STORED, DIM, PAGED>(Attention{q + origin, keys, values, key_params, value_params, parts, arrived,
                                               out + origin, scale, queries, shared, capacity, length, block, at},
                                     AllRounded{});
}
