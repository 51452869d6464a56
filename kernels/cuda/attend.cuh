// Flash decoding over the quantised cache: split over the tokens, on matrix instructions, K and V read once.
//
// A thread block takes 8 queries (of the heads that share a KV head, or of neighbouring tokens) and a range of
// tokens; each of its 8 warps takes every eighth tile of 16 tokens. Queries fill rows 0–7 of the A operand with
// their upper halves and rows 8–15 with what rounding left over (two bfloat16 make 16 bits), so one instruction
// gives both products and the same lane holds both. Codes are exact in bfloat16; scale and offset of a token
// multiply the finished sums. The order of the head's dimensions is free in q · k, so a lane takes 4 neighbouring
// words as they lie in memory. V's words of two tokens are paired byte by byte.
// The last block of a split group to finish joins the parts.
#pragma once
#include "kv.cuh"

constexpr int kAttendWarps = 8;

// Two bfloat16 (or fp16) codes from each of the registers that a 32-bit word unpacks to.
template <int STORED>
struct Unpack {
    static constexpr int kRegisters = STORED == kStored4 ? 4 : STORED == kStored8 ? 2 : 1;  // per word

    NB_INLINE static uint32_t small_codes(uint32_t bits) {  // 4-bit codes in both halves
        return subtract_bf16x2((bits & 0x000f000fu) | 0x43004300u, 0x43004300u);
    }
    NB_INLINE static uint32_t byte_codes(uint32_t low, uint32_t high) {  // two codes below 256
        const float a = __fsub_rn(__uint_as_float(low | 0x4b000000u), 8388608.0f);
        const float b = __fsub_rn(__uint_as_float(high | 0x4b000000u), 8388608.0f);
        return pick_bytes(__float_as_uint(a), __float_as_uint(b), 0x7632);
    }
    // K: register i of word w of one token.
    NB_INLINE static uint32_t key(uint32_t w, int i) {
        if (STORED == kStored4) return small_codes(w >> (i / 2 * 8 + i % 2 * 4));
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
    NB_INLINE static uint32_t pair(uint32_t first, uint32_t second, int i) {
        if (STORED == kStored4) {
            const uint32_t b = i / 2, bytes = pick_bytes(first, second, b | b << 4 | (4 + b) << 8 | (4 + b) << 12);
            return small_codes(i % 2 ? bytes >> 4 : bytes);
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
    static constexpr int kSteps = DIM / 16, kColumns = DIM / 8;                     // matrix steps of q · k; of p · v
};

// 16 tokens of K and V as one lane holds them: K of tokens group and group + 8, V of 2t, 2t + 1, 2t + 8, 2t + 9.
template <int STORED, int DIM>
struct Tokens {
    using S = Shape<STORED, DIM>;
    uint32_t k[2][S::kKeyWords], v[4][S::kValueWords];
    uint2 k_params[2], v_params[2];

    // V of float formats is read below `end` only: what lies behind could be NaN, and a weight of 0 would not help.
    NB_INLINE void load(const uint8_t* keys, const uint8_t* values, const uint32_t* key_params,
                        const uint32_t* value_params, const Pages& at, int head, int token, int end) {
        const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
        const int64_t slot = at.slot(head, token);
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            load_row_part(k[n], keys + (slot + 8 * n + group) * S::kRowBytes + t * (S::kRowBytes / 4));
            if (S::kBits < 16) {
                k_params[n] = *reinterpret_cast<const uint2*>(key_params + slot + 8 * n + 2 * t);
                v_params[n] = *reinterpret_cast<const uint2*>(value_params + slot + 8 * n + 2 * t);
            }
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
NB_INLINE uint32_t rounded(float value) {
    return HALF ? float_to_half(value) : float_to_bf16(value);
}
template <bool HALF>
NB_INLINE float widened(uint32_t bits) {
    return HALF ? half_to_float(static_cast<uint16_t>(bits)) : bf16_to_float(bits);
}
// Two values as a register of upper halves and one of what is left.
template <bool HALF>
NB_INLINE void split(float first, float second, uint32_t& upper, uint32_t& lower) {
    const uint32_t a = rounded<HALF>(first), b = rounded<HALF>(second);
    upper = a | b << 16;
    lower = rounded<HALF>(first - widened<HALF>(a)) | rounded<HALF>(second - widened<HALF>(b)) << 16;
}

// What one warp knows of its 8 queries: the peak so far (in powers of two), and sums relative to it.
template <int STORED, int DIM>
struct Running {
    using S = Shape<STORED, DIM>;
    using U = Unpack<STORED>;
    uint32_t q[S::kSteps][4];
    float total[S::kColumns][4];
    float q_sum, q_unit, peak, mass, offset;

    // q: this lane's query (row group), or null for a row without one.
    NB_INLINE void open(const float* query, float scale) {
        const int t = threadIdx.x % 4;
        float sum = 0.0f, largest = 0.0f;
        for (int d = t; d < DIM; d += 4) {
            const float value = query ? query[d] : 0.0f;
            sum += value;
            largest = Largest::of(largest, magnitude(value));
        }
        for (int bits = 1; bits < 4; bits *= 2) {
            sum += __shfl_xor_sync(NB_ALL, sum, bits);
            largest = Largest::of(largest, __shfl_xor_sync(NB_ALL, largest, bits));
        }
        // A power of two that brings fp16 queries near 1; bfloat16 needs none.
        const uint32_t exponent = __float_as_uint(largest) >> 23;
        const bool shift = S::kHalf && exponent > 1 && exponent < 254;
        q_unit = shift ? __uint_as_float(exponent << 23) : 1.0f;
        const float inverse = shift ? __uint_as_float((254 - exponent) << 23) : 1.0f;
        q_unit *= scale * 1.4426950408889634f;
        q_sum = sum * scale * 1.4426950408889634f;
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int r = 0; r < 2; ++r) {
                const int reg = 2 * s + r, byte = t * (S::kRowBytes / 4) + reg / U::kRegisters * 4;
                const float a = query ? query[U::key_dimension(byte, reg % U::kRegisters, 0)] * inverse : 0.0f;
                const float b = query ? query[U::key_dimension(byte, reg % U::kRegisters, 1)] * inverse : 0.0f;
                split<S::kHalf>(a, b, q[s][2 * r], q[s][2 * r + 1]);
            }
        peak = -INFINITY, mass = offset = 0.0f;
        NB_UNROLL
        for (int n = 0; n < S::kColumns; ++n)
            for (int c = 0; c < 4; ++c) total[n][c] = 0.0f;
    }

    // 16 tokens from `token`; those at `length` or beyond are masked.
    NB_INLINE void add(const Tokens<STORED, DIM>& tile, int token, int length) {
        const int t = threadIdx.x % 4;
        float scores[4];
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            NB_UNROLL
            for (int s = 0; s < S::kSteps; ++s) {
                const uint32_t b[2] = {U::key(tile.k[n][2 * s / U::kRegisters], 2 * s % U::kRegisters),
                                       U::key(tile.k[n][(2 * s + 1) / U::kRegisters], (2 * s + 1) % U::kRegisters)};
                mma_f16<S::kHalf>(c, q[s], b);
            }
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                float score = (c[i] + c[2 + i]) * q_unit;
                if (S::kBits < 16) {
                    const uint32_t param = i ? tile.k_params[n].y : tile.k_params[n].x;
                    score = score * bf16_to_float(param & 0xffff) + bf16_to_float(param >> 16) * q_sum;
                }
                scores[2 * n + i] = token + 8 * n + 2 * t + i < length ? score : -INFINITY;
            }
        }
        rescale(scores);
        weigh(tile, scores);
    }

    NB_INLINE void rescale(const float (&scores)[4]) {
        float most = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        for (int bits = 1; bits < 4; bits *= 2) most = max(most, __shfl_xor_sync(NB_ALL, most, bits));
        const bool rises = most > peak;
        if (!__ballot_sync(NB_ALL, rises)) return;
        const float factor = rises ? power_of_two(peak - most) : 1.0f;
        if (rises) peak = most;
        mass *= factor, offset *= factor;
        NB_UNROLL
        for (int n = 0; n < S::kColumns; ++n)
            NB_UNROLL
            for (int c = 0; c < 4; ++c) total[n][c] *= factor;
    }

    NB_INLINE void weigh(const Tokens<STORED, DIM>& tile, const float (&scores)[4]) {
        uint32_t p[4];
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            float scaled[2];
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                const float score = scores[2 * n + i];
                float weight = score == -INFINITY ? 0.0f : power_of_two(score - peak);
                mass += weight;
                scaled[i] = weight;
                if (S::kBits < 16 && weight > 0.0f) {  // a masked row's parameters may be anything
                    const uint32_t param = i ? tile.v_params[n].y : tile.v_params[n].x;
                    scaled[i] = weight * bf16_to_float(param & 0xffff);
                    offset += weight * bf16_to_float(param >> 16);
                }
            }
            split<S::kHalf>(scaled[0], scaled[1], p[2 * n], p[2 * n + 1]);
        }
        NB_UNROLL
        for (int w = 0; w < S::kValueWords; ++w)
            NB_UNROLL
            for (int i = 0; i < U::kPairs; ++i) {
                const uint32_t b[2] = {U::pair(tile.v[0][w], tile.v[1][w], i), U::pair(tile.v[2][w], tile.v[3][w], i)};
                mma_f16<S::kHalf>(total[w * U::kPairs + i], p, b);
            }
    }

