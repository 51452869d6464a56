// Flash decoding over the quantised cache: split over the tokens, on matrix instructions, K and V read once.
//
// A thread block takes 8 queries (of the heads that share a KV head, or of neighbouring tokens) and a range of
// tokens; each of its 8 warps takes every eighth tile of 16 tokens. Two bfloat16, the upper half and what rounding
// left over, make 16 bits of a query or a weight.
// q · k: queries are the A operand, upper halves in rows 0–7 and the rest in rows 8–15, so one instruction gives both
// products and the same lane holds both. The order of the head's dimensions is free, so a lane takes neighbouring
// words of K as they lie in memory.
// p · v: V is the A operand, 16 dimensions by 16 tokens, words of two tokens paired byte by byte; the weights' halves
// are two B operands into the same sums. The weights come out of q · k in the lanes where p · v wants them.
// Codes are exact in bfloat16; scale and offset of a token multiply finished sums. A 4-bit code c is cheapest as
// 128 + c, and the 128 leaves again as 128 times the sum of the queries' or weights' halves.
// The last block of a split group to finish joins the parts.
#pragma once
#include "kv.cuh"

constexpr int kAttendWarps = 8;

// Two bfloat16 (or fp16) codes from each of the registers that a 32-bit word unpacks to.
template <int STORED>
struct Unpack {
    static constexpr int kRegisters = STORED == kStored4 ? 4 : STORED == kStored8 ? 2 : 1;  // per word

    static constexpr float kBias = STORED == kStored4 ? 128.0f : 0.0f;  // what every unpacked code has too much

    // Codes in the low 4 bits of both halves, as 128 + code. `biases` is 0x43004300, held in a register.
    NB_INLINE static uint32_t small_codes(uint32_t bits, uint32_t biases) { return (bits & 0x000f000fu) | biases; }
    NB_INLINE static uint32_t byte_codes(uint32_t low, uint32_t high) {  // two codes below 256
        const float a = __fsub_rn(__uint_as_float(low | 0x4b000000u), 8388608.0f);
        const float b = __fsub_rn(__uint_as_float(high | 0x4b000000u), 8388608.0f);
        return pick_bytes(__float_as_uint(a), __float_as_uint(b), 0x7632);
    }
    // K: register i of word w of one token.
    NB_INLINE static uint32_t key(uint32_t w, int i, uint32_t biases) {
        if (STORED == kStored4) return small_codes(w >> (i / 2 * 8 + i % 2 * 4), biases);
        if (STORED == kStored8) return byte_codes(w >> 16 * i & 0xff, w >> (16 * i + 8) & 0xff);
        return w;
    }
    // The dimensions of the two values in that register, `byte` being the row's byte where the word starts.
    NB_INLINE static int key_dimension(int byte, int i, int which) {
        if (STORED == kStored4) return Row<4>::dimension(byte + i / 2 + 2 * which, i % 2);
        if (STORED == kStored8) return byte + 2 * i + which;
        return byte / 2 + which;
    }
    static constexpr int kPairs = STORED == kStored4 ? 8 : STORED == kStored8 ? 4 : 2;  // values per word
    // V: value i of the words of two tokens, as a pair (first token, second token).
    NB_INLINE static uint32_t pair(uint32_t first, uint32_t second, int i, uint32_t biases) {
        if (STORED == kStored4) {
            const uint32_t b = i / 2, bytes = pick_bytes(first, second, b | b << 4 | (4 + b) << 8 | (4 + b) << 12);
            return small_codes(i % 2 ? bytes >> 4 : bytes, biases);
        }
        if (STORED == kStored8) return byte_codes(first >> 8 * i & 0xff, second >> 8 * i & 0xff);
        return pick_bytes(first, second, i ? 0x7632 : 0x5410);
    }
    NB_INLINE static int pair_dimension(int byte, int i) {
        if (STORED == kStored4) return Row<4>::dimension(byte + i / 2, i % 2);
        if (STORED == kStored8) return byte + i;
        return byte / 2 + i;
    }
};

template <int WORDS>
NB_INLINE void load_row_part(uint32_t (&out)[WORDS], const uint8_t* at) {
    if (WORDS == 1) {
        out[0] = load_once(reinterpret_cast<const uint32_t*>(at));
    } else if (WORDS == 2) {
        const uint2 v = load_once(reinterpret_cast<const uint2*>(at));
        out[0] = v.x, out[WORDS > 1] = v.y;
    } else {
        NB_UNROLL
        for (int i = 0; i < WORDS / 4; ++i) {
            const uint4 v = load_once(reinterpret_cast<const uint4*>(at) + i);
            out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
        }
    }
}

