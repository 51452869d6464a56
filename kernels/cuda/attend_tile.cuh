// What one warp does in the fast attention: 8 queries against tiles of 16 tokens on matrix instructions.
//
// Two bfloat16 (fp16 caches: fp16), the upper half and what rounding left over, make 16 bits of a query or a weight.
// q · k: queries are the A operand, upper halves in rows 0–7 and the rest in rows 8–15, so one instruction gives both
// products and the same lane holds both. The order of the head's dimensions is free, so a lane takes neighbouring
// words of K as they lie in memory.
// p · v: V is the A operand, 16 dimensions by 16 tokens, words of two tokens paired byte by byte; the weights' halves
// are two B operands into the same sums. The weights come out of q · k in the lanes where p · v wants them.
// Codes are exact in bfloat16; scale and offset of a token multiply finished sums. A code c of 2 or 4 bits is cheapest
// as 128 + c. The queries' product with 128 is where the sums of q · k start from, negative; p · v takes out 128 times
// the sum of the weights' halves.
#pragma once
#include "kv.cuh"

// Two bfloat16 (or fp16) codes from each of the registers that a 32-bit word unpacks to.
template <int STORED>
struct Unpack {
    static constexpr bool kSmall = STORED == kStored2 || STORED == kStored4;
    static constexpr int kBits = STORED < 16 ? STORED : 16;
    static constexpr int kPlaces = 8 / (kBits > 8 ? 8 : kBits);  // values per byte
    static constexpr int kValues = 32 / kBits, kRegisters = kValues / 2;  // per word
    static constexpr float kBias = kSmall ? 128.0f : 0.0f;       // what every unpacked code has too much
    static constexpr uint32_t kField = (1u << kBits % 8) - 1;

    // Codes in the low bits of both halves, as 128 + code. `biases` is 0x43004300, held in a register.
    NB_INLINE static uint32_t small_codes(uint32_t bits, uint32_t biases) {
        return (bits & (kField << 16 | kField)) | biases;
    }
    NB_INLINE static uint32_t byte_codes(uint32_t word, int low, int high) {  // two of its bytes
        const float a = __fsub_rn(__uint_as_float(pick_bytes(word, 0x4b000000u, 0x7440u | low)), 8388608.0f);
        const float b = __fsub_rn(__uint_as_float(pick_bytes(word, 0x4b000000u, 0x7440u | high)), 8388608.0f);
        return pick_bytes(__float_as_uint(a), __float_as_uint(b), 0x7632);
    }
    // K: register i of word w of one token.
    NB_INLINE static uint32_t key(uint32_t w, int i, uint32_t biases) {
        if (kSmall) return small_codes(w >> (i / kPlaces * 8 + i % kPlaces * kBits), biases);
        if (kBits == 8) return byte_codes(w, 2 * i, 2 * i + 1);
        return w;
    }
    // A lane's dimensions as runs of four: where run c begins in a row whose byte `first` is the lane's first.
    NB_INLINE static int run(int first, int c) {
        return kBits == 16 ? first / 2 + 4 * c : Row<STORED>::dimension(first + c / kPlaces * 4, c % kPlaces);
    }
    // Which of the lane's values, counted along its runs, is value `which` of register i of word w of K.
    NB_INLINE static constexpr int key_value(int w, int i, int which) {
        return kSmall      ? 4 * (w * kPlaces + i % kPlaces) + i / kPlaces + 2 * which
               : kBits == 8 ? 4 * w + 2 * i + which
                            : 2 * w + which;
    }
    // V: value i of the words of two tokens, as a pair (first token, second token).
    NB_INLINE static uint32_t pair(uint32_t first, uint32_t second, int i, uint32_t biases) {
        if (kSmall) {
            const uint32_t b = i / kPlaces, picked = b | b << 4 | (4 + b) << 8 | (4 + b) << 12;
            const uint32_t bytes = pick_bytes(first, second, picked);
            return small_codes(bytes >> i % kPlaces * kBits, biases);
        }
        if (kBits == 8) {
            const float a = __fsub_rn(__uint_as_float(pick_bytes(first, 0x4b000000u, 0x7440u | i)), 8388608.0f);
            const float b = __fsub_rn(__uint_as_float(pick_bytes(second, 0x4b000000u, 0x7440u | i)), 8388608.0f);
            return pick_bytes(__float_as_uint(a), __float_as_uint(b), 0x7632);
        }
        return pick_bytes(first, second, i ? 0x7632 : 0x5410);
    }
    NB_INLINE static int pair_dimension(int byte, int i) {
        return kBits == 16 ? byte / 2 + i : Row<STORED>::dimension(byte + i / kPlaces, i % kPlaces);
    }
};

