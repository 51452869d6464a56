// The few instructions that CUDA C++ has no word for, each with plain C++ beside it for the emulation, and the
// number conversions that every kernel here shares. Needs no CUDA header, so NVRTC alone can compile it.
#pragma once

#ifdef __CUDACC_RTC__
#define NB_PTX 1
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
#define INFINITY __int_as_float(0x7f800000)
#define NB_SHARED(type, name)                                \
    extern __shared__ __align__(16) unsigned char nb_shared[]; \
    type* name = reinterpret_cast<type*>(nb_shared)
#else
#define NB_PTX 0
#include "emulation.cuh"
#define NB_SHARED(type, name) type* name = reinterpret_cast<type*>(emu::shared.data())
#endif

#define NB_UNROLL _Pragma("unroll")
#define NB_TEXT(text) #text
#define NB_UNROLL_BY(n) _Pragma(NB_TEXT(unroll n))
#define NB_INLINE __device__ __forceinline__
#define NB_ALL 0xffffffffu

// Kernels launched "early" (see `nearbank.kernels.cuda.early`) start while the kernel before them still runs. Until
// `wait_for_previous` returns they may only read what no kernel writes, such as weights.
NB_INLINE void wait_for_previous() {
#if NB_PTX && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start when every block has said so.
NB_INLINE void let_next_begin() {
#if NB_PTX && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// What lies AHEAD bytes behind `at`, read once: kept out of the way of what is read again.
template <int AHEAD = 0>
NB_INLINE uint4 load_once(const uint4* at) {
#if NB_PTX
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at), "n"(AHEAD));
    return v;
#else
    return at[AHEAD / 16];
#endif
}

template <int AHEAD = 0>
NB_INLINE uint2 load_once(const uint2* at) {
#if NB_PTX
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2 + %3];"
                 : "=r"(v.x), "=r"(v.y) : "l"(at), "n"(AHEAD));
    return v;
#else
    return at[AHEAD / 8];
#endif
}

template <int AHEAD = 0>
NB_INLINE uint32_t load_once(const uint32_t* at) {
#if NB_PTX
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1 + %2];" : "=r"(v) : "l"(at), "n"(AHEAD));
    return v;
#else
    return at[AHEAD / 4];
#endif
}

// Adds 1. What the block wrote before its last barrier is seen by every block that finds this arrival counted and
// passes a barrier after it.
NB_INLINE int arrive(int* at) {
#if NB_PTX
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(at) : "memory");
    return before;
#else
    return atomicAdd(at, 1);
#endif
}

// c[16 rows × 8 columns] += a[16 × 32] · b[32 × 8], int8 times int8 into int32, exact.
#if NB_PTX
NB_INLINE void mma_s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c[16 × 8] += popcount(a[16 × 256 bits] & b[256 bits × 8]), exact.
NB_INLINE void mma_b1(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c[16 × 8] += a[16 × 16] · b[16 × 8], bfloat16 (HALF: fp16) into float32.
template <bool HALF>
NB_INLINE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if (HALF)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
NB_INLINE int dot4(uint32_t a, uint32_t b, int c) {
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(c) : "r"(a), "r"(b));
    return c;
}
// Bytes of (low, high) chosen by the four nibbles of `select`, lowest first.
NB_INLINE uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t select) {
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(select));
    return out;
}
NB_INLINE float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
NB_INLINE float half_to_float(uint16_t bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}
NB_INLINE uint16_t float_to_half(float value) {
    uint16_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}
// Two values rounded to nearest even bfloat16 (HALF: fp16), the first in the lower half.
template <bool HALF>
NB_INLINE uint32_t pack_f16x2(float first, float second) {
    uint32_t out;
    if (HALF)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}
// 16 bytes into shared memory, zeros beyond the first `taken`; lands by copy_wait.
NB_INLINE void copy_async(void* to, const void* from, int taken) {
    uint32_t at;
    asm("{.reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t;}" : "=r"(at) : "l"(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(taken) : "memory");
}
NB_INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
NB_INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
#else
NB_INLINE int dot4(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
    return c;
}
#define mma_s8(c, a, b) emu::matrix(c, a, b, __LINE__, [](uint32_t x, uint32_t y) { return dot4(x, y, 0); })
#define mma_b1(c, a, b) emu::matrix(c, a, b, __LINE__, [](uint32_t x, uint32_t y) { return __popc(x & y); })
NB_INLINE uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t select) {
    const uint64_t all = low | static_cast<uint64_t>(high) << 32;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(all >> (8 * (select >> 4 * i & 7)) & 0xff) << 8 * i;
    return out;
}
NB_INLINE float power_of_two(float x) { return std::exp2(x); }
NB_INLINE float half_to_float(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                           : std::ldexp(static_cast<float>(fraction), -24);
    return bits & 0x8000 ? -magnitude : magnitude;
}
NB_INLINE uint16_t float_to_half(float value) {
    const uint32_t bits = __float_as_uint(value);
    const uint16_t sign = bits >> 16 & 0x8000;
    const float size = std::fabs(value);
    if (size != size) return 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = size < 6.103515625e-05f ? -14 : std::ilogb(size);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return sign | static_cast<uint16_t>(steps + (exponent + 14) * 1024);
}
template <bool HALF>
NB_INLINE float dot2(uint32_t x, uint32_t y) {
    auto value = [](uint32_t bits) {
        return HALF ? half_to_float(static_cast<uint16_t>(bits)) : __uint_as_float(bits << 16);
    };
    return value(x & 0xffff) * value(y & 0xffff) + value(x >> 16) * value(y >> 16);
}
template <bool HALF>
NB_INLINE void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::matrix(c, a, b, __LINE__, [](uint32_t x, uint32_t y) { return dot2<HALF>(x, y); });
}
NB_INLINE void copy_async(void* to, const void* from, int taken) { emu::copy_async(to, from, 16, taken); }
NB_INLINE void copy_commit() { emu::copy_commit(); }
template <int PENDING>
NB_INLINE void copy_wait() { emu::copy_wait(PENDING); }
#endif

NB_INLINE float bf16_to_float(uint32_t bits) { return __uint_as_float(bits << 16); }

// Nearest bfloat16, ties to even, as bits. Finite values only.
NB_INLINE uint32_t float_to_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
// The largest bfloat16 not above, and the smallest not below a value ≥ 0.
NB_INLINE uint32_t floor_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    return (bits + (bits >> 31 ? 0xffffu : 0u)) >> 16;
}
NB_INLINE uint32_t ceil_bf16(float value) { return (__float_as_uint(value) + 0xffffu) >> 16; }

#if !NB_PTX
template <bool HALF>
NB_INLINE uint32_t pack_f16x2(float first, float second) {
    return HALF ? float_to_half(first) | float_to_half(second) << 16
                : float_to_bf16(first) | float_to_bf16(second) << 16;
}
#endif

// Round to nearest even, |value| < 2^22.
NB_INLINE float round_even(float value) { return __fsub_rn(__fadd_rn(value, 12582912.0f), 12582912.0f); }

NB_INLINE float magnitude(float value) { return __uint_as_float(__float_as_uint(value) & 0x7fffffffu); }
NB_INLINE bool finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }
