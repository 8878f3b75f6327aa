// AVX-512: 32 registers, each a whole pixel.
#define CMUDRN_LANES 16
#include "by_row.hpp"

const cmudrn::Kernels& cmudrn::kernels_avx512() {
    static const Kernels kernels = {"avx512", conv16<ByRow<Float32>>, conv6<ByRow<Float32>>, conv3, stitch,
                                    nullptr};
    return kernels;
}
