// The network's layers as the paper has them: names and order as in cmudrn/model.py.
#ifndef CMUDRN_NETWORK_HPP
#define CMUDRN_NETWORK_HPP

#include <memory>
#include <vector>

#include "cmudrn_native.h"

namespace cmudrn {

constexpr int CHANNELS = 16;  // inside the network
constexpr int COLOURS = 3;    // R, G, B

struct Isa;

// 3x3, stride 1, a border of one zero pixel.
struct Conv {
    int inputs, outputs;
    std::vector<float> weight;  // [outputs, inputs, 3, 3]
    std::vector<float> bias;    // [outputs]
};

// DRN of one kind of weather; every stage and loop shares these.
struct Branch {
    Conv conv_in;                       // y and x, 6 channels, to 16
    Conv block1_conv1, block1_conv2;
    Conv block2_conv1, block2_conv2;
    Conv conv_out;                      // 16 to 3
};

struct Fusion {
    Conv conv1, conv2, conv3;  // both branches' images, 6 channels, to 16, 16 and 3
};

// What a way of computing makes of the weights once for all sessions: packed, transformed.
struct Prepared {
    virtual ~Prepared() = default;
};

struct Network {
    Branch rain, snow;
    Fusion fusion;
    cmudrn_config config;
    const Isa* isa = nullptr;            // how it is computed
    std::unique_ptr<Prepared> prepared;  // by that way; the direct one needs nothing
};

// weights: CMUDRN_WEIGHTS floats in the order of cmudrn_native.h; copied. Throws std::bad_alloc.
std::unique_ptr<Network> read_network(const float* weights, const cmudrn_config& config);

}  // namespace cmudrn

#endif
