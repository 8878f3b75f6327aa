// What this processor can do, as far as the operating system lets it.
#ifndef CMUDRN_CPU_HPP
#define CMUDRN_CPU_HPP

namespace cmudrn {

// Each holds the one before it; all false on processors other than x86.
struct Cpu {
    bool avx2 = false;        // AVX2 and FMA
    bool avx512 = false;      // AVX-512 F, BW, DQ and VL
    bool avx512bf16 = false;  // AVX512_BF16
};

// Asks the processor, every time: microseconds, or tens of them in a virtual machine.
Cpu this_cpu();

}  // namespace cmudrn

#endif