template <int STORED, int DIM>
struct Shape {
    static constexpr bool kHalf = STORED == kStoredHalf;
    static constexpr int kBits = STORED == kStored4 ? 4 : STORED == kStored8 ? 8 : 16;
    static constexpr int kRowBytes = DIM * kBits / 8;
    static constexpr int kKeyWords = kRowBytes / 16, kValueWords = kRowBytes / 32;  // of one lane
    static constexpr int kSteps = DIM / 16;  // matrix steps of q · k, and tiles of 16 dimensions of p · v
};

// 16 tokens of K and V as one lane holds them: K of tokens group and group + 8, V of 2t, 2t + 1, 2t + 8, 2t + 9.
template <int STORED, int DIM>
struct Tokens {
    using S = Shape<STORED, DIM>;
    uint32_t k[2][S::kKeyWords], v[4][S::kValueWords];
    uint2 k_params[2], v_params[2];

    NB_INLINE void load_keys(const uint8_t* keys, const uint32_t* params, int64_t slot) {
        const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            load_row_part(k[n], keys + (slot + 8 * n + group) * S::kRowBytes + t * (S::kRowBytes / 4));
            if (S::kBits < 16) k_params[n] = *reinterpret_cast<const uint2*>(params + slot + 8 * n + 2 * t);
        }
    }

    // V of float formats is read below `end` only: what lies behind could be NaN, and a weight of 0 would not help.
    NB_INLINE void load_values(const uint8_t* values, const uint32_t* params, int64_t slot, int token, int end) {
        const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            if (S::kBits < 16) v_params[n] = *reinterpret_cast<const uint2*>(params + slot + 8 * n + 2 * t);
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int place = 8 * n + 2 * t + i;
                if (S::kBits < 16 || token + place < end)
                    load_row_part(v[2 * n + i], values + (slot + place) * S::kRowBytes + group * (S::kRowBytes / 8));
                else
                    for (int w = 0; w < S::kValueWords; ++w) v[2 * n + i][w] = 0;
            }
        }
    }
};

template <bool HALF>
NB_INLINE float widened(uint32_t bits) {
    return HALF ? half_to_float(static_cast<uint16_t>(bits)) : bf16_to_float(bits);
}
// Two values as a register of upper halves and one of what is left.
template <bool HALF>
NB_INLINE void split(float first, float second, uint32_t& upper, uint32_t& lower) {
    upper = pack_f16x2<HALF>(first, second);
    lower = pack_f16x2<HALF>(first - widened<HALF>(upper & 0xffff), second - widened<HALF>(upper >> 16));
}

// What one warp knows of its 8 queries: the peak so far (in powers of two), and sums relative to it. A lane holds peak
// and sums of query group (its lane / 4); `total` and `weights` of queries 2t and 2t + 1, where t is lane % 4.
template <int STORED, int DIM>
struct Running {
    using S = Shape<STORED, DIM>;
    using U = Unpack<STORED>;
    uint32_t q[S::kSteps][4];
    float total[S::kSteps][4], weights[4];
    float q_sum, q_bias, q_unit, peak, mass, offset;
    uint32_t biases;

