// What a decoding step does between its matrices: embedding, residual sums, norms, activations, rotary positions and
// the choice of the likeliest token. Rows are float32.
//
// Elementwise arithmetic is that of nearbank.models.functions and nearbank.models.rotary, rounded at every step;
// exponentials and tanh are taken in double precision.
#pragma once
#include "quantise.cuh"

enum Activation { kGelu = 0, kSilu = 1, kRelu2 = 2, kRelu = 3 };

template <int ACTIVATION>
NB_INLINE float activated(float x) {
    if (ACTIVATION == kGelu) {
        const float cube = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, x), x), x);
        const float inner = __fmul_rn(0.7978845608028654f, __fadd_rn(x, cube));
        const float bend = static_cast<float>(tanh(static_cast<double>(inner)));
        return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, bend));
    }
    if (ACTIVATION == kSilu) {
        const float small = static_cast<float>(exp(-static_cast<double>(magnitude(x))));
        return __fdiv_rn(__fmul_rn(x, x >= 0.0f ? 1.0f : small), __fadd_rn(1.0f, small));
    }
    const float kept = x > 0.0f ? x : 0.0f;
    return ACTIVATION == kRelu2 ? __fmul_rn(kept, kept) : kept;
}

// x[m] = table[token m] · scale, plus the row of `positions` (if any) that it stands at, which counts from *start.
__global__ void __launch_bounds__(kRowThreads)
embed_rows(const int* tokens, const int* start, const float* table, const float* positions, float* x, int width,
           float scale) {
    wait_for_previous();
    let_next_begin();
    const int64_t token = tokens[blockIdx.x], row = static_cast<int64_t>(blockIdx.x) * width;
    const int64_t at = static_cast<int64_t>(*start) + blockIdx.x;
    for (int d = threadIdx.x; d < width; d += kRowThreads) {
        const float value = __fmul_rn(table[token * width + d], scale);
        x[row + d] = positions ? __fadd_rn(value, positions[at * width + d]) : value;
    }
}

// One head of q, k or v from its row of `from` (stride values from one token to the next), with its bias. The first
// 2 · half values are turned by the angles of the token's position.
NB_INLINE void turn_head(const float* from, int64_t stride, const float* bias, int head, int dim, float* to, int heads,
                         const float* cosines, const float* sines, int half) {
    const float* source = from + blockIdx.y * stride + head * dim;
    const float* add = bias ? bias + head * dim : nullptr;
    float* target = to + (static_cast<int64_t>(blockIdx.y) * heads + head) * dim;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float value = add ? __fadd_rn(source[d], add[d]) : source[d];
        if (d < 2 * half) {
            const int i = d < half ? d : d - half, other = d < half ? d + half : i;
            const float beside = add ? __fadd_rn(source[other], add[other]) : source[other];
            const float along = __fmul_rn(value, cosines[i]), across = __fmul_rn(beside, sines[i]);
            value = d < half ? __fsub_rn(along, across) : __fadd_rn(along, across);
        }
        target[d] = value;
    }
}

// q, k and v of M tokens out of the matrices' outputs; grid (heads + 2 · kv heads, M). cosines, sines [positions, half].
__global__ void __launch_bounds__(128)
turn_heads(const float* q, const float* k, const float* v, const float* q_bias, const float* k_bias,
           const float* v_bias, float* q_to, float* k_to, float* v_to, const int* start, const float* cosines,
           const float* sines, int q_stride, int kv_stride, int heads, int kv_heads, int dim, int half) {
    wait_for_previous();
    let_next_begin();
    const int head = blockIdx.x;
    const int64_t angles = (static_cast<int64_t>(*start) + blockIdx.y) * half;
    if (head < heads)
        turn_head(q, q_stride, q_bias, head, dim, q_to, heads, cosines + angles, sines + angles, half);
    else if (head < heads + kv_heads)
        turn_head(k, kv_stride, k_bias, head - heads, dim, k_to, kv_heads, cosines + angles, sines + angles, half);
    else
        turn_head(v, kv_stride, v_bias, head - heads - kv_heads, dim, v_to, kv_heads, nullptr, nullptr, 0);
}

