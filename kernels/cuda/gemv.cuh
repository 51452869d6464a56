// y = x · Wᵀ for up to 16 tokens: packed weights stream once from memory through int8 matrix instructions.
//
// Weights lie in the order in which lanes want them (`nearbank.kernels.cuda.layout`): 16 rows × 4096 / BITS · …
// columns make one block of 512 bytes, 16 bytes per lane. Word j of a lane holds register j of the A operand,
// and a shift by BITS · i with a mask turns it into the four int8 lanes of step i. Codes are unsigned (int8:
// signed), so with x's sums a level is step · code − zero at no cost per weight. The order of the sum over k
// is free, since integers add exactly; so the B operand takes x in plain order, 16 bytes at a time.
#pragma once
#include "portable.cuh"

constexpr int kWarps = 8;           // per block; they share the columns of their rows
constexpr int kBlock = kWarps * 32;

template <int BITS>
struct Packing {
    static constexpr int kSteps = 8 / BITS;               // matrix steps in one block of weights
    static constexpr int kColumns = 32 * kSteps;          // columns of one block of weights
    static constexpr int kWords = 2 * kSteps;             // words of x per lane and token, for one block
    static constexpr uint32_t kMask = BITS == 8 ? 0xffffffffu : 0x01010101u * ((1u << (BITS & 7)) - 1);
};

// How codes become values: level = step · code − zero (zeros per row and group when `zeros` is set),
// value = level · scales[row · scale_stride + group] · x_scales[token].
struct RowTerms {
    float scale;
    int offset;
};
struct Epilogue {
    const float* scales;
    const uint8_t* zeros;
    const float* x_scales;
    const int* x_sums;
    float* y;
    int scale_stride, groups, step, zero, rows, tokens;

    NB_INLINE RowTerms row_terms(int row, int group) const {
        if (row >= rows) return {0.0f, 0};
        const int64_t at = static_cast<int64_t>(row) * scale_stride + group;
        return {scales[at], zeros ? zeros[at] : zero};
    }
    NB_INLINE float scaled(RowTerms terms, int sum, int x_sum, float x_scale) const {
        const int level = step * sum - terms.offset * x_sum;
        return __fmul_rn(__int2float_rn(level), __fmul_rn(x_scale, terms.scale));
    }
    NB_INLINE float value(RowTerms terms, int token, int group, int sum) const {
        return scaled(terms, sum, x_sums[token * groups + group], x_scales[token]);
    }
    NB_INLINE float value(int row, int token, int group, int sum) const {
        return value(row_terms(row, group), token, group, sum);
    }
    NB_INLINE void store(int row, int token, float value) const {
        if (row < rows && token < tokens) y[static_cast<int64_t>(token) * rows + row] = value;
    }
};

// An Epilogue as plain kernel parameters, in its fields' order.
#define NB_EPILOGUE_PARAMETERS                                                                                  \
    const float *scales, const uint8_t *zeros, const float *x_scales, const int *x_sums, float *y,              \
        int scale_stride, int groups, int step, int zero, int rows, int tokens
#define NB_EPILOGUE {scales, zeros, x_scales, x_sums, y, scale_stride, groups, step, zero, rows, tokens}

template <int WORDS>
NB_INLINE void load_words(uint32_t (&out)[WORDS], const int8_t* at) {
    if (WORDS == 2) {
        const uint2 v = *reinterpret_cast<const uint2*>(at);
        out[0] = v.x, out[1] = v.y;
        return;
    }
    NB_UNROLL
    for (int i = 0; i < WORDS / 4; ++i) {
        const uint4 v = reinterpret_cast<const uint4*>(at)[i];
        out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
    }
}

// One warp's weights of ROWS tiles in one column block.
template <int BITS, int ROWS>
struct Weights {
    uint4 w[ROWS];

    NB_INLINE void load(const uint4* weights, int64_t tile_stride) {
        NB_UNROLL
        for (int r = 0; r < ROWS; ++r) w[r] = load_once(weights + r * tile_stride + threadIdx.x % 32);
    }
};

// The slice of x that meets one column block: this lane's words of up to 8 · TOKENS tokens.
template <int BITS, int TOKENS>
struct Slice {
    using P = Packing<BITS>;
    uint32_t x[TOKENS][P::kWords];