    // query: this lane's (row group), or null for a row without one.
    NB_INLINE void open(const float* query, float scale, uint32_t code_biases) {
        biases = code_biases;
        float values[S::kSteps][4];
        const int t = threadIdx.x % 4;
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int reg = 2 * s + i / 2, byte = t * (S::kRowBytes / 4) + reg / U::kRegisters * 4;
                values[s][i] = query ? query[U::key_dimension(byte, reg % U::kRegisters, i % 2)] : 0.0f;
            }
        float sum = 0.0f, largest = 0.0f, held = 0.0f;
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int i = 0; i < 4; ++i) sum += values[s][i], largest = Largest::of(largest, magnitude(values[s][i]));
        for (int bits = 1; bits < 4; bits *= 2) {
            sum += __shfl_xor_sync(NB_ALL, sum, bits);
            largest = Largest::of(largest, __shfl_xor_sync(NB_ALL, largest, bits));
        }
        // A power of two that brings fp16 queries near 1; bfloat16 needs none.
        const uint32_t exponent = __float_as_uint(largest) >> 23;
        const bool shift = S::kHalf && exponent > 1 && exponent < 254;
        const float inverse = shift ? __uint_as_float((254 - exponent) << 23) : 1.0f;
        q_unit = (shift ? __uint_as_float(exponent << 23) : 1.0f) * scale * 1.4426950408889634f;
        q_sum = sum * scale * 1.4426950408889634f;
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int r = 0; r < 2; ++r) {
                uint32_t &upper = q[s][2 * r], &lower = q[s][2 * r + 1];
                split<S::kHalf>(values[s][2 * r] * inverse, values[s][2 * r + 1] * inverse, upper, lower);
                held += widened<S::kHalf>(upper & 0xffff) + widened<S::kHalf>(upper >> 16);
                held += widened<S::kHalf>(lower & 0xffff) + widened<S::kHalf>(lower >> 16);
            }
        for (int bits = 1; bits < 4; bits *= 2) held += __shfl_xor_sync(NB_ALL, held, bits);
        q_bias = held * U::kBias;
        peak = -INFINITY, mass = offset = 0.0f;
        NB_UNROLL
        for (int c = 0; c < 4; ++c) {
            weights[c] = 0.0f;
            for (int n = 0; n < S::kSteps; ++n) total[n][c] = 0.0f;
        }
    }

    // Of 16 tokens from `token`; those at `length` or beyond are masked.
    NB_INLINE void score(float (&scores)[4], const Tokens<STORED, DIM>& tile, int token, int length) const {
        const int t = threadIdx.x % 4;
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            float c[2][4] = {};  // two sums, so that an instruction need not wait for the one before
            NB_UNROLL
            for (int s = 0; s < S::kSteps; ++s) {
                const uint32_t b[2] = {
                    U::key(tile.k[n][2 * s / U::kRegisters], 2 * s % U::kRegisters, biases),
                    U::key(tile.k[n][(2 * s + 1) / U::kRegisters], (2 * s + 1) % U::kRegisters, biases)};
                mma_f16<S::kHalf>(c[s % 2], q[s], b);
            }
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                float score = ((c[0][i] + c[1][i]) + (c[0][2 + i] + c[1][2 + i]) - q_bias) * q_unit;
                if (S::kBits < 16) {
                    const uint32_t param = i ? tile.k_params[n].y : tile.k_params[n].x;
                    score = score * bf16_to_float(param & 0xffff) + bf16_to_float(param >> 16) * q_sum;
                }
                scores[2 * n + i] = token + 8 * n + 2 * t + i < length ? score : -INFINITY;
            }
        }
    }

    // Of the two queries whose totals this lane holds, what their own lanes hold.
    NB_INLINE static void of_totals(float value, float (&both)[2]) {
        const int t = threadIdx.x % 4;
        both[0] = __shfl_sync(NB_ALL, value, 8 * t);
        both[1] = __shfl_sync(NB_ALL, value, 8 * t + 4);
    }

    NB_INLINE void rescale(const float (&scores)[4]) {
        float most = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        for (int bits = 1; bits < 4; bits *= 2) most = max(most, __shfl_xor_sync(NB_ALL, most, bits));
        const bool rises = most > peak;
        if (!__ballot_sync(NB_ALL, rises)) return;
        const float factor = rises ? power_of_two(peak - most) : 1.0f;
        if (rises) peak = most;
        mass *= factor, offset *= factor;
        float both[2];
        of_totals(factor, both);
        NB_UNROLL
        for (int c = 0; c < 4; ++c) {
            weights[c] *= both[c % 2];
            NB_UNROLL
            for (int n = 0; n < S::kSteps; ++n) total[n][c] *= both[c % 2];
        }
    }

    NB_INLINE void weigh(const Tokens<STORED, DIM>& tile, const float (&scores)[4]) {
        uint32_t upper[2], lower[2];  // of tokens 8n + 2t and 8n + 2t + 1
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            float scaled[2];
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                const float score = scores[2 * n + i];
                const float weight = score == -INFINITY ? 0.0f : power_of_two(score - peak);
                mass += weight;
                scaled[i] = weight;
                if (S::kBits < 16 && weight > 0.0f) {  // a masked row's parameters may be anything
                    const uint32_t param = i ? tile.v_params[n].y : tile.v_params[n].x;
                    scaled[i] = weight * bf16_to_float(param & 0xffff);
                    offset += weight * bf16_to_float(param >> 16);
                }
            }
            split<S::kHalf>(scaled[0], scaled[1], upper[n], lower[n]);
        }
        NB_UNROLL
        for (int n = 0; n < S::kSteps; ++n) {
            const int w = 2 * n / U::kPairs, i = 2 * n % U::kPairs;
            const uint32_t a[4] = {
                U::pair(tile.v[0][w], tile.v[1][w], i, biases), U::pair(tile.v[0][w], tile.v[1][w], i + 1, biases),
                U::pair(tile.v[2][w], tile.v[3][w], i, biases), U::pair(tile.v[2][w], tile.v[3][w], i + 1, biases)};
            mma_f16<S::kHalf>(total[n], a, upper);
            mma_f16<S::kHalf>(total[n], a, lower);
        }
        if (U::kBias > 0.0f) {
            const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
            mma_f16<false>(weights, ones, upper);
            mma_f16<false>(weights, ones, lower);
        }
    }

    // Every query's [peak, mass, DIM totals] into `part`.
    NB_INLINE void close(float* part) {
        constexpr int kPart = DIM + 2;
        const int group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        for (int bits = 1; bits < 4; bits *= 2) {
            mass += __shfl_xor_sync(NB_ALL, mass, bits);
            offset += __shfl_xor_sync(NB_ALL, offset, bits);
        }
        if (t == 0) part[group * kPart] = peak, part[group * kPart + 1] = mass;
        float added[2];
        of_totals(offset, added);
        NB_UNROLL
        for (int n = 0; n < S::kSteps; ++n)
            NB_UNROLL
            for (int c = 0; c < 4; ++c) {
                const int w = 2 * n / U::kPairs, i = 2 * n % U::kPairs + c / 2;
                const int d = U::pair_dimension(group * (S::kRowBytes / 8) + 4 * w, i);
                part[(2 * t + c % 2) * kPart + 2 + d] = total[n][c] + (added[c % 2] - U::kBias * weights[c % 2]);
            }
    }
};

