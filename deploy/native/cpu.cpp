// CPUID says what the processor has, XGETBV which registers the operating system keeps for a process.
#include "cpu.hpp"

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)

#include <cpuid.h>

#include <cstdint>

namespace cmudrn {

namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

bool has_bit(uint64_t word, int bit) { return (word >> bit & 1) != 0; }

// Zeros for a leaf that the processor doesn't know.
Registers cpuid(uint32_t leaf, uint32_t part) {
    Registers r;
    if (__get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
    return r;
}

// As an instruction: the intrinsic would have this file compiled for processors that have XSAVE.
uint64_t kept_registers() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

constexpr uint64_t YMM_STATE = 0x06;         // SSE and the upper halves of YMM
constexpr uint64_t ZMM_STATE = 0xe0 | 0x06;  // and masks, the upper halves of ZMM 0 to 15, ZMM 16 to 31

}  // namespace

Cpu this_cpu() {
    Cpu cpu;
    const uint32_t basic = cpuid(1, 0).ecx;
    const bool osxsave = has_bit(basic, 27);  // XGETBV faults without
    const uint64_t kept = osxsave ? kept_registers() : 0;
    const Registers extended = cpuid(7, 0);

    const bool fma = has_bit(basic, 12), avx = has_bit(basic, 28), avx2 = has_bit(extended.ebx, 5);
    cpu.avx2 = (kept & YMM_STATE) == YMM_STATE && avx && fma && avx2;

    const bool f = has_bit(extended.ebx, 16), dq = has_bit(extended.ebx, 17);
    const bool bw = has_bit(extended.ebx, 30), vl = has_bit(extended.ebx, 31);
    cpu.avx512 = cpu.avx2 && (kept & ZMM_STATE) == ZMM_STATE && f && dq && bw && vl;

    const bool has_part_1 = extended.eax >= 1;  // else older processors repeat another leaf
    cpu.avx512bf16 = cpu.avx512 && has_part_1 && has_bit(cpuid(7, 1).eax, 5);
    return cpu;
}

}  // namespace cmudrn

#else

namespace cmudrn {

Cpu this_cpu() { return {}; }

}  // namespace cmudrn

#endif
