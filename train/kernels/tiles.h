/* Tiles of Winograd's F(4x4, 3x3), the transforms that make them of pixels and pixels of them, and their products.
 *
 * One source for all widths: compiled with -march=native, and a vector is as wide as the machine's own.
 */
#include <stdint.h>
#include <string.h>

#define C 16   /* channels */
#define T 4    /* outputs along a tile's side */
#define P 6    /* inputs along a tile's side: T + 3 - 1 */
#define BLOCK 24 /* tiles transformed together; a multiple of GROUP */

#if defined(__AVX512F__)
#define LANES 16
#define GROUP 8 /* tiles whose sums are held in registers */
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

/* What becomes of a sum: itself; relu; relu of relu + skip; + skip; nothing where skip, a relu's output, is 0. */
enum { LINEAR = 0, RELU = 1, RESIDUAL = 2, ADD = 3, MASK = 4 };

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

INLINE int tiles_along(int side) { return (side + T - 1) / T; }

/* side x side pixels from (top, left), zero where they lie outside the image. */
static void cut(const float *image, int height, int width, int top, int left, int side, float *patch) {
    memset(patch, 0, sizeof(float) * side * side * C);
    int from = left < 0 ? -left : 0, to = left + side > width ? width - left : side;
    for (int y = 0; y < side; y++)
        if (top + y >= 0 && top + y < height && to > from)
            memcpy(patch + (y * side + from) * C, image + ((long)(top + y) * width + left + from) * C,
                   sizeof(float) * (to - from) * C);
}

/* Two of a tile's six rows, y1 and y2 (constants): all six at once would not stay in the registers. */
INLINE void transform_two_rows(const float *pixels, long row, float (*v)[BLOCK + 1][C], int tile, int h, int y1, int y2) {
    vec first[P], second[P], out[P];
    UNROLL for (int x = 0; x < P; x++) {
        vec d[P];
        UNROLL for (int y = 0; y < P; y++) d[y] = load(pixels + y * row + x * C + h * LANES); /* those in use */
        input_axis(d, out);
        first[x] = out[y1], second[x] = out[y2];
    }
    input_axis(first, out);
    UNROLL for (int x = 0; x < P; x++) store(&v[y1 * P + x][tile][h * LANES], out[x]);
    input_axis(second, out);
    UNROLL for (int x = 0; x < P; x++) store(&v[y2 * P + x][tile][h * LANES], out[x]);
}

