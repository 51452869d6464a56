// Runs the kernels of this folder on the CPU, exactly, so that they can be tested and stepped through without
// a GPU. Every CUDA thread is a fiber; a block's fibers take turns until all of them wait or have ended.
//
// What it has: blocks (one after the other), dynamic shared memory, __syncthreads, whole-warp shuffles, ballots
// and matrix instructions, atomics, asynchronous copies that land only when waited for. What it refuses, with
// the source line: a barrier that some threads of the block never reach, a warp instruction that some lanes
// never reach or reach at another line. Shared memory is filled with 0xA5 before each block.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };

namespace emu {

constexpr int kStack = 1 << 17, kValues = 8;

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    char* stack = nullptr;
    bool started = false, done = false;
    const unsigned long* awaited = nullptr;  // runnable once *awaited differs from `seen`
    unsigned long seen = 0;
    int line = 0;
    std::vector<std::tuple<void*, const void*, int, int>> copies;  // to, from, bytes, bytes that are zero
    std::vector<size_t> copy_groups;
};

struct Warp {
    unsigned long generation = 0;
    unsigned arrived = 0;
    int line = 0;
    unsigned in[2][32][kValues], out[2][32][kValues];
};

struct Block {
    unsigned long generation = 0;
    unsigned arrived = 0, threads = 0;
    int line = 0;
};

inline dim3 thread_index, block_index, block_size, grid_size;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Block block;
inline std::vector<uint4> shared;
inline Fiber* current;
inline jmp_buf scheduler;
inline char error[256];
inline void (*body)(void**);
inline void** arguments;
inline bool backwards;  // every launch turns the order of the threads around, so that a missing barrier shows

[[noreturn]] inline void fail(const char* what, int line) {
    std::snprintf(error, sizeof error, "%s at line %d, thread %u of block (%u, %u)", what, line, thread_index.x,
                  block_index.x, block_index.y);
    _longjmp(scheduler, 2);
}

