// The kernels, for vectors of CMUDRN_LANES floats: each kernels_*.cpp includes this with its own width and flags.
//
// Everything is in a namespace without a name, and nothing of the standard library is used: what the linker could
// share between files compiled for different processors would end up running on the wrong one.

#include "kernels.hpp"

#if !defined(CMUDRN_LANES)
#error "define CMUDRN_LANES, floats of a vector"
#endif

#define INLINE static inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
// Over the inputs of a product not in full: GCC would load all of them ahead, and run out of registers.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_INPUTS _Pragma("clang loop unroll_count(4)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_INPUTS _Pragma("GCC unroll 4")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif

namespace cmudrn {
namespace {

constexpr int LANES = CMUDRN_LANES;
constexpr int PARTS = PIXEL / LANES;  // vectors of a pixel
constexpr int COLOUR_FLOATS = 3;
constexpr int LAST_ROW = 5;                 // of positions, in the order that they are computed in
constexpr int KEPT_ROWS = LAST_ROW * TILE;  // of tiles: what is kept until that one

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), may_alias));
typedef float Colour __attribute__((vector_size(RGB * sizeof(float)), may_alias));

template <class V>
INLINE V load(const float* from) {
    return *reinterpret_cast<const V*>(from);
}
template <class V>
INLINE void store(float* to, V value) {
    *reinterpret_cast<V*>(to) = value;
}

template <class V>
INLINE V relu(V x) {
    const V zero = {};
    return x > zero ? x : zero;
}

// B^T d, along one side of a tile.
template <class V>
INLINE void to_positions(const V d[WINDOW], V o[WINDOW]) {
    const V t = d[4] - d[2], s = d[3] - d[1];
    const V even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1];
    o[0] = t + 4.f * (d[0] - d[2]);
    o[1] = even + odd;
    o[2] = even - odd;
    o[3] = t + 2.f * s;
    o[4] = t - 2.f * s;
    o[5] = (d[5] - d[3]) - 4.f * s;
}

// A^T m, along one side of a tile.
template <class V>
INLINE void to_pixels(const V m[WINDOW], V o[TILE]) {
    const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    o[0] = m[0] + a + c;
    o[1] = b + 2.f * d;
    o[2] = a + 4.f * c;
    o[3] = (b + m[5]) + 8.f * d;
}

// Rows of positions go through in pairs, one pair after the other: what a pair needs stays in the first-level
// cache, and its 12 values in registers, which the 36 of a tile would not.
enum Pair { ROWS_1_2, ROWS_3_4, ROWS_0_5 };
constexpr int PAIR_POSITIONS = 2 * WINDOW;

// A pair's two rows of B^T d, at the column `at` floats right of the rows' start.
template <Pair PAIR>
INLINE void column_of_pair(const float* const x[WINDOW], int at, Vector& a, Vector& b) {
    const auto d = [&](int row) INLINE_LAMBDA { return load<Vector>(x[row] + at); };
    if (PAIR == ROWS_1_2) {
        const Vector even = d(4) - 4.f * d(2), odd = d(3) - 4.f * d(1);
        a = even + odd, b = even - odd;
    } else if (PAIR == ROWS_3_4) {
        const Vector even = d(4) - d(2), odd = d(3) - d(1);
        a = even + 2.f * odd, b = even - 2.f * odd;
    } else {
        const Vector d2 = d(2), d3 = d(3);
        a = (d(4) - d2) + 4.f * (d(0) - d2), b = (d(5) - d3) - 4.f * (d3 - d(1));
    }
}

// Transformed pixels, weights and products in float32. Another way of keeping them has the same members.
struct Float32 {
    static constexpr int steps(int inputs) { return inputs; }  // of a product: floats of `inputs` weights

    INLINE_MEMBER static void put(float* v, Vector value) { store(v, value); }

    // A step's weights, and the transformed pixel's float that they are for.
    template <class V>
    INLINE_MEMBER static V accumulate(V sum, V weights, const float* input) {
        return sum + weights * *input;
    }
};