// A lane's words of one row, AHEAD bytes behind `at`.
template <int AHEAD, int WORDS, int FROM = 0>
NB_INLINE void load_row_part(uint32_t (&out)[WORDS], const uint8_t* at) {
    if constexpr (WORDS == 1) {
        out[0] = load_once<AHEAD>(reinterpret_cast<const uint32_t*>(at));
    } else if constexpr (WORDS == 2) {
        const uint2 v = load_once<AHEAD>(reinterpret_cast<const uint2*>(at));
        out[0] = v.x, out[1] = v.y;
    } else {
        const uint4 v = load_once<AHEAD + 4 * FROM>(reinterpret_cast<const uint4*>(at));
        out[FROM] = v.x, out[FROM + 1] = v.y, out[FROM + 2] = v.z, out[FROM + 3] = v.w;
        if constexpr (FROM + 4 < WORDS) load_row_part<AHEAD, WORDS, FROM + 4>(out, at);
    }
}

template <int STORED, int DIM>
struct Shape {
    static constexpr int kRowBytes = DIM * Unpack<STORED>::kBits / 8;
    static constexpr int kKeyBytes = kRowBytes / 4, kValueBytes = kRowBytes / 8;  // of one lane
    static constexpr int kSteps = DIM / 16;  // matrix steps of q · k, and tiles of 16 dimensions of p · v
    static constexpr int kQueries = DIM / 4;  // values of a query in one lane
    static constexpr bool kCodes = STORED < 16, kHalf = STORED == kStoredHalf;
    // A lane's dimension that total `c` of tile n of 16 dimensions belongs to; c / 2 alone matters.
    NB_INLINE static int total_dimension(int group, int n, int c) {
        constexpr int kValues = Unpack<STORED>::kValues;
        return Unpack<STORED>::pair_dimension(group * kValueBytes + 2 * n / kValues * 4, 2 * n % kValues + c / 2);
    }
};

// 16 tokens of K and V as one lane holds them: K of tokens group and group + 8, V of 2t, 2t + 1, 2t + 8, 2t + 9.
template <int STORED, int DIM>
struct Tokens {
    using S = Shape<STORED, DIM>;
    uint32_t k[2][S::kKeyBytes / 4], v[4][S::kValueBytes / 4];
    uint2 k_params[2], v_params[2];

    // From the lane's own place in the first token's row; GROUPED keys have no parameters per token.
    template <bool GROUPED>
    NB_INLINE void load_keys(const uint8_t* rows, const uint32_t* params) {
        load_row_part<0>(k[0], rows);
        load_row_part<8 * S::kRowBytes>(k[1], rows);
        if (!S::kCodes || GROUPED) return;
        k_params[0] = *reinterpret_cast<const uint2*>(params);
        k_params[1] = *reinterpret_cast<const uint2*>(params + 8);
    }

    NB_INLINE void load_values(const uint8_t* rows, const uint32_t* params) {
        load_row_part<0>(v[0], rows);
        load_row_part<S::kRowBytes>(v[1], rows);
        load_row_part<8 * S::kRowBytes>(v[2], rows);
        load_row_part<9 * S::kRowBytes>(v[3], rows);
        if (!S::kCodes) return;
        v_params[0] = *reinterpret_cast<const uint2*>(params);
        v_params[1] = *reinterpret_cast<const uint2*>(params + 8);
    }

    // What lies behind the first `left` tokens may be anything, NaN too, which a weight of 0 would not silence.
    NB_INLINE void forget_values(int left) {
        const int place = 2 * static_cast<int>(threadIdx.x % 4);
        NB_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (place + i / 2 * 8 + i % 2 < left) continue;
            if (S::kCodes) (i % 2 ? v_params[i / 2].y : v_params[i / 2].x) = 0;
            NB_UNROLL
            for (int w = 0; !S::kCodes && w < S::kValueBytes / 4; ++w) v[i][w] = 0;
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
    const uint32_t both = pack_f16x2<HALF>(first, second);
    const float high = HALF ? widened<HALF>(both >> 16) : __uint_as_float(both & 0xffff0000u);
    lower = pack_f16x2<HALF>(first - widened<HALF>(both & 0xffff), second - high);
    upper = both;
}

// 8 queries as matrix operands, and what finished sums still need of them.
template <int STORED, int DIM>
struct Queries {
    using S = Shape<STORED, DIM>;
    using U = Unpack<STORED>;
    uint32_t parts[S::kSteps][4];
    float zero[4], sum, unit;  // minus the product with kBias, as sums begin; Σ q; what the parts are multiples of

