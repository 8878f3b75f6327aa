// AVX2 and FMA: 16 registers of 8.
#define CMUDRN_LANES 8
#define CMUDRN_BLOCK 6
#include "winograd.hpp"

const cmudrn::Kernels& cmudrn::kernels_avx2() {
    static const Kernels kernels = {"avx2", conv16<ByPosition<Float32>>, conv6<ByPosition<Float32>>, conv3, stitch,
                                    nullptr};
    return kernels;
}