// Joins the parts [peak, mass, …] of query `row` that lie `stride` floats apart: one warp finds each part's factor
// and returns [joint peak, joint mass] in every lane.
NB_INLINE float2 join_parts(const float* parts, int count, int stride, float* factors) {
    const int lane = threadIdx.x % 32;
    float most = -INFINITY, mass = 0.0f;
    for (int i = lane; i < count; i += 32) most = max(most, parts[static_cast<int64_t>(i) * stride]);
    most = fold_warp<Largest>(most);
    for (int i = lane; i < count; i += 32) {
        const float* part = parts + static_cast<int64_t>(i) * stride;
        const float factor = part[0] == -INFINITY ? 0.0f : power_of_two(part[0] - most);
        factors[i] = factor;
        mass += part[1] * factor;
    }
    return {most, fold_warp<Add>(mass)};
}

// q [queries, heads, DIM] at the last `queries` of the lengths[layer] tokens → out alike. grid (splits, KV heads,
// blocks of 8 queries); 256 threads; RESIDENT blocks share a multiprocessor. parts: [KV head][block][split][8][DIM + 2];
// arrived: [KV head][block], zeros. NaN where lengths[layer] exceeds the capacity.
// PAGED: q [sequences, queries, heads, DIM] of those that `ids` names, each with its own table and lengths, as in kv.cuh.
template <int STORED, int DIM, int RESIDENT, bool PAGED = false>
__global__ void __launch_bounds__(32 * kAttendWarps, RESIDENT)
attend(const float* q, const uint8_t* keys, const uint8_t* values, const uint32_t* key_params,
       const uint32_t* value_params, const int* lengths, float* parts, int* arrived, float* out, float scale,
       int queries, int heads, int layer, int pages, int kv_heads, int capacity, const int* tables, const int* ids,
       int layers) {
    constexpr int kPart = DIM + 2;
    NB_SHARED(float, warps);  // [warp][8][kPart], then [8][most parts] factors
    using S = Shape<STORED, DIM>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = blockIdx.y, shared = heads / kv_heads;
    wait_for_previous();
    let_next_begin();
    const int blocks = PAGED ? (queries * shared + 7) / 8 : 1, sequence = PAGED ? blockIdx.z / blocks : 0;
    const int id = PAGED && ids ? ids[sequence] : 0;
    const int total_length = lengths[id * layers + layer], start = total_length - queries;
    const int64_t table = static_cast<int64_t>(id) * pages_for(capacity);
    const Pages at{layer, pages, kv_heads, S::kRowBytes, PAGED ? tables + table : nullptr};
    const int64_t origin = static_cast<int64_t>(sequence) * queries * heads;
    q += origin * DIM, out += origin * DIM;
    // Row r of this block is query token index / shared, head kv · shared + index % shared.
    const int first = (PAGED ? blockIdx.z % blocks : blockIdx.z) * 8, count = min(8, queries * shared - first);
    const int index = first + lane / 4;
    const bool real = lane / 4 < count;
    const int length = real ? start + index / shared + 1 : 0;
    const int64_t row = static_cast<int64_t>(index / shared) * heads + kv * shared + index % shared;

    Running<STORED, DIM> state;
    // Never 1, but the compiler does not know: a constant it would make anew for every use.
    const uint32_t biases = 0x43004300u | (capacity < 0);
    const bool fits = total_length <= capacity;
    const int longest = fits ? start + (first + count - 1) / shared + 1 : 0, tiles = (longest + 15) / 16;
    const int splits = gridDim.x, share = (tiles + splits - 1) / splits;
    const int from = blockIdx.x * share, to = min(from + share, tiles);

    // The next tile's K is on its way while this one's weights are found, its V while the next scores are.
    Tokens<STORED, DIM> tile;
    auto load_keys = [&](int i) {
        if (i < to) tile.load_keys(keys, key_params, at.slot(kv, i * 16));
    };
    auto load_values = [&](int i) {
        if (i < to) tile.load_values(values, value_params, at.slot(kv, i * 16), i * 16, longest);
    };
    load_keys(from + warp);
    load_values(from + warp);
    state.open(real ? q + row * DIM : nullptr, scale, biases);
    for (int i = from + warp; i < to; i += kAttendWarps) {
        float scores[4];
        state.score(scores, tile, i * 16, length);
        load_keys(i + kAttendWarps);
        state.rescale(scores);
        state.weigh(tile, scores);
        load_values(i + kAttendWarps);
    }
    state.close(warps + warp * 8 * kPart);
    float* factors = warps + kAttendWarps * 8 * kPart;
    __syncthreads();

    // Warp r joins query r of the warps' parts; then every thread adds its dimensions over them.
    const int64_t group = static_cast<int64_t>(kv) * gridDim.z + blockIdx.z;
    float* mine = parts + (group * splits + blockIdx.x) * 8 * kPart;
    if (warp < count) {
        const float2 joint = join_parts(warps + warp * kPart, kAttendWarps, 8 * kPart, factors + warp * kAttendWarps);
        if (lane == 0) mine[warp * kPart] = joint.x, mine[warp * kPart + 1] = joint.y;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * DIM; i += 32 * kAttendWarps) {
        const int r = i / DIM, d = i % DIM;
        float sum = 0.0f;
        NB_UNROLL
        for (int w = 0; w < kAttendWarps; ++w)
            sum += factors[r * kAttendWarps + w] * warps[(w * 8 + r) * kPart + 2 + d];
        mine[r * kPart + 2 + d] = sum;
    }
    __threadfence();
    __syncthreads();
    int* last = reinterpret_cast<int*>(warps);
    if (threadIdx.x == 0) *last = atomicAdd(&arrived[group], 1) == splits - 1;
    __syncthreads();
    if (!*last) return;  // the whole block
    __threadfence();
    if (threadIdx.x == 0) arrived[group] = 0;
    // The same once more, over the blocks' parts.
    const float* all = parts + group * splits * 8 * kPart;
    float* masses = warps + 8;  // behind what *last used
    __syncthreads();
    if (warp < count) {
        const float2 joint = join_parts(all + warp * kPart, splits, 8 * kPart, factors + warp * splits);
        if (lane == 0) masses[warp] = joint.y;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * DIM; i += 32 * kAttendWarps) {
        const int r = i / DIM, d = i % DIM, query = first + r;
        float sum = 0.0f;
        NB_UNROLL_BY(16)
        for (int s = 0; s < splits; ++s) sum += factors[r * splits + s] * all[(s * 8 + r) * kPart + 2 + d];
        out[(static_cast<int64_t>(query / shared) * heads + kv * shared + query % shared) * DIM + d] = sum / masses[r];
    }
}
