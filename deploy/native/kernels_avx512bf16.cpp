// AVX-512 with bfloat16: transformed pixels and weights of the convolutions of 16 to 16 are rounded to 8 bits of
// mantissa, two inputs go into one instruction, sums stay in float32.
#define CMUDRN_LANES 16
#include <immintrin.h>

#include "by_row.hpp"

namespace cmudrn {
namespace {

// At each position the weights of two inputs lie together, as the instruction takes them: [PIXEL / 2][PIXEL][2].
struct Bfloat16 {
    static constexpr int steps(int inputs) { return inputs / 2; }

    INLINE_MEMBER static void put(float* v, Vector value) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(v), (__m256i)_mm512_cvtneps_pbh((__m512)value));
    }

    // input: two values of the transformed pixel.
    INLINE_MEMBER static Vector accumulate(Vector sum, Vector weights, const float* input) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(*input), (__m512bh)weights);
    }
};

void repack16_in_pairs(const float* packed, float* repacked) {
    for (int i = 0; i < PIXEL; i++) repacked[i] = packed[i];  // the bias stays in float32
    unsigned short* to = reinterpret_cast<unsigned short*>(repacked + PIXEL);
    for (int row = 0; row < POSITIONS * PIXEL; row += 2, to += 2 * PIXEL)
        for (int out = 0; out < PIXEL; out++)
            for (int of_two = 0; of_two < 2; of_two++) {
                const __m128bh rounded = _mm_cvtneps_pbh(_mm_set1_ps(packed[PIXEL + (row + of_two) * PIXEL + out]));
                to[2 * out + of_two] = static_cast<unsigned short>(_mm_extract_epi16((__m128i)rounded, 0));
            }
}

}  // namespace
}  // namespace cmudrn

const cmudrn::Kernels& cmudrn::kernels_avx512bf16() {
    static const Kernels kernels = {"avx512bf16", conv16<ByRow<Bfloat16>>, conv6<ByRow<Float32>>, conv3,
                                    stitch,       repack16_in_pairs};
    return kernels;
}