    // Sums of one query from its four lanes, into [peak, mass, offset, DIM totals].
    NB_INLINE void close(float* part) {
        const int lane = threadIdx.x % 32, t = lane % 4;
        for (int bits = 1; bits < 4; bits *= 2) {
            mass += __shfl_xor_sync(NB_ALL, mass, bits);
            offset += __shfl_xor_sync(NB_ALL, offset, bits);
        }
        float* mine = part + lane / 4 * (DIM + 3);
        if (t == 0) mine[0] = peak, mine[1] = mass, mine[2] = offset;
        NB_UNROLL
        for (int n = 0; n < S::kColumns; ++n)
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int byte = (2 * t + i) * (S::kRowBytes / 8) + n / U::kPairs * 4;
                mine[3 + U::pair_dimension(byte, n % U::kPairs)] = total[n][i] + total[n][2 + i];
            }
    }
};

// Joins `count` parts [peak, mass, offset, totals], `stride` floats apart, at one dimension; returns the joint part.
struct Joint {
    float peak, mass, total;
    NB_INLINE static Joint of(const float* parts, int count, int64_t stride, int d) {
        Joint out{-INFINITY, 0.0f, 0.0f};
        for (int i = 0; i < count; ++i) out.peak = max(out.peak, parts[i * stride]);
        for (int i = 0; i < count; ++i) {
            const float* part = parts + i * stride;
            if (part[0] == -INFINITY) continue;
            const float factor = power_of_two(part[0] - out.peak);
            out.mass += part[1] * factor;
            out.total += (part[2] + part[3 + d]) * factor;
        }
        return out;
    }
};

