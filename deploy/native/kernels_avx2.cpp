// AVX2 and FMA: 16 registers of 8.
#define CMUDRN_LANES 8
#include "winograd.hpp"

const cmudrn::Kernels& cmudrn::kernels_avx2() {
    static const Kernels kernels = {
        "avx2", conv16<ByPosition<Float32, 6>>, conv6<ByPosition<Float32, 6>>, conv3, stitch, nullptr};
    return kernels;
}
