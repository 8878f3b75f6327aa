// The products of a row of six positions at once, for processors of 32 registers: 24 sums of four tiles go on to
// what is kept of a row without a way through memory. Stores are dear: on Zen 4 one of 64 bytes takes the time of a
// product.
#include "winograd.hpp"

namespace cmudrn {
namespace {

constexpr int ROW_TILES = 4;

// m A of one row of positions, for TILES tiles.
template <class Values, int TILES, int INPUTS>
INLINE void row_of_products(const float* v, int second, const float* u, const float* bias,
                            Vector kept[TILES][TILE]) {
    Vector sum[TILES][WINDOW] = {};
    if (bias) UNROLL
    for (int t = 0; t < TILES; t++) sum[t][BIAS_POSITION] = load<Vector>(bias);
    // Not unrolled: the weights of several steps would push sums out of the registers.
    NO_UNROLL
    for (int step = 0; step < Values::steps(INPUTS); step++) {
        const float* input = input_of<INPUTS>(v, second, step);
        UNROLL
        for (int p = 0; p < WINDOW; p++) {
            const Vector w = load<Vector>(u + (p * Values::steps(INPUTS) + step) * PIXEL);
            UNROLL
            for (int t = 0; t < TILES; t++)
                sum[t][p] = Values::accumulate(sum[t][p], w, input + p * POSITION_STRIDE + t * PIXEL);
        }
    }
    UNROLL
    for (int t = 0; t < TILES; t++) to_pixels(sum[t], kept[t]);
}

template <class Values>
struct ByRow {
    using Kept = Values;

    template <Pair PAIR, int INPUTS>
    INLINE_MEMBER static void pair(const Scratch& scratch, int tiles, const Result& result) {
        row<2 * PAIR, INPUTS>(scratch.v, tiles, result);
        row<2 * PAIR + 1, INPUTS>(scratch.v + WINDOW * POSITION_STRIDE, tiles, result);
    }

private:
    // ORDER: of the row, in which they are computed: 1, 2, 3, 4, 0, 5.
    template <int ORDER, int INPUTS>
    INLINE_MEMBER static void row(const float* v, int tiles, const Result& result) {
        int t = 0;
        for (; t + ROW_TILES <= tiles; t += ROW_TILES) block<ORDER, INPUTS, ROW_TILES>(v, t, result);
        for (; t < tiles; t++) block<ORDER, INPUTS, 1>(v, t, result);
    }

    template <int ORDER, int INPUTS, int TILES>
    INLINE_MEMBER static void block(const float* v, int first_tile, const Result& result) {
        const float* u = result.weights + PIXEL + ORDER * WINDOW * Values::steps(INPUTS) * PIXEL;
        Vector own[TILES][TILE];
        row_of_products<Values, TILES, INPUTS>(v + result.first + first_tile * PIXEL, result.second - result.first,
                                               u, ORDER == 0 ? result.weights : nullptr, own);
        UNROLL
        for (int t = 0; t < TILES; t++) {
            const int tile = first_tile + t;
            finish_row<Vector, ORDER>(own[t], result.kept + tile * PIXEL, POSITION_STRIDE,
                                      [&](int row, int column, Vector value) INLINE_LAMBDA {
                                          put_pixel(value, result, row, (tile * TILE + column) * PIXEL);
                                      });
        }
    }
};

}  // namespace
}  // namespace cmudrn