template <class Values>
INLINE void row_to_positions(const Vector d[WINDOW], float* v) {
    Vector o[WINDOW];
    to_positions(d, o);
    UNROLL
    for (int c = 0; c < WINDOW; c++) Values::put(v + c * POSITION_STRIDE, o[c]);
}

// The input transform of a row of tiles, a pair of rows of positions. v: [PAIR_POSITIONS][MAX_TILES_ODD][PIXEL].
template <Pair PAIR, class Values>
INLINE void to_pair(Rows in, int tiles, float* v) {
    UNROLL
    for (int part = 0; part < PARTS; part++, v += LANES) {
        const float* x[WINDOW];
        UNROLL
        for (int r = 0; r < WINDOW; r++) x[r] = in[r] + part * LANES;
        Vector a[WINDOW], b[WINDOW];
        column_of_pair<PAIR>(x, 0, a[4], b[4]);
        column_of_pair<PAIR>(x, PIXEL, a[5], b[5]);
        for (int t = 0; t < tiles; t++) {
            a[0] = a[4], a[1] = a[5], b[0] = b[4], b[1] = b[5];  // the tile to the left has these columns, too
            UNROLL
            for (int c = 2; c < WINDOW; c++) column_of_pair<PAIR>(x, (t * TILE + c) * PIXEL, a[c], b[c]);
            row_to_positions<Values>(a, v + t * PIXEL);
            row_to_positions<Values>(b, v + WINDOW * POSITION_STRIDE + t * PIXEL);
        }
    }
}

// A row of positions in the output transform of one vector of a tile, A^T m A. own: the row's m A, which is kept;
// with the last row they all become pixels: use(row, column, value). ORDER: of the row. kept: [KEPT_ROWS], `stride`
// floats apart.
template <class V, int ORDER, class Use>
INLINE void finish_row(const V own[TILE], float* kept, int stride, Use use) {
    UNROLL
    for (int c = 0; c < TILE; c++) {
        if (ORDER < LAST_ROW) {
            store(kept + (ORDER * TILE + c) * stride, own[c]);
            continue;
        }
        const auto row = [&](int order) INLINE_LAMBDA { return load<V>(kept + (order * TILE + c) * stride); };
        const V m[WINDOW] = {row(4), row(0), row(1), row(2), row(3), own[c]};
        V pixels[TILE];
        to_pixels(m, pixels);
        UNROLL
        for (int r = 0; r < TILE; r++) use(r, c, pixels[r]);
    }
}

// Both rows of a pair, whose sums lie in memory. m: [PAIR_POSITIONS], `stride` floats apart.
template <class V, Pair PAIR, class Use>
INLINE void finish_pair(const float* m, float* kept, int stride, Use use) {
    V row[WINDOW], own[TILE];
    UNROLL
    for (int c = 0; c < WINDOW; c++) row[c] = load<V>(m + c * stride);
    to_pixels(row, own);
    finish_row<V, 2 * PAIR>(own, kept, stride, use);
    UNROLL
    for (int c = 0; c < WINDOW; c++) row[c] = load<V>(m + (WINDOW + c) * stride);
    to_pixels(row, own);
    finish_row<V, 2 * PAIR + 1>(own, kept, stride, use);
}

// The bias of every pixel is one value at the position (1, 1): all of A^T's column 1 is ones.
constexpr int BIAS_POSITION = 1;  // of the first pair, and of its first row

// Which float of a transformed pixel is the input of a step: with six of them, three, and three from `second` on.
template <int INPUTS>
INLINE const float* input_of(const float* v, int second, int step) {
    return INPUTS == PIXEL || step < COLOUR_FLOATS ? v + step : v + second + step - COLOUR_FLOATS;
}

// Where scratch has what: transformed pixels of a pair, sums, and values on their way to pixels for two results.
struct Scratch {
    static constexpr int PAIR = PAIR_POSITIONS * POSITION_STRIDE;
    static_assert(2 * PAIR + 2 * KEPT_ROWS * POSITION_STRIDE == SCRATCH_FLOATS,
                  "kernels.hpp tells how much there is");

    explicit Scratch(float* start) : v(start) {}

    float* sums() const { return v + PAIR; }
    float* kept(int result) const { return v + 2 * PAIR + result * KEPT_ROWS * POSITION_STRIDE; }