    NB_INLINE void load(const int8_t* x_at, int64_t x_stride, int tokens) {
        const int lane = threadIdx.x % 32;
        NB_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const int token = 8 * t + lane / 4;
            if (token < tokens)
                load_words(x[t], x_at + token * x_stride + lane % 4 * (4 * P::kWords));
            else
                for (int i = 0; i < P::kWords; ++i) x[t][i] = 0;
        }
    }
};

template <int BITS, int ROWS, int TOKENS>
NB_INLINE void multiply(int (&sums)[ROWS][TOKENS][4], const Weights<BITS, ROWS>& weights,
                        const Slice<BITS, TOKENS>& slice) {
    constexpr uint32_t mask = Packing<BITS>::kMask;
    NB_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const uint4 w = weights.w[r];
        NB_UNROLL
        for (int i = 0; i < Packing<BITS>::kSteps; ++i) {
            const uint32_t a[4] = {w.x >> BITS * i & mask, w.y >> BITS * i & mask, w.z >> BITS * i & mask,
                                   w.w >> BITS * i & mask};
            NB_UNROLL
            for (int t = 0; t < TOKENS; ++t) {
                const uint32_t b[2] = {slice.x[t][2 * i], slice.x[t][2 * i + 1]};
                mma_s8(sums[r][t], a, b);
            }
        }
    }
}

// Where accumulator c of a lane lies in its 16 × 8 tile.
NB_INLINE int tile_row(int lane, int c) { return lane / 4 + c / 2 * 8; }
NB_INLINE int tile_token(int lane, int c) { return lane % 4 * 2 + c % 2; }

// Adds the warps' sums of one row block; thread t then holds outputs t, t + 256, … of [16 · ROWS rows][8 · TOKENS].
template <int ROWS, int TOKENS>
NB_INLINE void gather_warps(const int (&sums)[ROWS][TOKENS][4], int* gathered, int (&mine)[ROWS * TOKENS / 2 + 1]) {
    constexpr int kOutputs = 128 * ROWS * TOKENS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    NB_UNROLL
    for (int r = 0; r < ROWS; ++r)
        NB_UNROLL
        for (int t = 0; t < TOKENS; ++t)
            NB_UNROLL
            for (int c = 0; c < 4; ++c)
                gathered[warp * kOutputs + ((r * 16 + tile_row(lane, c)) * TOKENS + t) * 8 + tile_token(lane, c)] =
                    sums[r][t][c];
    __syncthreads();
    NB_UNROLL
    for (int i = 0; i * kBlock < kOutputs; ++i) {
        const int at = i * kBlock + threadIdx.x;
        int sum = 0;
        if (at < kOutputs)
            for (int w = 0; w < kWarps; ++w) sum += gathered[w * kOutputs + at];
        mine[i] = sum;
    }
    __syncthreads();
}

