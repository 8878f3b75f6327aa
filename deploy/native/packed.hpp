// The weights as the strips want them: transformed once, one layer after the other.
#ifndef CMUDRN_PACKED_HPP
#define CMUDRN_PACKED_HPP

#include "kernels.hpp"
#include "memory.hpp"
#include "network.hpp"

namespace cmudrn {

struct Packed : Prepared {
    Packed(const Network& network, const Kernels& kernels);

    struct OfBranch {
        const float *conv_in, *blocks[4], *conv_out;
    } branch[2];  // rain, snow
    const float *fusion_conv1, *fusion_conv2, *fusion_conv3;
    float levels[256];  // of uint8 pixels, in [0, 1]

private:
    Memory memory_;
};

}  // namespace cmudrn

#endif
