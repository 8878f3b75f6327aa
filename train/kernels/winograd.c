/* Forward and backward of the network's 3x3 convolutions of 16 channels, float32, for training on a CPU.
 *
 * Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, CVPR 2016, arXiv 1509.09308): a tile of 4x4 outputs
 * is the product of 36 transformed inputs with 36 transformed weights, a quarter of the multiplications.
 * Bias, ReLU and the residual sum are done where the outputs still lie in registers.
 *
 * Images are [N, H, W, 16], C-contiguous (PyTorch: channels_last), stride 1, zero padding 1. Weights are
 * PyTorch's [out, in, 3, 3]. Nothing is allocated here. Equal inputs and thread counts give equal bytes.
 *
 * One source for all widths: compiled with -march=native, and a vector is as wide as the machine's own.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define C 16   /* channels */
#define T 4    /* outputs along a tile's side */
#define P 6    /* inputs along a tile's side: T + 3 - 1 */
#define BLOCK 24  /* tiles transformed together; a multiple of GROUP */

#if defined(__AVX512F__)
#define LANES 16
#define GROUP 12 /* tiles whose sums are held in registers */
#elif defined(__AVX__)
#define LANES 8
#define GROUP 6
#else
#define LANES 4
#define GROUP 2
#endif
#define HALVES (C / LANES) /* vectors of a pixel */

typedef float vec __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(LANES * 4)));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

enum { LINEAR = 0, RELU = 1, RESIDUAL = 2, ADD = 3 };

/* [position][tile][channel]; one tile more than is used, or all positions would fall on the same cache sets. */
typedef float Tiles[P * P][BLOCK + 1][C] __attribute__((aligned(64)));
typedef float Weights[P * P][C][C] __attribute__((aligned(64)));

INLINE vec load(const float *p) { return (vec)*(const loose *)p; }
INLINE void store(float *p, vec v) { *(loose *)p = (loose)v; }
/* Zero where it is 0 or less: NaN stays NaN, or a training that has gone wrong would look sound. */
INLINE vec positive(vec v) { return (vec)((bits)v & ~(bits)(v <= (vec){0})); }
INLINE vec where_positive(vec v, vec of) { return (vec)((bits)v & ~(bits)(of <= (vec){0})); }