// One scale per row or tensor. The work, row blocks × steps of 8 column blocks, is cut into equal shares, one
// per thread block, wherever the cuts fall. A row block that several thread blocks share meets in `partial`
// (int32, exact in any order); the last to add writes y and leaves zeros behind for the next launch.
template <int BITS, int ROWS, int TOKENS>
__global__ void __launch_bounds__(kBlock, 2)
gemv_stream(const uint4* weights, const int8_t* x, int columns, int row_blocks, int* partial, int* arrived,
            NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    NB_SHARED(int, gathered);
    constexpr int kOutputs = 128 * ROWS * TOKENS, kMine = ROWS * TOKENS / 2 + 1;
    constexpr int kDepth = TOKENS * Packing<BITS>::kWords >= 32 ? 1 : 2;  // what the registers hold
    const int warp = threadIdx.x / 32, blocks = columns / Packing<BITS>::kColumns;
    const int steps = (blocks + kWarps - 1) / kWarps;
    const int64_t units = static_cast<int64_t>(row_blocks) * steps;
    const int64_t first = units * blockIdx.x / gridDim.x, last = units * (blockIdx.x + 1) / gridDim.x;
    const int64_t tile = static_cast<int64_t>(blocks) * 32;

    Weights<BITS, ROWS> held[kDepth];
    Slice<BITS, TOKENS> slices[kDepth];
    auto block_of = [&](int64_t unit) { return static_cast<int>(unit % steps) * kWarps + warp; };
    auto present = [&](int64_t unit) { return unit < last && block_of(unit) < blocks; };
    auto load_weights = [&](int d, int64_t unit) {
        if (present(unit)) held[d].load(weights + unit / steps * ROWS * tile + block_of(unit) * 32, tile);
    };
    auto load_x = [&](int d, int64_t unit) {
        if (present(unit)) slices[d].load(x + block_of(unit) * Packing<BITS>::kColumns, columns, out.tokens);
    };
    NB_UNROLL
    for (int d = 0; d < kDepth; ++d) load_weights(d, first + d);
    wait_for_previous();
    let_next_begin();
    NB_UNROLL
    for (int d = 0; d < kDepth; ++d) load_x(d, first + d);

    int sums[ROWS][TOKENS][4] = {};
    int64_t opened = first;  // the first unit added to `sums`
    auto close = [&](int64_t row_block, int done) {
        int mine[kMine];
        gather_warps<ROWS, TOKENS>(sums, gathered, mine);
        const int64_t base = row_block * kOutputs;
        bool complete = done == steps;
        if (!complete) {
            NB_UNROLL
            for (int i = 0; i * kBlock < kOutputs; ++i)
                if (i * kBlock + threadIdx.x < kOutputs) atomicAdd(&partial[base + i * kBlock + threadIdx.x], mine[i]);
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) gathered[0] = atomicAdd(&arrived[row_block], done) + done;
            __syncthreads();
            complete = gathered[0] == steps;
            __syncthreads();
            if (complete) {
                __threadfence();
                NB_UNROLL
                for (int i = 0; i * kBlock < kOutputs; ++i)
                    if (i * kBlock + threadIdx.x < kOutputs)
                        mine[i] = atomicExch(&partial[base + i * kBlock + threadIdx.x], 0);
                if (threadIdx.x == 0) atomicExch(&arrived[row_block], 0);
            }
        }
        NB_UNROLL
        for (int i = 0; i * kBlock < kOutputs; ++i) {
            const int at = i * kBlock + threadIdx.x, token = at % (8 * TOKENS);
            const int row = static_cast<int>(row_block) * 16 * ROWS + at / (8 * TOKENS);
            if (complete && at < kOutputs && row < out.rows && token < out.tokens)
                out.store(row, token, __fadd_rn(0.0f, out.value(row, token, 0, mine[i])));
        }
    };

    for (int64_t unit = first; unit < last; unit += kDepth) {
        NB_UNROLL
        for (int d = 0; d < kDepth; ++d) {
            const int64_t now = unit + d;
            if (now < last) {
                if (present(now)) multiply(sums, held[d], slices[d]);
                load_weights(d, now + kDepth);
                load_x(d, now + kDepth);
                if (now + 1 == last || (now + 1) % steps == 0) {
                    close(now / steps, static_cast<int>(now + 1 - opened));
                    opened = now + 1;
                    NB_UNROLL
                    for (int r = 0; r < ROWS; ++r)
                        for (int t = 0; t < TOKENS; ++t)
                            for (int c = 0; c < 4; ++c) sums[r][t][c] = 0;
                }
            }
        }
    }
}

