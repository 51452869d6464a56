// y = x · Wᵀ for many tokens on Hopper (sm_90a): warpgroup matrix instructions, one scale per row or tensor.
//
// A thread block is 128 rows × 256 tokens; each of its two warpgroups has 64 rows, 16 per warp. Weights go from memory
// to registers and are the A operand; activations are the B operand, read by the instruction itself from shared
// memory, 128 bytes of a token's row at a time with the hardware's 128-byte swizzle (16-byte unit u of row r lies at
// u ^ (r & 7)). An instruction takes 32 neighbouring columns, so activations come "in steps": see `in_steps` in
// quantise.cuh. Only `nearbank.kernels.cupy_backend` chooses this kernel, after it gave gemm.cuh's sums on the device.
#pragma once
#include "gemv.cuh"

constexpr int kWideTokens = 256, kWideStages = 4, kWideStep = 128, kWideStageBytes = kWideTokens * kWideStep;

#if NB_PTX
NB_INLINE uint32_t shared_address(const void* at) {
    uint32_t out;
    asm("{.reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t;}" : "=r"(out) : "l"(at));
    return out;
}
// What was written to shared memory is seen by the matrix unit; registers may be handed to it.
NB_INLINE void show_to_matrix_unit() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
NB_INLINE void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Until at most PENDING earlier ends are outstanding.
template <int PENDING>
NB_INLINE void wide_end() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Instructions on their way may still read these registers; what stands here may not be given to others earlier.
NB_INLINE void wide_keep(const uint32_t (&a)[4][4]) {
    NB_UNROLL
    for (int i = 0; i < 4; ++i) asm volatile("" ::"r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]));
}
// c[64 rows × 128 tokens] += a[64 × 32] · b[32 × 128]; `b` is the first token's first column, swizzled rows of 128 bytes.
NB_INLINE void wide_mma(int (&c)[64], const uint32_t (&a)[4], const int8_t* b) {
    // address / 16; 8 rows are 1024 bytes apart; layout 1 = 128-byte swizzle
    const unsigned long long descriptor = (shared_address(b) & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p;}"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]), "+r"(c[7]),
          "+r"(c[8]), "+r"(c[9]), "+r"(c[10]), "+r"(c[11]), "+r"(c[12]), "+r"(c[13]), "+r"(c[14]), "+r"(c[15]),
          "+r"(c[16]), "+r"(c[17]), "+r"(c[18]), "+r"(c[19]), "+r"(c[20]), "+r"(c[21]), "+r"(c[22]), "+r"(c[23]),
          "+r"(c[24]), "+r"(c[25]), "+r"(c[26]), "+r"(c[27]), "+r"(c[28]), "+r"(c[29]), "+r"(c[30]), "+r"(c[31]),
          "+r"(c[32]), "+r"(c[33]), "+r"(c[34]), "+r"(c[35]), "+r"(c[36]), "+r"(c[37]), "+r"(c[38]), "+r"(c[39]),
          "+r"(c[40]), "+r"(c[41]), "+r"(c[42]), "+r"(c[43]), "+r"(c[44]), "+r"(c[45]), "+r"(c[46]), "+r"(c[47]),
          "+r"(c[48]), "+r"(c[49]), "+r"(c[50]), "+r"(c[51]), "+r"(c[52]), "+r"(c[53]), "+r"(c[54]), "+r"(c[55]),
          "+r"(c[56]), "+r"(c[57]), "+r"(c[58]), "+r"(c[59]), "+r"(c[60]), "+r"(c[61]), "+r"(c[62]), "+r"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
}
#else
NB_INLINE void show_to_matrix_unit() {}
NB_INLINE void wide_begin() {}
template <int PENDING>
NB_INLINE void wide_end() {}
NB_INLINE void wide_keep(const uint32_t (&)[4][4]) {}
// Each warp's 16 rows, 8 tokens at a time; addresses are swizzled as the hardware does, by their own bits.
inline void wide_mma_at(int (&c)[64], const uint32_t (&a)[4], const int8_t* b, int line) {
    const uintptr_t base = reinterpret_cast<uintptr_t>(emu::shared.data()) & 1023;
    const int lane = threadIdx.x % 32;
    for (int n = 0; n < 16; ++n) {
        uint32_t words[2];
        for (int half = 0; half < 2; ++half) {
            uintptr_t at = reinterpret_cast<uintptr_t>(b) + (8 * n + lane / 4) * 128 + half * 16 + lane % 4 * 4 - base;
            at ^= (at >> 7 & 7) << 4;
            std::memcpy(&words[half], reinterpret_cast<const void*>(at + base), 4);
        }
        int part[4];
        std::memcpy(part, c + 4 * n, sizeof part);
        emu::matrix(part, a, words, line, [](uint32_t x, uint32_t y) { return dot4(x, y, 0); });
        std::memcpy(c + 4 * n, part, sizeof part);
    }
}
#define wide_mma(c, a, b) wide_mma_at(c, a, b, __LINE__)
#endif

NB_INLINE void wide_fetch(int8_t* memory, const int8_t* x, int columns, int tokens, int first_token, int step) {
    if (step * kWideStep < columns)
        for (int i = threadIdx.x; i < kWideTokens * 8; i += kBlock) {
            const int token = i / 8, u = i % 8, column = step * kWideStep + u * 16;
            const bool there = first_token + token < tokens && column < columns;
            const int64_t at = there ? static_cast<int64_t>(first_token + token) * columns + column : 0;
            int8_t* to = memory + step % kWideStages * kWideStageBytes + token * 128 + (u ^ (token & 7)) * 16;
            copy_async(to, x + at, there ? 16 : 0);
        }
    copy_commit();
}

// PENDING 1: the instructions of one step run while the operands of the next are made.
template <int BITS, int PENDING>
__global__ void __launch_bounds__(kBlock, 1)
gemm_wide(const uint4* weights, const int8_t* x, int columns, int row_tiles, NB_EPILOGUE_PARAMETERS) {
    const Epilogue out = NB_EPILOGUE;
    using P = Packing<BITS>;
    constexpr int kBlocks = kWideStep / P::kColumns;        // column blocks of weights in one stage
    constexpr int kFetched = kWideStages - 1 - PENDING;     // stages on their way
    NB_SHARED(int8_t, raw);
#if NB_PTX
    int8_t* memory = raw + (1024 - shared_address(raw) % 1024) % 1024;
#else
    int8_t* memory = raw;
#endif
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, blocks = columns / P::kColumns;
    const int tile = blockIdx.x * kWarps + warp, first_token = blockIdx.y * kWideTokens;
    const int steps = (columns + kWideStep - 1) / kWideStep;
    const uint4* mine = weights + static_cast<int64_t>(min(tile, row_tiles - 1)) * blocks * 32 + lane;

    int sums[2][64] = {};
    uint4 even_next[kBlocks], odd_next[kBlocks];  // weights of the next step and the one after it
    auto fetch_weights = [&](uint4(&next)[kBlocks], int step) {
        NB_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
            const int block = step * kBlocks + b;
            next[b] = block < blocks ? mine[static_cast<int64_t>(block) * 32] : uint4{0, 0, 0, 0};
        }
    };
    // a: the operands of this step's four instructions; `before`: those of the last step's.
    auto run = [&](uint32_t(&a)[4][4], const uint32_t(&before)[4][4], uint4(&next)[kBlocks], int step) {
        NB_UNROLL
        for (int b = 0; b < kBlocks; ++b)
            NB_UNROLL
            for (int i = 0; i < P::kSteps; ++i) {
                uint32_t(&to)[4] = a[b * P::kSteps + i];
                to[0] = next[b].x >> BITS * i & P::kMask, to[1] = next[b].y >> BITS * i & P::kMask;
                to[2] = next[b].z >> BITS * i & P::kMask, to[3] = next[b].w >> BITS * i & P::kMask;
            }
        fetch_weights(next, step + 2);
        copy_wait<kFetched - 1>();
        show_to_matrix_unit();
        __syncthreads();  // this stage has landed, and everyone's instructions have left the stage fetched next
        wide_fetch(memory, x, columns, out.tokens, first_token, step + kFetched);
        const int8_t* stage = memory + step % kWideStages * kWideStageBytes;
        wide_begin();
        NB_UNROLL
        for (int i = 0; i < 4; ++i) {
            wide_mma(sums[0], a[i], stage + 32 * i);
            wide_mma(sums[1], a[i], stage + kWideStageBytes / 2 + 32 * i);
        }
        wide_end<PENDING>();
        wide_keep(before);
    };

    for (int s = 0; s < kFetched; ++s) wide_fetch(memory, x, columns, out.tokens, first_token, s);
    fetch_weights(even_next, 0);
    fetch_weights(odd_next, 1);
    uint32_t even[4][4] = {}, odd[4][4] = {};
    for (int step = 0; step < steps; step += 2) {
        run(even, odd, even_next, step);
        if (step + 1 < steps) run(odd, even, odd_next, step + 1);
    }
    wide_end<0>();
    wide_keep(even);
    wide_keep(odd);
    const int row = tile * 16 + lane / 4;  // and row + 8
    const RowTerms terms[2] = {out.row_terms(row, 0), out.row_terms(row + 8, 0)};
    NB_UNROLL
    for (int half = 0; half < 2; ++half)
        NB_UNROLL
        for (int i = 0; i < 32; ++i) {
            const int token = first_token + half * 128 + i / 2 * 8 + tile_token(lane, i % 2);
            if (token >= out.tokens) continue;
            const float x_scale = out.x_scales[token];
            const int x_sum = out.x_sums[token], at = i / 2 * 4 + i % 2;
            NB_UNROLL
            for (int r = 0; r < 2; ++r) {
                const float value = out.scaled(terms[r], sums[half][at + 2 * r], x_sum, x_scale);
                out.store(row + 8 * r, token, __fadd_rn(0.0f, value));
            }
        }
}
