/* Forward and backward of the network's 3x3 convolutions of 16 channels, float32, for training on a CPU.
 *
 * Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, CVPR 2016, arXiv 1509.09308): a tile of 4x4 outputs
 * is the product of 36 transformed inputs with 36 transformed weights, a quarter of the multiplications.
 * Bias, ReLU and the residual sum are done where the outputs still lie in registers.
 *
 * Images are [N, H, W, 16], C-contiguous (PyTorch: channels_last), stride 1, zero padding 1. Weights are
 * PyTorch's [out, in, 3, 3]. Nothing is allocated here. Equal inputs and thread counts give equal bytes.
 */
#include <omp.h>

#include "tiles.h"

/* team: threads, here and in all that follows; what is called image by image has one. Left to OpenMP, a list in
 * OMP_NUM_THREADS or nesting would decide, and sums have room for no more threads than were asked for. */
static void convolve(const float *in, const Weights u, const float *bias, const float *skip, float *out, int n,
                     int height, int width, int mode, int team) {
    int tiles = tiles_along(height) * tiles_along(width), blocks = (tiles + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(team)
    {
        Tiles v;
        memset(v, 0, sizeof v);
#pragma omp for schedule(static)
        for (int unit = 0; unit < n * blocks; unit++) {
            long image = (long)(unit / blocks) * height * width * C;
            int first = unit % blocks * BLOCK, count = tiles - first < BLOCK ? tiles - first : BLOCK;
            const float *under = skip ? skip + image : 0;
            gather_inputs(in + image, height, width, first, count, v);
            multiply(v, u, count);
            switch (mode) {
            case LINEAR: scatter_outputs(v, bias, under, out + image, height, width, first, count, LINEAR); break;
            case RELU: scatter_outputs(v, bias, under, out + image, height, width, first, count, RELU); break;
            case RESIDUAL: scatter_outputs(v, bias, under, out + image, height, width, first, count, RESIDUAL); break;
            case ADD: scatter_outputs(v, bias, under, out + image, height, width, first, count, ADD); break;
            case MASK: scatter_outputs(v, bias, under, out + image, height, width, first, count, MASK); break;
            }
        }
    }
}

#define ONE (C * C * 9 + C) /* floats of a convolution's weights and bias */
#define MOST_KINDS 2

static void transform_parameters(const float *parameters, int kinds, int backward, Weights u[MOST_KINDS][2]) {
    for (int i = 0; i < 2 * kinds; i++) transform_weights(parameters + i * (long)ONE, backward, u[i / 2][i % 2]);
}

/* LINEAR: y = conv(x) + b. RELU: y = relu(conv(x) + b). */
void cmudrn_forward(const float *x, const float *weights, const float *bias, float *y, int n, int height, int width,
                    int mode) {
    Weights u;
    transform_weights(weights, 0, u);
    convolve(x, u, bias, 0, y, n, height, width, mode, omp_get_max_threads());
}

/* `count` residual blocks, one after the other, of which `kinds` differ and take turns:
 *     inside = relu(conv1(x) + b1), y = relu(relu(conv2(inside) + b2) + x), which is the next one's x.
 * parameters: of each kind weights1, bias1, weights2, bias2.
 * kept: of each block [2][n, height, width, 16], which gets inside and y; the last y is the result. Where no backward
 * pass follows, blocks may share them, if only neighbours don't.
 * Image by image where there are enough for all threads: what a convolution reads then lies in the cache, where the
 * one before has left it. */
void cmudrn_blocks_forward(const float *x, const float *parameters, float *const *kept, int kinds, int count, int n,
                           int height, int width) {
    Weights u[MOST_KINDS][2];
    transform_parameters(parameters, kinds, 0, u);
    long size = (long)height * width * C, all = n * size;
    int threads = omp_get_max_threads(), by_image = n >= threads, team = by_image ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (by_image)
    for (int k = 0; k < n; k++) {
        const float *in = x + k * size;
        for (int b = 0; b < count; b++) {
            const float *bias1 = parameters + b % kinds * 2L * ONE + C * C * 9, *bias2 = bias1 + ONE;
            float *inside = kept[b] + k * size, *y = inside + all;
            convolve(in, u[b % kinds][0], bias1, 0, inside, 1, height, width, RELU, team);
            convolve(inside, u[b % kinds][1], bias2, in, y, 1, height, width, RESIDUAL, team);
            in = y;
        }
    }
}

/* Through y = relu(z): inner = to_y where y is positive; y's shape. */
static void through_relu(const float *y, const float *to_y, float *inner, long pixels, int team) {
#pragma omp parallel for schedule(static) num_threads(team)
    for (long i = 0; i < pixels * HALVES; i++)
        store(inner + i * LANES, where_positive(load(to_y + i * LANES), load(y + i * LANES)));
}

/* Through y = relu(relu(z) + skip): to_skip, and inner, the gradient of z. */
static void through_sum(const float *y, const float *skip, const float *to_y, float *inner, float *to_skip,
                        long pixels, int team) {
#pragma omp parallel for schedule(static) num_threads(team)
    for (long i = 0; i < pixels * HALVES; i++) {
        vec value = load(y + i * LANES), g = where_positive(load(to_y + i * LANES), value);
        store(to_skip + i * LANES, g);
        store(inner + i * LANES, where_positive(g, value - load(skip + i * LANES))); /* relu(z) was positive */
    }
}

#define OF_WEIGHTS ((long)P * P * C * C)
#define SUMS (OF_WEIGHTS + C) /* a thread's sums: of transformed weight gradients, and of gradients */

/* Adds what the parameters of conv(x) + b get, given inner, its gradient, to sums: SUMS floats, and as many for
 * every further thread, each `apart` floats from the one before. */
static void sum_gradients(const float *x, const float *inner, float *sums, long apart, int n, int height, int width,
                          int team) {
    int tiles = tiles_along(height) * tiles_along(width), blocks = (tiles + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(team)
    {
        float *own = sums + omp_get_thread_num() * apart, *bias = own + OF_WEIGHTS;
        float(*u)[C][C] = (float(*)[C][C])own;
        Tiles v, g;
#pragma omp for schedule(static)
        for (int unit = 0; unit < n * blocks; unit++) {
            long image = (long)(unit / blocks) * height * width * C;
            int first = unit % blocks * BLOCK, count = tiles - first < BLOCK ? tiles - first : BLOCK;
            gather_inputs(x + image, height, width, first, count, v);
            gather_gradients(inner + image, height, width, first, count, g);
            for (int p = 0; p < P * P; p++) {
#if HALVES == 1
                accumulate_16(v[p], g[p], count, 0, u[p]);
#else
                accumulate_6(v[p], g[p], count, 0, u[p]);
                accumulate_6(v[p], g[p], count, 6, u[p]);
                accumulate_4(v[p], g[p], count, 12, u[p]);
#endif
            }
            for (int t = 0; t < count; t++) /* at the points 1 and 1 a transformed tile is the sum of its pixels */
                for (int h = 0; h < C; h += LANES) store(bias + h, load(bias + h) + load(&g[P + 1][t][h]));
        }
    }
}

/* The gradients of weights and bias, ONE floats, from `parts` such sums, added in order. Changes the first. */
static void finish_gradients(float *sums, long apart, int parts, float *to_weights, float *to_bias) {
    for (int t = 1; t < parts; t++)
        for (long k = 0; k < SUMS; k++) sums[k] += sums[t * apart + k];
    memcpy(to_bias, sums + OF_WEIGHTS, sizeof(float) * C);
    const float(*u)[C][C] = (const float(*)[C][C])sums;
    for (int i = 0; i < C; i++)
        for (int o = 0; o < C; o++) {
            float half[3][P];
            for (int y = 0; y < 3; y++)
                for (int q = 0; q < P; q++) {
                    half[y][q] = 0;
                    for (int p = 0; p < P; p++) half[y][q] += G[p][y] * u[p * P + q][i][o];
                }
            for (int y = 0; y < 3; y++)
                for (int z = 0; z < 3; z++) {
                    float sum = 0;
                    for (int q = 0; q < P; q++) sum += half[y][q] * G[q][z];
                    to_weights[((o * C + i) * 3 + y) * 3 + z] = sum;
                }
        }
}

static float *align(float *p) { return (float *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

/* Floats of scratch that the backward functions need for images of this size. */
long cmudrn_scratch(int kinds, int n, int height, int width) {
    long threads = omp_get_max_threads(), size = (long)height * width * C, parts = n > threads ? n : threads;
    long blocks = parts * 2 * kinds * SUMS + threads * 2 * size, one = threads * SUMS + n * size;
    return (blocks > one ? blocks : one) + 64 / sizeof(float);
}

/* Gradients of cmudrn_forward, given to_y; to_x may be null. */
void cmudrn_backward(const float *x, const float *weights, const float *y, const float *to_y, float *to_x,
                     float *to_weights, float *to_bias, float *scratch, int n, int height, int width, int mode) {
    int threads = omp_get_max_threads();
    float *sums = align(scratch), *room = sums + threads * SUMS;
    const float *inner = mode == LINEAR ? to_y : room;
    if (mode == RELU) through_relu(y, to_y, room, (long)n * height * width, threads);
    if (to_x) {
        Weights u;
        transform_weights(weights, 1, u);
        convolve(inner, u, 0, 0, to_x, n, height, width, LINEAR, threads);
    }
    memset(sums, 0, sizeof(float) * threads * SUMS);
    sum_gradients(x, inner, sums, SUMS, n, height, width, threads);
    finish_gradients(sums, SUMS, threads, to_weights, to_bias);
}

/* Gradients of cmudrn_blocks_forward, given to_y and what it kept. to_parameters: ordered as parameters. */
void cmudrn_blocks_backward(const float *x, const float *parameters, float *const *kept, const float *to_y, float *to_x,
                            float *to_parameters, float *scratch, int kinds, int count, int n, int height, int width) {
    int threads = omp_get_max_threads(), by_image = n >= threads, team = by_image ? 1 : threads;
    int parts = by_image ? n : threads;
    long size = (long)height * width * C, all = n * size, apart = 2 * kinds * SUMS;
    Weights u[MOST_KINDS][2];
    transform_parameters(parameters, kinds, 1, u);
    float *sums = align(scratch), *planes = sums + parts * apart;
    memset(sums, 0, sizeof(float) * parts * apart);
#pragma omp parallel for schedule(static) num_threads(threads) if (by_image)
    for (int k = 0; k < n; k++) {
        /* Of each image a sum of its own, added in order below: the number of threads doesn't show. */
        float *own = sums + (by_image ? k * apart : 0), *to_xk = to_x + k * size;
        float *inner2 = planes + (by_image ? omp_get_thread_num() : 0) * 2 * size, *inner1 = inner2 + size;
        for (int b = count - 1; b >= 0; b--) {
            const float *inside = kept[b] + k * size, *y = inside + all;
            const float *in = b ? kept[b - 1] + all + k * size : x + k * size;
            float *own1 = own + b % kinds * 2 * SUMS, *own2 = own1 + SUMS;
            through_sum(y, in, b == count - 1 ? to_y + k * size : to_xk, inner2, to_xk, size / C, team);
            sum_gradients(inside, inner2, own2, apart, 1, height, width, team);
            convolve(inner2, u[b % kinds][1], 0, inside, inner1, 1, height, width, MASK, team);
            sum_gradients(in, inner1, own1, apart, 1, height, width, team);
            convolve(inner1, u[b % kinds][0], 0, to_xk, to_xk, 1, height, width, ADD, team);
        }
    }
    for (int i = 0; i < 2 * kinds; i++) {
        float *to_weights = to_parameters + i * (long)ONE;
        finish_gradients(sums + i * SUMS, apart, parts, to_weights, to_weights + C * C * 9);
    }
}