// A scale (and zero) per group of columns. One thread block per 16 rows, its warps taking groups in turn; exact
// group sums meet in shared memory, `batch` groups at a time, and are scaled and added in the order of the groups.
template <int BITS, int TOKENS>
__global__ void __launch_bounds__(kBlock, 2)
gemv_groups(const uint4* weights, const int8_t* x, int columns, int blocks_per_group, int batch, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    NB_SHARED(int, group_sums);  // [batch][16 rows][8 · TOKENS]
    constexpr int kOutputs = 128 * TOKENS;
    constexpr int kDepth = TOKENS * Packing<BITS>::kWords <= 8 ? 4 : TOKENS * Packing<BITS>::kWords <= 16 ? 2 : 1;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int blocks = columns / Packing<BITS>::kColumns;
    const uint4* tile_weights = weights + static_cast<int64_t>(blockIdx.x) * blocks * 32;
    float totals[(kOutputs + kBlock - 1) / kBlock] = {};

    for (int start = 0; start < out.groups; start += batch) {
        const int end = min(start + batch, out.groups);
        const int share = (end - start - warp + kWarps - 1) / kWarps;  // groups of this warp
        const int count = share > 0 ? share * blocks_per_group : 0;
        Weights<BITS, 1> held[kDepth];
        Slice<BITS, TOKENS> slices[kDepth];
        auto load = [&](int d, int i) {
            if (i >= count) return;
            const int group = start + warp + i / blocks_per_group * kWarps;
            const int64_t block = static_cast<int64_t>(group) * blocks_per_group + i % blocks_per_group;
            held[d].load(tile_weights + block * 32, 0);
            slices[d].load(x + block * Packing<BITS>::kColumns, columns, out.tokens);
        };
        NB_UNROLL
        for (int d = 0; d < kDepth; ++d) load(d, d);
        int sums[1][TOKENS][4] = {};
        for (int i = 0; i < count; i += kDepth) {
            NB_UNROLL
            for (int d = 0; d < kDepth; ++d) {
                if (i + d >= count) continue;
                multiply(sums, held[d], slices[d]);
                load(d, i + d + kDepth);
                if ((i + d + 1) % blocks_per_group) continue;
                const int slot = warp + (i + d) / blocks_per_group * kWarps;
                NB_UNROLL
                for (int t = 0; t < TOKENS; ++t)
                    NB_UNROLL
                    for (int c = 0; c < 4; ++c) {
                        const int token = 8 * t + tile_token(lane, c);
                        group_sums[slot * kOutputs + tile_row(lane, c) * 8 * TOKENS + token] = sums[0][t][c];
                        sums[0][t][c] = 0;
                    }
            }
        }
        __syncthreads();
        NB_UNROLL
        for (int i = 0; i * kBlock < kOutputs; ++i) {
            const int at = i * kBlock + threadIdx.x, token = at % (8 * TOKENS);
            const int row = blockIdx.x * 16 + at / (8 * TOKENS);
            if (at < kOutputs && row < out.rows && token < out.tokens)
                for (int g = start; g < end; ++g)
                    totals[i] =
                        __fadd_rn(totals[i], out.value(row, token, g, group_sums[(g - start) * kOutputs + at]));
        }
        __syncthreads();
    }
    NB_UNROLL
    for (int i = 0; i * kBlock < kOutputs; ++i) {
        const int at = i * kBlock + threadIdx.x;
        if (at < kOutputs) out.store(blockIdx.x * 16 + at / (8 * TOKENS), at % (8 * TOKENS), totals[i]);
    }
}

// For chips with four-way dot products but no int8 matrix instruction (compute capability 6.1 and 7.0).
// One warp per 16 rows; lane (group, t) holds rows group and group + 8, and the four t add up at the end.
template <int BITS>
__global__ void __launch_bounds__(kBlock)
gemv_dot4(const uint4* weights, const int8_t* x, int columns, int blocks_per_group, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    using P = Packing<BITS>;
    const int lane = threadIdx.x % 32, tile = blockIdx.x * kWarps + threadIdx.x / 32;
    const int token = blockIdx.y, blocks = columns / P::kColumns;
    if (tile * 16 >= out.rows) return;
    const uint4* tile_weights = weights + static_cast<int64_t>(tile) * blocks * 32 + lane;
    const int8_t* x_row = x + static_cast<int64_t>(token) * columns + lane % 4 * (4 * P::kWords);
    float totals[2] = {0.0f, 0.0f};
    for (int group = 0; group < out.groups; ++group) {
        int sums[2] = {0, 0};
        for (int b = group * blocks_per_group; b < (group + 1) * blocks_per_group; ++b) {
            const uint4 w = load_once(tile_weights + static_cast<int64_t>(b) * 32);
            uint32_t words[P::kWords];
            load_words(words, x_row + static_cast<int64_t>(b) * P::kColumns);
            NB_UNROLL
            for (int i = 0; i < P::kSteps; ++i) {
                sums[0] = dot4(w.x >> BITS * i & P::kMask, words[2 * i], sums[0]);
                sums[1] = dot4(w.y >> BITS * i & P::kMask, words[2 * i], sums[1]);
                sums[0] = dot4(w.z >> BITS * i & P::kMask, words[2 * i + 1], sums[0]);
                sums[1] = dot4(w.w >> BITS * i & P::kMask, words[2 * i + 1], sums[1]);
            }
        }
        NB_UNROLL
        for (int half = 0; half < 2; ++half) {
            sums[half] += __shfl_xor_sync(NB_ALL, sums[half], 1);
            sums[half] += __shfl_xor_sync(NB_ALL, sums[half], 2);
            const int row = tile * 16 + lane / 4 + 8 * half;
            if (row < out.rows) totals[half] = __fadd_rn(totals[half], out.value(row, token, group, sums[half]));
        }
    }
    NB_UNROLL
    for (int half = 0; half < 2; ++half)
        if (lane % 4 == 0) out.store(tile * 16 + lane / 4 + 8 * half, token, totals[half]);
}