inline void wait_for(const unsigned long* generation, int line) {
    current->awaited = generation;
    current->seen = *generation;
    current->line = line;
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

inline void barrier(int line) {
    if (block.arrived++ == 0) block.line = line;
    if (block.line != line) fail("threads of one block meet different __syncthreads", line);
    if (block.arrived < block.threads) return wait_for(&block.generation, line);
    block.arrived = 0;
    ++block.generation;
}

// All lanes of a warp bring values; the last to come computes the answers of all.
template <int N, class F>
inline void together(const unsigned (&mine)[N], unsigned (&answer)[N], int line, F compute) {
    static_assert(N <= kValues, "too many values");
    Warp& warp = warps[thread_index.x / 32];
    const unsigned lane = thread_index.x % 32, side = warp.generation & 1;
    if (warp.arrived == 0) warp.line = line;
    if (warp.line != line) fail("lanes of one warp meet different instructions", line);
    std::memcpy(warp.in[side][lane], mine, sizeof mine);
    warp.arrived |= 1u << lane;
    if (warp.arrived == 0xffffffffu) {
        compute(warp.in[side], warp.out[side]);
        warp.arrived = 0;
        ++warp.generation;
    } else {
        wait_for(&warp.generation, line);
    }
    std::memcpy(answer, warp.out[side][lane], sizeof answer);
}

template <class F>
inline unsigned exchange(unsigned value, int line, F source_of) {
    // Every lane says itself whose value it wants: the last to come does not know.
    unsigned mine[2] = {value, static_cast<unsigned>(source_of(thread_index.x % 32))}, answer[2];
    together(mine, answer, line, [](auto in, auto out) {
        for (int lane = 0; lane < 32; ++lane) out[lane][0] = in[in[lane][1]][0];
    });
    return answer[0];
}

template <class T, class F>
inline T exchanged(T value, int line, F source_of) {
    static_assert(sizeof(T) == 4, "32-bit values only");
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(bits, line, source_of);
    std::memcpy(&value, &bits, 4);
    return value;
}

inline unsigned ballot(bool vote, int line) {
    unsigned mine[1] = {vote}, answer[1];
    together(mine, answer, line, [](auto in, auto out) {
        unsigned all = 0;
        for (int lane = 0; lane < 32; ++lane) all |= in[lane][0] << lane;
        for (int lane = 0; lane < 32; ++lane) out[lane][0] = all;
    });
    return answer[0];
}

// D = A·B + C of a 16 × 8 tile. `multiply(a, b)` is the product-sum of one 32-bit register of A with one of B,
// in the accumulator's type T. Registers as in the PTX manual: lane = 4·group + t, A's rows group and group + 8.
template <class T, class F>
inline void matrix(T (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line, F multiply) {
    unsigned mine[8] = {a[0], a[1], a[2], a[3], b[0], b[1], 0, 0}, gathered[8];
    const unsigned lane = thread_index.x % 32;
    unsigned rows[2][2][4], columns[2][2][4];  // [row or column][half of k][t]
    together(mine, gathered, line, [](auto in, auto) { (void)in; });
    Warp& warp = warps[thread_index.x / 32];
    auto in = warp.in[(warp.generation - 1) & 1];
    for (unsigned half = 0; half < 2; ++half)
        for (unsigned t = 0; t < 4; ++t)
            for (unsigned which = 0; which < 2; ++which) {
                rows[which][half][t] = in[lane / 4 * 4 + t][2 * half + which];
                columns[which][half][t] = in[(lane % 4 * 2 + which) * 4 + t][4 + half];
            }
    for (unsigned row = 0; row < 2; ++row)
        for (unsigned column = 0; column < 2; ++column)
            for (unsigned half = 0; half < 2; ++half)
                for (unsigned t = 0; t < 4; ++t)
                    c[row * 2 + column] += multiply(rows[row][half][t], columns[column][half][t]);
}

inline void copy_async(void* to, const void* from, int bytes, int taken) {
    current->copies.emplace_back(to, from, taken, bytes - taken);
}
inline void copy_commit() { current->copy_groups.push_back(current->copies.size()), current->copies.size(); }
inline void copy_wait(size_t pending) {
    auto& groups = current->copy_groups;
    const size_t finished = groups.size() > pending ? groups[groups.size() - pending - 1] : 0;
    for (size_t i = 0; i < finished; ++i) {
        auto& [to, from, bytes, zeros] = current->copies[i];
        std::memcpy(to, from, bytes);
        std::memset(static_cast<char*>(to) + bytes, 0, zeros);
    }
    if (!finished) return;
    current->copies.erase(current->copies.begin(), current->copies.begin() + finished);
    groups.erase(groups.begin(), groups.end() - pending);
    for (auto& end : groups) end -= finished;
}

inline void fiber_main() {
    body(arguments);
    current->done = true;
    _longjmp(scheduler, 1);
}

inline void step(unsigned index) {
    Fiber& fiber = fibers[index];
    current = &fiber;
    thread_index = {index, 0, 0};
    const int came_back = _setjmp(scheduler);
    if (came_back == 2) throw 1;
    if (came_back == 1) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

inline void begin_block(unsigned threads) {
    std::memset(shared.data(), 0xA5, shared.size() * 16);
    block = Block{0, 0, threads, 0};
    warps.assign(threads / 32, Warp{});
    for (Fiber& fiber : fibers) {
        if (!fiber.stack) fiber.stack = static_cast<char*>(std::malloc(kStack));
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
        fiber.started = fiber.done = false;
        fiber.awaited = nullptr;
        fiber.copies.clear();
        fiber.copy_groups.clear();
    }
}

inline void run_block(unsigned threads) {
    begin_block(threads);
    for (unsigned left = threads; left > 0;) {
        bool moved = false;
        for (unsigned turn = 0; turn < threads; ++turn) {
            const unsigned i = backwards ? threads - 1 - turn : turn;
            Fiber& fiber = fibers[i];
            if (fiber.done || (fiber.awaited && *fiber.awaited == fiber.seen)) continue;
            fiber.awaited = nullptr;
            step(i);
            moved = true;
            left -= fiber.done;
        }
        if (moved) continue;
        unsigned stuck = 0;
        while (fibers[stuck].done) ++stuck;
        thread_index = {stuck, 0, 0};
        std::snprintf(error, sizeof error, "divergent barrier: thread %u of block (%u, %u) waits at line %d for "
                      "threads that never come", stuck, block_index.x, block_index.y, fibers[stuck].line);
        throw 1;
    }
}

inline int launch(void (*kernel)(void**), const unsigned* grid, unsigned threads, unsigned shared_bytes, void** args) {
    body = kernel;
    arguments = args;
    backwards = !backwards;
    error[0] = 0;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {threads, 1, 1};
    shared.assign(shared_bytes / 16 + 2, uint4{});
    if (fibers.size() != threads) {
        for (Fiber& fiber : fibers) std::free(fiber.stack);
        fibers = std::vector<Fiber>(threads);
    }
    try {
        for (unsigned z = 0; z < grid[2]; ++z)
            for (unsigned y = 0; y < grid[1]; ++y)
                for (unsigned x = 0; x < grid[0]; ++x) {
                    block_index = {x, y, z};
                    run_block(threads);
                }
    } catch (int) {
        return 1;
    }
    return 0;
}

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(args[I])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void** args) {
    call(kernel, args, std::index_sequence_for<A...>{});
}

}  // namespace emu

#define threadIdx emu::thread_index
#define blockIdx emu::block_index
#define blockDim emu::block_size
#define gridDim emu::grid_size

#define __syncthreads() emu::barrier(__LINE__)
#define __syncwarp() ((void)emu::ballot(false, __LINE__))
#define __ballot_sync(mask, vote) emu::ballot(vote, __LINE__)
#define __shfl_sync(mask, value, lane) emu::exchanged(value, __LINE__, [&](int) { return (lane) & 31; })
#define __shfl_xor_sync(mask, value, bits) emu::exchanged(value, __LINE__, [&](int l) { return l ^ (bits); })
#define __shfl_down_sync(mask, value, by) \
    emu::exchanged(value, __LINE__, [&](int l) { return l + (by) < 32 ? l + (by) : l; })
#define __threadfence()

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a * (1.0f / b); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline unsigned __float_as_uint(float a) { unsigned b; std::memcpy(&b, &a, 4); return b; }
inline float __uint_as_float(unsigned a) { float b; std::memcpy(&b, &a, 4); return b; }
template <class T> inline T atomicAdd(T* at, T by) { T old = *at; *at += by; return old; }
template <class T> inline T atomicExch(T* at, T with) { T old = *at; *at = with; return old; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
template <class T> inline T max(T a, T b) { return a > b ? a : b; }

// One launchable kernel of an emulated library; nb_run is how Python starts it.
#define EMULATED_LIBRARY(...)                                                                                       \
    static void (*const nb_table[])(void**) = {__VA_ARGS__};                                                        \
    extern "C" int nb_run(int index, const unsigned* grid, unsigned threads, unsigned shared_bytes, void** args) {  \
        return emu::launch(nb_table[index], grid, threads, shared_bytes, args);                                     \
    }                                                                                                               \
    extern "C" const char* nb_error() { return emu::error; }
#define EMULATED(...) [](void** args) { emu::call(&__VA_ARGS__, args); }