// x [M, cols] += y + its bias; grid (blocks of 256 columns, M).
__global__ void __launch_bounds__(kRowThreads)
add_rows(float* x, const float* y, const float* y_bias, int cols) {
    wait_for_previous();
    let_next_begin();
    const int k = blockIdx.x * kRowThreads + threadIdx.x;
    const int64_t at = static_cast<int64_t>(blockIdx.y) * cols + k;
    if (k < cols) x[at] = __fadd_rn(x[at], y_bias ? __fadd_rn(y[at], y_bias[k]) : y[at]);
}

// h [M, cols] = activation(gate) · up, or activation(gate) where there is no up; grid as above. Rows of gate and up
// begin `stride` values apart.
template <int ACTIVATION>
__global__ void __launch_bounds__(kRowThreads)
gate_rows(const float* gate, const float* up, const float* gate_bias, const float* up_bias, float* h, int cols,
          int stride) {
    wait_for_previous();
    let_next_begin();
    const int k = blockIdx.x * kRowThreads + threadIdx.x;
    const int64_t from = static_cast<int64_t>(blockIdx.y) * stride + k;
    if (k >= cols) return;
    float value = activated<ACTIVATION>(gate_bias ? __fadd_rn(gate[from], gate_bias[k]) : gate[from]);
    if (up) value = __fmul_rn(value, up_bias ? __fadd_rn(up[from], up_bias[k]) : up[from]);
    h[static_cast<int64_t>(blockIdx.y) * cols + k] = value;
}

// The block's 256 doubles added by a tree, handed to every thread.
NB_INLINE double sum_block(double value, double* lanes) {
    lanes[threadIdx.x] = value;
    __syncthreads();
    for (int half = kRowThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }
    const double all = lanes[0];
    __syncthreads();
    return all;
}

// The norm of each row, kept as float32. Means are rounded once from double precision.
template <int NORM>
__global__ void __launch_bounds__(kRowThreads)
norm_rows(const float* x, const float* gain, const float* bias, float* out, int cols, float epsilon) {
    NB_SHARED(double, lanes);
    wait_for_previous();
    let_next_begin();
    const int64_t row = static_cast<int64_t>(blockIdx.x) * cols;
    float centre = 0.0f;
    if (NORM == kLayerNorm) {
        double sum = 0.0;
        for (int k = threadIdx.x; k < cols; k += kRowThreads) sum += x[row + k];
        centre = static_cast<float>(sum_block(sum, lanes) / cols);
    }
    double squares = 0.0;
    for (int k = threadIdx.x; k < cols; k += kRowThreads) {
        const float away = __fsub_rn(x[row + k], centre);
        squares += static_cast<double>(__fmul_rn(away, away));
    }
    const float mean = static_cast<float>(sum_block(squares, lanes) / cols);
    const float root = __fsqrt_rn(__fadd_rn(mean, epsilon));
    for (int k = threadIdx.x; k < cols; k += kRowThreads) {
        const float value = __fmul_rn(__fdiv_rn(__fsub_rn(x[row + k], centre), root), gain[k]);
        out[row + k] = bias ? __fadd_rn(value, bias[k]) : value;
    }
}

// The number of the largest of `count` logits, the lowest of equal ones, into *token and behind what was made before.
__global__ void __launch_bounds__(kRowThreads)
largest_token(const float* logits, int count, int* token, int* made, int* steps) {
    NB_SHARED(float, values);
    int* numbers = reinterpret_cast<int*>(values + kRowThreads);
    wait_for_previous();
    let_next_begin();
    float best = -INFINITY;
    int number = count;
    for (int i = threadIdx.x; i < count; i += kRowThreads)
        if (logits[i] > best || number == count) {
            best = logits[i];
            number = i;
        }
    values[threadIdx.x] = best;
    numbers[threadIdx.x] = number;
    __syncthreads();
    for (int half = kRowThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = values[threadIdx.x + half];
            const int theirs = numbers[threadIdx.x + half];
            const float mine = values[threadIdx.x];
            if (theirs < count && (other > mine || (other == mine && theirs < numbers[threadIdx.x]))) {
                values[threadIdx.x] = other;
                numbers[threadIdx.x] = theirs;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        *token = numbers[0];
        made[(*steps)++] = numbers[0];
    }
}
