// Vectors of 4: SSE2, which every x86-64 has, or NEON.
#define CMUDRN_LANES 4
#include "winograd.hpp"

const cmudrn::Kernels& cmudrn::kernels_base() {
    static const Kernels kernels = {
        "base", conv16<ByPosition<Float32, 2>>, conv6<ByPosition<Float32, 2>>, conv3, stitch, nullptr};
    return kernels;
}