/* The transforms along one axis. B^T of the paper, for the points 0, 1, -1, 2, -2 and infinity. */
INLINE void input_axis(const vec d[P], vec out[P]) {
    vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    vec narrow = d[4] - d[2], wide = 2 * (d[3] - d[1]);
    out[0] = 4 * d[0] - 5 * d[2] + d[4];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = narrow + wide;
    out[4] = narrow - wide;
    out[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* A^T: 6 -> 4. */
INLINE void output_axis(const vec m[P], vec out[T]) {
    vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    out[0] = m[0] + s1 + s2;
    out[1] = d1 + 2 * d2;
    out[2] = s1 + 4 * s2;
    out[3] = d1 + 8 * d2 + m[5];
}

/* A: 4 -> 6, the transpose, for the gradient of the outputs. */
INLINE void gradient_axis(const vec g[T], vec out[P]) {
    vec even = g[0] + g[2], odd = g[1] + g[3];
    vec even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
    out[0] = g[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = even2 + odd2;
    out[4] = even2 - odd2;
    out[5] = g[3];
}

/* G: 3 -> 6, of weights; and G^T: 6 -> 3, of their gradients. */
static const float G[P][3] = {
    {1.f / 4, 0, 0},           {-1.f / 6, -1.f / 6, -1.f / 6}, {-1.f / 6, 1.f / 6, -1.f / 6},
    {1.f / 24, 1.f / 12, 1.f / 6}, {1.f / 24, -1.f / 12, 1.f / 6}, {0, 0, 1},
};

/* weights: [out, in, 3, 3] -> u: [position][in][out]. backward: turned by 180 degrees, out and in exchanged. */
static void transform_weights(const float *weights, int backward, Weights u) {
    for (int o = 0; o < C; o++)
        for (int i = 0; i < C; i++) {
            const float *w = weights + (backward ? i * C + o : o * C + i) * 9;
            float half[P][3];
            for (int p = 0; p < P; p++)
                for (int x = 0; x < 3; x++) {
                    half[p][x] = 0;
                    for (int y = 0; y < 3; y++) half[p][x] += G[p][y] * w[backward ? 8 - y * 3 - x : y * 3 + x];
                }
            for (int p = 0; p < P; p++)
                for (int q = 0; q < P; q++)
                    u[p * P + q][i][o] = half[p][0] * G[q][0] + half[p][1] * G[q][1] + half[p][2] * G[q][2];
        }
}

/* side x side pixels from (top, left), zero where they lie outside the image. */
static void cut(const float *image, int height, int width, int top, int left, int side, float *patch) {
    memset(patch, 0, sizeof(float) * side * side * C);
    int from = left < 0 ? -left : 0, to = left + side > width ? width - left : side;
    for (int y = 0; y < side; y++)
        if (top + y >= 0 && top + y < height && to > from)
            memcpy(patch + (y * side + from) * C, image + ((long)(top + y) * width + left + from) * C,
                   sizeof(float) * (to - from) * C);
}

INLINE void transform_input(const float *pixels, long row, float (*v)[BLOCK + 1][C], int tile) {
    for (int h = 0; h < HALVES; h++) {
        vec half[P][P];
        UNROLL for (int x = 0; x < P; x++) {
            vec d[P], out[P];
            UNROLL for (int y = 0; y < P; y++) d[y] = load(pixels + y * row + x * C + h * LANES);
            input_axis(d, out);
            UNROLL for (int y = 0; y < P; y++) half[y][x] = out[y];
        }
        UNROLL for (int y = 0; y < P; y++) {
            vec out[P];
            input_axis(half[y], out);
            UNROLL for (int x = 0; x < P; x++) store(&v[y * P + x][tile][h * LANES], out[x]);
        }
    }
}

INLINE void transform_gradient(const float *pixels, long row, float (*v)[BLOCK + 1][C], int tile) {
    for (int h = 0; h < HALVES; h++) {
        vec half[P][T];
        UNROLL for (int x = 0; x < T; x++) {
            vec g[T], out[P];
            UNROLL for (int y = 0; y < T; y++) g[y] = load(pixels + y * row + x * C + h * LANES);
            gradient_axis(g, out);
            UNROLL for (int y = 0; y < P; y++) half[y][x] = out[y];
        }
        UNROLL for (int y = 0; y < P; y++) {
            vec out[P];
            gradient_axis(half[y], out);
            UNROLL for (int x = 0; x < P; x++) store(&v[y * P + x][tile][h * LANES], out[x]);
        }
    }
}

/* The inputs of `count` tiles of a row, from column tile `first`. */
static void gather_inputs(const float *image, int height, int width, int tile_row, int first, int count, Tiles v) {
    float patch[P * P * C] __attribute__((aligned(64)));
    for (int t = 0; t < count; t++) {
        int top = tile_row * T - 1, left = (first + t) * T - 1;
        if (top >= 0 && left >= 0 && top + P <= height && left + P <= width)
            transform_input(image + ((long)top * width + left) * C, (long)width * C, v, t);
        else {
            cut(image, height, width, top, left, P, patch);
            transform_input(patch, P * C, v, t);
        }
    }
}

static void gather_gradients(const float *image, int height, int width, int tile_row, int first, int count, Tiles v) {
    float patch[T * T * C] __attribute__((aligned(64)));
    for (int t = 0; t < count; t++) {
        int top = tile_row * T, left = (first + t) * T;
        if (top + T <= height && left + T <= width)
            transform_gradient(image + ((long)top * width + left) * C, (long)width * C, v, t);
        else {
            cut(image, height, width, top, left, T, patch);
            transform_gradient(patch, T * C, v, t);
        }
    }
}

/* v[p][tile][out] = sum over in of v[p][tile][in] u[p][in][out], in place. */
static void multiply(Tiles v, const Weights u, int count) {
    for (int p = 0; p < P * P; p++)
        for (int t = 0; t < count; t += GROUP) {
            vec sum[GROUP][HALVES];
            UNROLL for (int k = 0; k < GROUP; k++) UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] = (vec){0};
            const float *in = v[p][t];
            for (int c = 0; c < C; c++) {
                vec w[HALVES];
                UNROLL for (int h = 0; h < HALVES; h++) w[h] = load(&u[p][c][h * LANES]);
                UNROLL for (int k = 0; k < GROUP; k++) {
                    vec x = in[k * C + c] - (vec){0};
                    UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] += x * w[h];
                }
            }
            UNROLL for (int k = 0; k < GROUP; k++)
                UNROLL for (int h = 0; h < HALVES; h++) store(&v[p][t + k][h * LANES], sum[k][h]);
        }
}

/* The outputs of one tile; those outside the image are not written. */
INLINE void transform_output(float (*v)[BLOCK + 1][C], int tile, const float *bias, const float *skip, float *out,
                             int height, int width, int top, int left, int mode) {
    int rows = height - top < T ? height - top : T, columns = width - left < T ? width - left : T;
    for (int h = 0; h < HALVES; h++) {
        vec half[T][P];
        vec b = bias ? load(bias + h * LANES) : (vec){0};
        UNROLL for (int x = 0; x < P; x++) {
            vec m[P], column[T];
            UNROLL for (int y = 0; y < P; y++) m[y] = load(&v[y * P + x][tile][h * LANES]);
            output_axis(m, column);
            UNROLL for (int y = 0; y < T; y++) half[y][x] = column[y];
        }
        for (int y = 0; y < rows; y++) {
            vec line[T];
            output_axis(half[y], line);
            long place = ((long)(top + y) * width + left) * C + h * LANES;
            for (int x = 0; x < columns; x++, place += C) {
                vec value = line[x] + b;
                if (mode == RELU || mode == RESIDUAL) value = positive(value);
                if (mode == RESIDUAL) value = positive(value + load(skip + place));
                if (mode == ADD) value += load(skip + place);
                store(out + place, value);
            }
        }
    }
}

static void convolve(const float *in, const Weights u, const float *bias, const float *skip, float *out, int n,
                     int height, int width, int mode) {
    int down = (height + T - 1) / T, across = (width + T - 1) / T;
#pragma omp parallel if (!omp_in_parallel())
    {
        Tiles v;
        memset(v, 0, sizeof v);
#pragma omp for schedule(static)
        for (int unit = 0; unit < n * down; unit++) {
            long image = (long)(unit / down) * height * width * C;
            int tile_row = unit % down;
            for (int first = 0; first < across; first += BLOCK) {
                int count = across - first < BLOCK ? across - first : BLOCK;
                gather_inputs(in + image, height, width, tile_row, first, count, v);
                multiply(v, u, count);
                for (int t = 0; t < count; t++)
                    transform_output(v, t, bias, skip ? skip + image : 0, out + image, height, width, tile_row * T,
                                     (first + t) * T, mode);
            }
        }
    }
}

/* LINEAR: y = conv(x) + b. RELU: y = relu(conv(x) + b). */
void cmudrn_forward(const float *x, const float *weights, const float *bias, float *y, int n, int height, int width,
                    int mode) {
    Weights u;
    transform_weights(weights, 0, u);
    convolve(x, u, bias, 0, y, n, height, width, mode);
}

/* A residual block: inside = relu(conv1(x) + b1), y = relu(relu(conv2(inside) + b2) + x).
 * Image by image where there are enough for all threads: both convolutions then find their inputs in the cache. */
void cmudrn_block_forward(const float *x, const float *weights1, const float *bias1, const float *weights2,
                          const float *bias2, float *inside, float *y, int n, int height, int width) {
    Weights u1, u2;
    transform_weights(weights1, 0, u1);
    transform_weights(weights2, 0, u2);
    long size = (long)height * width * C;
#pragma omp parallel for schedule(static) if (n >= omp_get_max_threads())
    for (int k = 0; k < n; k++) { /* the parallel regions inside run on one thread then */
        convolve(x + k * size, u1, bias1, 0, inside + k * size, 1, height, width, RELU);
        convolve(inside + k * size, u2, bias2, x + k * size, y + k * size, 1, height, width, RESIDUAL);
    }
}

/* The gradient before activation and sum: inner [N, H, W, 16]; to_skip likewise for RESIDUAL. Adds up to_bias [16]. */
static void through_activation(const float *y, const float *skip, const float *to_y, float *inner, float *to_skip,
                               float *to_bias, long pixels, int mode) {
    enum { PARTS = 64 }; /* fixed, so that the sum doesn't depend on the number of threads */
    float part[PARTS][C] __attribute__((aligned(64)));
#pragma omp parallel for schedule(static) if (!omp_in_parallel())
    for (int k = 0; k < PARTS; k++) {
        vec sum[HALVES];
        for (int h = 0; h < HALVES; h++) sum[h] = (vec){0};
        for (long i = pixels * k / PARTS; i < pixels * (k + 1) / PARTS; i++)
            for (int h = 0; h < HALVES; h++) {
                long place = i * C + h * LANES;
                vec g = load(to_y + place), value = load(y + place);
                if (mode != LINEAR) g = where_positive(g, value);
                if (mode == RESIDUAL) {
                    store(to_skip + place, g);
                    g = where_positive(g, value - load(skip + place)); /* relu(conv + b) was positive */
                }
                store(inner + place, g);
                sum[h] += g;
            }
        for (int h = 0; h < HALVES; h++) store(&part[k][h * LANES], sum[h]);
    }
    for (int c = 0; c < C; c++) {
        to_bias[c] = 0;
        for (int k = 0; k < PARTS; k++) to_bias[c] += part[k][c];
    }
}

/* u[in][out] += sum over tiles of v[tile][in] g[tile][out], for `ROWS` inputs from `c`. */
#define ACCUMULATE(ROWS)                                                                              \
    INLINE void accumulate_##ROWS(const float (*v)[C], const float (*g)[C], int count, int c, float (*u)[C]) { \
        vec sum[ROWS][HALVES];                                                                        \
        UNROLL for (int k = 0; k < ROWS; k++)                                                         \
            UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] = load(&u[c + k][h * LANES]);           \
        for (int t = 0; t < count; t++) {                                                             \
            vec w[HALVES];                                                                            \
            UNROLL for (int h = 0; h < HALVES; h++) w[h] = load(&g[t][h * LANES]);                    \
            UNROLL for (int k = 0; k < ROWS; k++) {                                                   \
                vec x = v[t][c + k] - (vec){0};                                                       \
                UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] += x * w[h];                        \
            }                                                                                         \
        }                                                                                             \
        UNROLL for (int k = 0; k < ROWS; k++)                                                         \
            UNROLL for (int h = 0; h < HALVES; h++) store(&u[c + k][h * LANES], sum[k][h]);           \
    }