    NB_INLINE void set(const float (&values)[S::kQueries], uint32_t biases) {
        unit = 1.0f;
        float inverse = 1.0f;
        if (S::kHalf) {  // a power of two brings fp16 queries near 1; bfloat16 needs none
            float largest = 0.0f;
            NB_UNROLL
            for (int i = 0; i < S::kQueries; ++i) largest = Largest::of(largest, magnitude(values[i]));
            for (int bits = 1; bits < 4; bits *= 2)
                largest = Largest::of(largest, __shfl_xor_sync(NB_ALL, largest, bits));
            const uint32_t exponent = __float_as_uint(largest) >> 23;
            if (exponent > 1 && exponent < 254)
                inverse = __uint_as_float((254 - exponent) << 23), unit = __uint_as_float(exponent << 23);
        }
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int r = 0; r < 2; ++r) {
                const int w = (2 * s + r) / U::kRegisters, i = (2 * s + r) % U::kRegisters;
                const float a = values[U::key_value(w, i, 0)], b = values[U::key_value(w, i, 1)];
                split<S::kHalf>(a * inverse, b * inverse, parts[s][2 * r], parts[s][2 * r + 1]);
            }
        if (!S::kCodes) return;
        const uint32_t ones[2] = {U::kSmall ? biases : 0x3f803f80u, U::kSmall ? biases : 0x3f803f80u};
        float c[4] = {};
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s) mma_f16<false>(c, parts[s], ones);
        sum = (c[0] + c[2]) * (U::kSmall ? 1.0f / U::kBias : 1.0f);
        NB_UNROLL
        for (int i = 0; i < 4; ++i) zero[i] = -c[i];
    }

    // Of 16 tokens; `shift` is added to every score of a query.
    template <bool GROUPED>
    NB_INLINE void score(float (&scores)[4], const Tokens<STORED, DIM>& tile, float shift, uint32_t biases) const {
        float c[2][4];
        NB_UNROLL
        for (int i = 0; i < 8; ++i)
            c[i / 4][i % 4] = (U::kSmall ? zero[i % 4] : 0.0f) + (GROUPED && i % 4 < 2 ? shift : 0.0f);
        NB_UNROLL
        for (int s = 0; s < S::kSteps; ++s)
            NB_UNROLL
            for (int n = 0; n < 2; ++n) {
                const int w = 2 * s / U::kRegisters, i = 2 * s % U::kRegisters;
                constexpr int kNext = U::kRegisters > 1 ? 0 : 1;
                const uint32_t b[2] = {U::key(tile.k[n][w], i, biases),
                                       U::key(tile.k[n][w + kNext], kNext ? 0 : i + 1, biases)};
                mma_f16<S::kHalf>(c[n], parts[s], b);
            }
        NB_UNROLL
        for (int i = 0; i < 4; ++i) {
            const float dot = c[i / 2][i % 2] + c[i / 2][2 + i % 2];
            const uint32_t param = i % 2 ? tile.k_params[i / 2].y : tile.k_params[i / 2].x;
            if (S::kCodes && !GROUPED)
                scores[i] = dot * bf16_to_float(param) + __uint_as_float(param & 0xffff0000u) * sum;
            else
                scores[i] = S::kHalf ? dot * unit : dot;
        }
    }
};

// Scales and offsets of a group's key channels as one lane needs them: those of its runs of four dimensions.
template <int STORED, int DIM>
struct GroupParams {
    static constexpr int kRuns = DIM / 16;
    uint2 scales[kRuns], offsets[kRuns];