    float* const v;
};

// What is to become of a row of tiles.
struct Result {
    const float* weights;  // packed
    int first, second;     // of six inputs: where three and three begin in a pixel
    float* const* out;
    const OutRows* residual;  // or null
    float* kept;
};

template <int TILES>
struct Block {
    static constexpr int tiles = TILES;
};

// m[t] = sum over the inputs of v[t] u, for TILES tiles. start: what the sums begin with.
template <class Values, class V, int TILES, int INPUTS, int VECTORS>
INLINE void product_block(const float* v, int second, float* m, const float* u, const V* start) {
    constexpr int width = static_cast<int>(sizeof(V) / sizeof(float)), outputs = width * VECTORS;
    V sum[TILES][VECTORS];
    UNROLL
    for (int t = 0; t < TILES; t++) UNROLL
    for (int j = 0; j < VECTORS; j++) sum[t][j] = start[j];
    UNROLL_INPUTS
    for (int step = 0; step < Values::steps(INPUTS); step++) {
        V w[VECTORS];
        UNROLL
        for (int j = 0; j < VECTORS; j++) w[j] = load<V>(u + step * outputs + j * width);
        const float* input = input_of<INPUTS>(v, second, step);
        UNROLL
        for (int t = 0; t < TILES; t++) UNROLL
        for (int j = 0; j < VECTORS; j++) sum[t][j] = Values::accumulate(sum[t][j], w[j], input + t * PIXEL);
    }
    UNROLL
    for (int t = 0; t < TILES; t++) UNROLL
    for (int j = 0; j < VECTORS; j++) store(m + t * outputs + j * width, sum[t][j]);
}

// At every position of a pair. v and m may be one: a block is read before it is written.
// u: the pair's weights [PAIR_POSITIONS][steps][outputs]; bias: null but for the first pair.
template <class Values, class V, int BLOCK_TILES, int INPUTS, int VECTORS>
INLINE void products(const float* v, int second, float* m, int tiles, const float* u, const float* bias) {
    constexpr int width = static_cast<int>(sizeof(V) / sizeof(float)), outputs = width * VECTORS;
    for (int p = 0; p < PAIR_POSITIONS; p++, u += Values::steps(INPUTS) * outputs) {
        V start[VECTORS] = {};
        if (bias && p == BIAS_POSITION) UNROLL
        for (int j = 0; j < VECTORS; j++) start[j] = load<V>(bias + j * width);
        const auto block = [&](auto size, int t) INLINE_LAMBDA {
            product_block<Values, V, decltype(size)::tiles, INPUTS, VECTORS>(
                v + p * POSITION_STRIDE + t * PIXEL, second, m + (p * MAX_TILES_ODD + t) * outputs, u, start);
        };
        int t = 0;
        for (; t + BLOCK_TILES <= tiles; t += BLOCK_TILES) block(Block<BLOCK_TILES>(), t);
        if (BLOCK_TILES > 4 && t + 4 <= tiles) block(Block<4>(), t), t += 4;
        if (t + 2 <= tiles) block(Block<2>(), t), t += 2;
        for (; t < tiles; t++) block(Block<1>(), t);
    }
}

// ReLU, and the residual. Of that sum a ReLU would change nothing: both are ReLU's results, or mixtures of such.
INLINE void put_pixel(Vector value, const Result& result, int row, int at) {
    value = relu(value);
    if (result.residual) value += load<Vector>((*result.residual)[row] + at);
    store(result.out[row] + at, value);
}

// How a pair of rows of positions becomes what is kept of it, and at last pixels: a position's products for all
// tiles, then the next's; the sums go through memory. For processors of 16 registers, which hold those of BLOCK
// tiles.
template <class Values, int BLOCK>
struct ByPosition {
    using Kept = Values;

