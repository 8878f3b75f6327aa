// What an instruction set does for the network: three kinds of convolution, along a row of tiles.
//
// Features are NHWC with 16 channels: a pixel is PIXEL floats, 64 bytes. A tile is 4x4 pixels of output and 6x6 of
// input, Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): 36 positions of a transformed tile, at each of
// which the convolution is a small matrix product. Tiles of a row lie side by side, so tile t reads pixels 4t to 4t
// + 5.
#ifndef CMUDRN_KERNELS_HPP
#define CMUDRN_KERNELS_HPP

#include <cstddef>

namespace cmudrn {

constexpr int PIXEL = 16;      // floats of a pixel's features
constexpr int TILE = 4;        // output pixels of a tile, a side
constexpr int WINDOW = 6;      // input pixels of a tile, a side
constexpr int POSITIONS = 36;  // of a transformed tile
constexpr int RGB = 4;         // floats of a pixel's colour: three, and one that is nothing

using Rows = const float* const[WINDOW];  // input: the first tile's left pixel in each row
using OutRows = float* const[TILE];       // output: the first tile's left pixel in each row

// Packed weights: 16 of bias, then [POSITIONS][inputs][outputs] of the transformed weights; 64-byte aligned. The
// rows of positions in the order 1, 2, 3, 4, 0, 5, in which they are computed.
constexpr std::size_t packed_floats(int inputs, int outputs) {
    return PIXEL + static_cast<std::size_t>(POSITIONS) * static_cast<std::size_t>(inputs * outputs);
}

// Tiles of a row at most, and how scratch is laid out for them. An odd number of cache lines between positions, or
// 36 of them would fall on a few sets of the first-level cache; a constant one, or each position needs a register.
constexpr int MAX_TILES = 16;
constexpr int MAX_TILES_ODD = MAX_TILES | 1;
constexpr int POSITION_STRIDE = MAX_TILES_ODD * PIXEL;
constexpr int SCRATCH_FLOATS = (2 * 12 + 2 * 20) * POSITION_STRIDE;

struct Kernels {
    const char* isa;
    // out = ReLU(conv(in)), 16 to 16 channels; with `residual`, ReLU(ReLU(conv(in)) + residual), as in a block.
    void (*conv16)(Rows in, int tiles, const float* weights, OutRows out, const OutRows* residual, float* scratch);
    // For each of `count` sets of packed weights: out = ReLU(conv(in)), of six of the pixel's floats: three from
    // first[i] on, and three from second[i] on.
    void (*conv6)(Rows in, int tiles, int count, const float* const* weights, const int* first, const int* second,
                  const OutRows* out, float* scratch);
    // out = conv(in), 16 to 3 channels; out: RGB floats a pixel.
    void (*conv3)(Rows in, int tiles, const float* weights, OutRows out, float* scratch);
    // a, b = alpha a + (1 - alpha) b, alpha b + (1 - alpha) a: the cross-stitch (Misra et al. 2016, eq. 1).
    void (*stitch)(float* a, float* b, std::size_t floats, float alpha);
    // float32's packing as conv16 wants it, no larger; null where it wants that.
    void (*repack16)(const float* packed, float* repacked);
};

const Kernels& kernels_base();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();

}  // namespace cmudrn

#endif
