// Winograd's transform of the weights, U = G g G^T in double precision, and their order in memory.
#include "packed.hpp"

#include <algorithm>
#include <vector>

namespace cmudrn {
namespace {

constexpr int SIDE = 3;  // of a convolution
constexpr int ROW_ORDER[WINDOW] = {1, 2, 3, 4, 0, 5};
const double G[WINDOW][SIDE] = {{1. / 4, 0, 0},
                                {-1. / 6, -1. / 6, -1. / 6},
                                {-1. / 6, 1. / 6, -1. / 6},
                                {1. / 24, 1. / 12, 1. / 6},
                                {1. / 24, -1. / 12, 1. / 6},
                                {0, 0, 1}};

double transformed(const float* g, int row, int column) {
    double sum = 0;
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) sum += G[row][i] * G[column][j] * static_cast<double>(g[i * SIDE + j]);
    return sum;
}

// `outputs`: room for as many; those that the convolution hasn't got are zeros.
void pack(const Conv& conv, int outputs, float* to) {
    std::fill(to, to + packed_floats(conv.inputs, outputs), 0.f);
    std::copy(conv.bias.begin(), conv.bias.end(), to);
    for (int p = 0; p < POSITIONS; p++)
        for (int in = 0; in < conv.inputs; in++)
            for (int out = 0; out < conv.outputs; out++)
                to[PIXEL + (p * conv.inputs + in) * outputs + out] =
                    static_cast<float>(transformed(conv.weight.data() + (out * conv.inputs + in) * SIDE * SIDE,
                                                   ROW_ORDER[p / WINDOW], p % WINDOW));
}

}  // namespace

Packed::Packed(const Network& network, const Kernels& kernels) {
    for (int level = 0; level < 256; level++) levels[level] = static_cast<float>(level) / 255.f;
    constexpr std::size_t of6 = packed_floats(2 * COLOURS, PIXEL), of16 = packed_floats(PIXEL, PIXEL),
                          of3 = packed_floats(PIXEL, RGB);
    float* next = memory_.reserve(3 * of6 + 9 * of16 + 3 * of3);
    const auto packed = [&next](const Conv& conv, int outputs) -> const float* {
        float* const here = next;
        pack(conv, outputs, here);
        next += packed_floats(conv.inputs, outputs);
        return here;
    };
    const auto packed16 = [&](const Conv& conv) -> const float* {
        if (!kernels.repack16) return packed(conv, PIXEL);
        std::vector<float> usual(of16);
        pack(conv, PIXEL, usual.data());
        float* const here = next;
        kernels.repack16(usual.data(), here);
        next += of16;
        return here;
    };
    const Branch* const branches[2] = {&network.rain, &network.snow};
    for (int b = 0; b < 2; b++) {
        const Branch& from = *branches[b];
        branch[b] = {packed(from.conv_in, PIXEL),
                     {packed16(from.block1_conv1), packed16(from.block1_conv2), packed16(from.block2_conv1),
                      packed16(from.block2_conv2)},
                     packed(from.conv_out, RGB)};
    }
    fusion_conv1 = packed(network.fusion.conv1, PIXEL);
    fusion_conv2 = packed16(network.fusion.conv2);
    fusion_conv3 = packed(network.fusion.conv3, RGB);
}

}  // namespace cmudrn