// q [queries, heads, DIM] at the last `queries` of the lengths[layer] tokens → out alike. grid (splits, KV heads,
// blocks of 8 queries); 256 threads. parts: [KV head][block][split][8][DIM + 3]; arrived: [KV head][block], zeros.
// NaN where lengths[layer] exceeds the capacity.
template <int STORED, int DIM>
__global__ void __launch_bounds__(32 * kAttendWarps, 1)
attend(const float* q, const uint8_t* keys, const uint8_t* values, const uint32_t* key_params,
       const uint32_t* value_params, const int* lengths, float* parts, int* arrived, float* out, float scale,
       int queries, int heads, int layer, int pages, int kv_heads, int capacity) {
    constexpr int kPart = DIM + 3;
    NB_SHARED(float, warps);  // [warp][8][kPart]
    using S = Shape<STORED, DIM>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = blockIdx.y, shared = heads / kv_heads;
    const int total_length = lengths[layer], start = total_length - queries;
    const Pages at{layer, pages, kv_heads, S::kRowBytes};
    // Row r of this block is query token index / shared, head kv · shared + index % shared.
    const int first = blockIdx.z * 8, count = min(8, queries * shared - first);
    const int index = first + lane / 4;
    const bool real = lane / 4 < count;
    const int length = real ? start + index / shared + 1 : 0;
    const int64_t row = static_cast<int64_t>(index / shared) * heads + kv * shared + index % shared;

    Running<STORED, DIM> state;
    state.open(real ? q + row * DIM : nullptr, scale);
    const bool fits = total_length <= capacity;
    const int longest = fits ? start + (first + count - 1) / shared + 1 : 0, tiles = (longest + 15) / 16;
    const int splits = gridDim.x, share = (tiles + splits - 1) / splits;
    const int from = blockIdx.x * share, to = min(from + share, tiles);

    // Tiles whose loads are under way while one is computed, as far as registers go.
    constexpr int kAhead = S::kBits == 4 && DIM <= 128 ? 2 : DIM <= 128 ? 1 : 0;
    Tokens<STORED, DIM> ahead[kAhead + 1];
    auto load = [&](Tokens<STORED, DIM>& tile, int i) {
        if (i < to) tile.load(keys, values, key_params, value_params, at, kv, i * 16, longest);
    };
    NB_UNROLL
    for (int d = 0; d < kAhead; ++d) load(ahead[d], from + warp + d * kAttendWarps);
    for (int i = from + warp; i < to; i += (kAhead + 1) * kAttendWarps) {
        NB_UNROLL
        for (int d = 0; d <= kAhead; ++d) {
            const int now = i + d * kAttendWarps;
            load(ahead[(d + kAhead) % (kAhead + 1)], now + kAhead * kAttendWarps);
            if (now < to) state.add(ahead[d], now * 16, length);
        }
    }
    state.close(warps + warp * 8 * kPart);
    __syncthreads();

    const int64_t group = static_cast<int64_t>(kv) * gridDim.z + blockIdx.z;
    float* mine = parts + (group * splits + blockIdx.x) * 8 * kPart;
    for (int i = threadIdx.x; i < count * DIM; i += 32 * kAttendWarps) {
        const int r = i / DIM, d = i % DIM;
        const Joint joint = Joint::of(warps + r * kPart, kAttendWarps, 8 * kPart, d);
        mine[r * kPart + 3 + d] = joint.total;
        if (d == 0) mine[r * kPart] = joint.peak, mine[r * kPart + 1] = joint.mass, mine[r * kPart + 2] = 0.0f;
    }
    __threadfence();
    __syncthreads();
    int* last = reinterpret_cast<int*>(warps);
    if (threadIdx.x == 0) *last = atomicAdd(&arrived[group], 1) == splits - 1;
    __syncthreads();
    if (!*last) return;  // the whole block
    __threadfence();
    if (threadIdx.x == 0) arrived[group] = 0;
    // Warp r joins query r's peaks and masses; then every thread adds its dimensions over the parts.
    const float* all = parts + group * splits * 8 * kPart;
    float* masses = warps + 8;  // behind what *last used
    float* factors = masses + 8;
    __syncthreads();
    if (warp < count) {
        float most = -INFINITY, mass = 0.0f;
        for (int i = lane; i < splits; i += 32) most = max(most, all[(i * 8 + warp) * kPart]);
        most = fold_warp<Largest>(most);
        for (int i = lane; i < splits; i += 32) {
            const float* part = all + (i * 8 + warp) * kPart;
            const float factor = part[0] == -INFINITY ? 0.0f : power_of_two(part[0] - most);
            factors[warp * splits + i] = factor;
            mass += part[1] * factor;
        }
        mass = fold_warp<Add>(mass);
        if (lane == 0) masses[warp] = mass;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * DIM; i += 32 * kAttendWarps) {
        const int r = i / DIM, d = i % DIM, query = first + r;
        float sum = 0.0f;
        NB_UNROLL_BY(16)
        for (int s = 0; s < splits; ++s) sum += factors[r * splits + s] * all[(s * 8 + r) * kPart + 3 + d];
        out[(static_cast<int64_t>(query / shared) * heads + kv * shared + query % shared) * DIM + d] = sum / masses[r];
    }
}