ACCUMULATE(4)
ACCUMULATE(6)

#define SUMS ((long)P * P * C * C) /* a thread's sums of transformed weight gradients */

/* scratch: SUMS floats a thread. */
static void weight_gradient(const float *x, const float *inner, float *to_weights, float *scratch, int n, int height,
                            int width) {
    int down = (height + T - 1) / T, across = (width + T - 1) / T, threads = 1;
    Weights *sums = (Weights *)scratch;
#pragma omp parallel if (!omp_in_parallel())
    {
#pragma omp single
        threads = omp_get_num_threads();
        float(*u)[C][C] = sums[omp_get_thread_num()];
        memset(u, 0, sizeof(Weights));
        Tiles v, g;
#pragma omp for schedule(static)
        for (int unit = 0; unit < n * down; unit++) {
            long image = (long)(unit / down) * height * width * C;
            for (int first = 0; first < across; first += BLOCK) {
                int count = across - first < BLOCK ? across - first : BLOCK;
                gather_inputs(x + image, height, width, unit % down, first, count, v);
                gather_gradients(inner + image, height, width, unit % down, first, count, g);
                for (int p = 0; p < P * P; p++) {
                    accumulate_6(v[p], g[p], count, 0, u[p]);
                    accumulate_6(v[p], g[p], count, 6, u[p]);
                    accumulate_4(v[p], g[p], count, 12, u[p]);
                }
            }
        }
    }
    for (int t = 1; t < threads; t++)
        for (long k = 0; k < SUMS; k++) scratch[k] += scratch[t * SUMS + k];
    for (int i = 0; i < C; i++)
        for (int o = 0; o < C; o++) {
            float half[3][P];
            for (int y = 0; y < 3; y++)
                for (int q = 0; q < P; q++) {
                    half[y][q] = 0;
                    for (int p = 0; p < P; p++) half[y][q] += G[p][y] * sums[0][p * P + q][i][o];
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
long cmudrn_scratch(int n, int height, int width) {
    long threads = omp_get_max_threads(), size = (long)height * width * C, all = n * size;
    long block = threads * (2 * size + SUMS) + n * 2L * (C * C * 9 + C); /* see cmudrn_block_backward */
    long one = all + threads * SUMS;
    return (block > one ? block : one) + 64;
}

/* Gradients of cmudrn_forward, given to_y; to_x may be null. */
void cmudrn_backward(const float *x, const float *weights, const float *y, const float *to_y, float *to_x,
                     float *to_weights, float *to_bias, float *scratch, int n, int height, int width, int mode) {
    float *sums = align(scratch), *inner = sums + omp_get_max_threads() * SUMS;
    through_activation(y, 0, to_y, inner, 0, to_bias, (long)n * height * width, mode);
    if (to_x) {
        Weights u;
        transform_weights(weights, 1, u);
        convolve(inner, u, 0, 0, to_x, n, height, width, LINEAR);
    }
    weight_gradient(x, inner, to_weights, sums, n, height, width);
}

/* Gradients of cmudrn_block_forward, given to_y. to_parameters: weights1, bias1, weights2, bias2, one after another. */
void cmudrn_block_backward(const float *x, const float *weights1, const float *weights2, const float *inside,
                           const float *y, const float *to_y, float *to_x, float *to_parameters, float *scratch, int n,
                           int height, int width) {
    enum { ONE = C * C * 9 + C };
    int threads = omp_get_max_threads(), by_image = n >= threads;
    long size = (long)height * width * C;
    Weights u1, u2;
    transform_weights(weights1, 1, u1);
    transform_weights(weights2, 1, u2);
    float *sums = align(scratch), *planes = sums + threads * SUMS, *parts = planes + threads * 2 * size;
#pragma omp parallel for schedule(static) if (by_image)
    for (int k = 0; k < n; k++) {
        int thread = by_image ? omp_get_thread_num() : 0;
        float *own = sums + thread * SUMS, *inner2 = planes + thread * 2 * size, *inner1 = inner2 + size;
        float *part1 = parts + k * 2L * ONE, *part2 = part1 + ONE;
        const float *xk = x + k * size, *insidek = inside + k * size;
        float *to_xk = to_x + k * size;
        /* Of each image a sum of its own, added in order below: the number of threads doesn't show. */
        through_activation(y + k * size, xk, to_y + k * size, inner2, to_xk, part2 + C * C * 9, size / C, RESIDUAL);
        weight_gradient(insidek, inner2, part2, own, 1, height, width);
        convolve(inner2, u2, 0, 0, inner1, 1, height, width, LINEAR);
        through_activation(insidek, 0, inner1, inner1, 0, part1 + C * C * 9, size / C, RELU);
        weight_gradient(xk, inner1, part1, own, 1, height, width);
        convolve(inner1, u1, 0, to_xk, to_xk, 1, height, width, ADD);
    }
    for (int c = 0; c < 2 * ONE; c++) {
        to_parameters[c] = 0;
        for (int k = 0; k < n; k++) to_parameters[c] += parts[k * 2L * ONE + c];
    }
}