    NB_INLINE void load(const uint16_t* params) {
        NB_UNROLL
        for (int c = 0; c < kRuns; ++c) {
            const int d = Unpack<STORED>::run(threadIdx.x % 4 * Shape<STORED, DIM>::kKeyBytes, c);
            scales[c] = *reinterpret_cast<const uint2*>(params + d);
            offsets[c] = *reinterpret_cast<const uint2*>(params + DIM + d);
        }
    }
    NB_INLINE static float value(const uint2& four, int e) {
        const uint32_t two = e < 2 ? four.x : four.y;
        return e % 2 ? __uint_as_float(two & 0xffff0000u) : bf16_to_float(two);
    }
    // Queries times the scales; returns what the offsets add to each score of this lane's query.
    NB_INLINE float apply(Queries<STORED, DIM>& queries, const float (&raw)[DIM / 4], uint32_t biases) const {
        float scaled[DIM / 4], shift = 0.0f;
        NB_UNROLL
        for (int i = 0; i < DIM / 4; ++i) {
            scaled[i] = raw[i] * value(scales[i / 4], i % 4);
            shift += raw[i] * value(offsets[i / 4], i % 4);
        }
        for (int bits = 1; bits < 4; bits *= 2) shift += __shfl_xor_sync(NB_ALL, shift, bits);
        queries.set(scaled, biases);
        return shift;
    }
};

constexpr float kNone = -3.0e38f;  // the peak of no token
constexpr float kSlack = 8.0f;     // how far scores may pass the peak before sums are brought to a new one: 2⁸

// What one warp has summed for its 8 queries, relative to a peak in powers of two. A lane holds peak and sums of query
// group (its lane / 4); `total` and `weights` of queries 2t and 2t + 1, where t is lane % 4.
template <int STORED, int DIM>
struct Running {
    using S = Shape<STORED, DIM>;
    using U = Unpack<STORED>;
    float total[S::kSteps][4] = {}, weights[4] = {};
    float peak = kNone, mass = 0.0f, offset = 0.0f;

    // Of the two queries whose totals this lane holds, what their own lanes hold.
    NB_INLINE static void of_totals(float value, float (&both)[2]) {
        const int t = threadIdx.x % 4;
        both[0] = __shfl_sync(NB_ALL, value, 8 * t);
        both[1] = __shfl_sync(NB_ALL, value, 8 * t + 4);
    }

    NB_INLINE void rescale(const float (&scores)[4]) {
        float most = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        if (!__ballot_sync(NB_ALL, most > peak + kSlack)) return;
        for (int bits = 1; bits < 4; bits *= 2) most = max(most, __shfl_xor_sync(NB_ALL, most, bits));
        most = max(most, peak);
        const float factor = power_of_two(peak - most);
        peak = most;
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

    NB_INLINE void weigh(const Tokens<STORED, DIM>& tile, const float (&scores)[4], uint32_t biases) {
        uint32_t parts[2][2];  // upper and lower halves, of tokens 8n + 2t and 8n + 2t + 1
        NB_UNROLL
        for (int n = 0; n < 2; ++n) {
            float scaled[2];
            NB_UNROLL
            for (int i = 0; i < 2; ++i) {
                const float weight = power_of_two(scores[2 * n + i] - peak);
                mass += weight;
                scaled[i] = weight;
                if (!S::kCodes) continue;
                const uint32_t param = i ? tile.v_params[n].y : tile.v_params[n].x;
                scaled[i] = weight * bf16_to_float(param);
                offset += weight * __uint_as_float(param & 0xffff0000u);
            }
            split<S::kHalf>(scaled[0], scaled[1], parts[0][n], parts[1][n]);
        }
        NB_UNROLL
        for (int n = 0; n < S::kSteps; n += 2) {  // two tiles in turn, so that no instruction waits for the one before
            uint32_t a[2][4];
            NB_UNROLL
            for (int r = 0; r < 8; ++r) {
                const int w = 2 * (n + r / 4) / U::kValues, i = 2 * (n + r / 4) % U::kValues + r % 2, pair = r % 4 / 2;
                a[r / 4][r % 4] = U::pair(tile.v[2 * pair][w], tile.v[2 * pair + 1][w], i, biases);
            }
            NB_UNROLL
            for (int r = 0; r < 4; ++r) mma_f16<S::kHalf>(total[n + r % 2], a[r % 2], parts[r / 2]);
        }
        if (!U::kSmall) return;
        const uint32_t all[4] = {biases, biases, biases, biases};
        mma_f16<false>(weights, all, parts[0]);
        mma_f16<false>(weights, all, parts[1]);
    }
};