    template <Pair PAIR, int INPUTS>
    INLINE_MEMBER static void pair(const Scratch& scratch, int tiles, const Result& result) {
        constexpr int weights = PAIR_POSITIONS * Values::steps(INPUTS) * PIXEL;
        float* const m = INPUTS == PIXEL ? scratch.v : scratch.sums();  // its inputs are then all read
        products<Values, Vector, BLOCK, INPUTS, PARTS>(scratch.v + result.first, result.second - result.first, m,
                                                       tiles, result.weights + PIXEL + PAIR * weights,
                                                       PAIR == ROWS_1_2 ? result.weights : nullptr);
        for (int t = 0; t < tiles; t++) UNROLL
        for (int part = 0; part < PARTS; part++) {
            const int at = t * PIXEL + part * LANES, pixels = t * TILE * PIXEL + part * LANES;
            finish_pair<Vector, PAIR>(m + at, result.kept + at, POSITION_STRIDE,
                                      [&](int row, int column, Vector value) INLINE_LAMBDA {
                                          put_pixel(value, result, row, pixels + column * PIXEL);
                                      });
        }
    }
};

template <class Method, Pair PAIR, int INPUTS>
INLINE void pair_of(Rows in, int tiles, int count, const Result* results, const Scratch& scratch) {
    to_pair<PAIR, typename Method::Kept>(in, tiles, scratch.v);
    for (int i = 0; i < count; i++) Method::template pair<PAIR, INPUTS>(scratch, tiles, results[i]);
}

template <class Method, int INPUTS>
INLINE void convolution(Rows in, int tiles, int count, const Result* results, const Scratch& scratch) {
    pair_of<Method, ROWS_1_2, INPUTS>(in, tiles, count, results, scratch);
    pair_of<Method, ROWS_3_4, INPUTS>(in, tiles, count, results, scratch);
    pair_of<Method, ROWS_0_5, INPUTS>(in, tiles, count, results, scratch);
}

template <class Method>
void conv16(Rows in, int tiles, const float* weights, OutRows out, const OutRows* residual, float* memory) {
    const Scratch scratch(memory);
    const Result result = {weights, 0, 0, out, residual, scratch.kept(0)};
    convolution<Method, PIXEL>(in, tiles, 1, &result, scratch);
}

template <class Method>
void conv6(Rows in, int tiles, int count, const float* const* weights, const int* first, const int* second,
           const OutRows* out, float* memory) {
    const Scratch scratch(memory);
    Result results[2];
    for (int i = 0; i < count; i++)
        results[i] = {weights[i], first[i], second[i], out[i], nullptr, scratch.kept(i)};
    convolution<Method, 2 * COLOUR_FLOATS>(in, tiles, count, results, scratch);
}

template <Pair PAIR>
INLINE void pair3(Rows in, int tiles, const float* weights, OutRows out, const Scratch& scratch) {
    constexpr int STRIDE = MAX_TILES_ODD * RGB;
    float* const sums = scratch.sums();
    to_pair<PAIR, Float32>(in, tiles, scratch.v);
    products<Float32, Colour, 8, PIXEL, 1>(scratch.v, 0, sums, tiles,
                                           weights + PIXEL + PAIR * PAIR_POSITIONS * PIXEL * RGB,
                                           PAIR == ROWS_1_2 ? weights : nullptr);
    for (int t = 0; t < tiles; t++)
        finish_pair<Colour, PAIR>(sums + t * RGB, scratch.kept(0) + t * RGB, STRIDE,
                                  [&](int row, int column, Colour value)
                                      INLINE_LAMBDA { store(out[row] + (t * TILE + column) * RGB, value); });
}

void conv3(Rows in, int tiles, const float* weights, OutRows out, float* memory) {
    const Scratch scratch(memory);
    pair3<ROWS_1_2>(in, tiles, weights, out, scratch);
    pair3<ROWS_3_4>(in, tiles, weights, out, scratch);
    pair3<ROWS_0_5>(in, tiles, weights, out, scratch);
}

void stitch(float* a, float* b, std::size_t floats, float alpha) {
    const float rest = 1.f - alpha;
    for (std::size_t i = 0; i < floats; i += LANES) {
        const Vector mine = load<Vector>(a + i), other = load<Vector>(b + i);
        store(a + i, alpha * mine + rest * other);
        store(b + i, alpha * other + rest * mine);
    }
}

}  // namespace
}  // namespace cmudrn