INLINE void transform_input(const float *pixels, long row, float (*v)[BLOCK + 1][C], int tile) {
    for (int h = 0; h < HALVES; h++) { /* pairs that need the same inputs */
        transform_two_rows(pixels, row, v, tile, h, 1, 2);
        transform_two_rows(pixels, row, v, tile, h, 3, 4);
        transform_two_rows(pixels, row, v, tile, h, 0, 5);
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

/* The inputs of `count` of an image's tiles, numbered row by row, from tile `first`. */
static void gather_inputs(const float *image, int height, int width, int first, int count, Tiles v) {
    float patch[P * P * C] __attribute__((aligned(64)));
    int across = tiles_along(width);
    for (int t = 0; t < count; t++) {
        int top = (first + t) / across * T - 1, left = (first + t) % across * T - 1;
        if (top >= 0 && left >= 0 && top + P <= height && left + P <= width)
            transform_input(image + ((long)top * width + left) * C, (long)width * C, v, t);
        else {
            cut(image, height, width, top, left, P, patch);
            transform_input(patch, P * C, v, t);
        }
    }
}

static void gather_gradients(const float *image, int height, int width, int first, int count, Tiles v) {
    float patch[T * T * C] __attribute__((aligned(64)));
    int across = tiles_along(width);
    for (int t = 0; t < count; t++) {
        int top = (first + t) / across * T, left = (first + t) % across * T;
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
    for (int p = 0; p < P * P; p++) {
#if HALVES == 1 /* registers enough for a position's weights, all 16 */
        vec w[C];
        UNROLL for (int c = 0; c < C; c++) w[c] = load(u[p][c]);
        for (int t = 0; t < count; t += GROUP) {
            const float *in = v[p][t];
            vec sum[GROUP];
            UNROLL for (int k = 0; k < GROUP; k++) sum[k] = in[k * C] * w[0];
            UNROLL for (int c = 1; c < C; c++) UNROLL for (int k = 0; k < GROUP; k++) sum[k] += in[k * C + c] * w[c];
            UNROLL for (int k = 0; k < GROUP; k++) store(v[p][t + k], sum[k]);
        }
#else
        for (int t = 0; t < count; t += GROUP) {
            vec sum[GROUP][HALVES];
            UNROLL for (int k = 0; k < GROUP; k++) UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] = (vec){0};
            const float *in = v[p][t];
            for (int c = 0; c < C; c++) {
                vec w[HALVES];
                UNROLL for (int h = 0; h < HALVES; h++) w[h] = load(&u[p][c][h * LANES]);
                UNROLL for (int k = 0; k < GROUP; k++)
                    UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] += in[k * C + c] * w[h];
            }
            UNROLL for (int k = 0; k < GROUP; k++)
                UNROLL for (int h = 0; h < HALVES; h++) store(&v[p][t + k][h * LANES], sum[k][h]);
        }
#endif
    }
}

/* The outputs of one tile, rows x columns of which lie inside the image. place: of the first, in floats. */
INLINE void transform_output(float (*v)[BLOCK + 1][C], int tile, const float *bias, const float *skip, float *out,
                             long place, long row, int rows, int columns, int mode) {
    for (int h = 0; h < HALVES; h++) {
        vec half[T][P];
        vec b = bias ? load(bias + h * LANES) : (vec){0};
        UNROLL for (int x = 0; x < P; x++) {
            vec m[P], column[T];
            UNROLL for (int y = 0; y < P; y++) m[y] = load(&v[y * P + x][tile][h * LANES]);
            output_axis(m, column);
            UNROLL for (int y = 0; y < T; y++) half[y][x] = column[y];
        }
        UNROLL for (int y = 0; y < rows; y++) {
            vec line[T];
            output_axis(half[y], line);
            UNROLL for (int x = 0; x < columns; x++) {
                long at = place + y * row + x * C + h * LANES;
                vec value = line[x] + b;
                if (mode == RELU || mode == RESIDUAL) value = positive(value);
                if (mode == RESIDUAL) value = positive(value + load(skip + at));
                if (mode == ADD) value += load(skip + at);
                if (mode == MASK) value = where_positive(value, load(skip + at));
                store(out + at, value);
            }
        }
    }
}

/* The outputs of `count` tiles from tile `first`. mode: a constant. */
INLINE void scatter_outputs(Tiles v, const float *bias, const float *skip, float *out, int height, int width,
                            int first, int count, int mode) {
    int across = tiles_along(width);
    for (int t = 0; t < count; t++) {
        int top = (first + t) / across * T, left = (first + t) % across * T;
        int rows = height - top < T ? height - top : T, columns = width - left < T ? width - left : T;
        long row = (long)width * C, place = top * row + left * C;
        if (rows == T && columns == T) /* constants: half[][] stays in registers */
            transform_output(v, t, bias, skip, out, place, row, T, T, mode);
        else
            transform_output(v, t, bias, skip, out, place, row, rows, columns, mode);
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
                float x = v[t][c + k];                                                                \
                UNROLL for (int h = 0; h < HALVES; h++) sum[k][h] += x * w[h];                        \
            }                                                                                         \
        }                                                                                             \
        UNROLL for (int k = 0; k < ROWS; k++)                                                         \
            UNROLL for (int h = 0; h < HALVES; h++) store(&u[c + k][h * LANES], sum[k][h]);           \
    }
#if HALVES == 1
ACCUMULATE(16)
#else
ACCUMULATE(4)
ACCUMULATE(6)
#endif
