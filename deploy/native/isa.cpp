// The build defines CMUDRN_WITH_<ISA> for every kernels_<isa>.cpp that it compiles; base is always among them.
#include "isa.hpp"

#include <cstring>

#include "cpu.hpp"
#include "kernels.hpp"

namespace cmudrn {

namespace {

const Isa ISAS[] = {
#ifdef CMUDRN_WITH_AVX512BF16
    {"avx512bf16", [](const Cpu& cpu) { return cpu.avx512bf16; }, kernels_avx512bf16},
#endif
#ifdef CMUDRN_WITH_AVX512
    {"avx512", [](const Cpu& cpu) { return cpu.avx512; }, kernels_avx512},
#endif
#ifdef CMUDRN_WITH_AVX2
    {"avx2", [](const Cpu& cpu) { return cpu.avx2; }, kernels_avx2},
#endif
    {"base", [](const Cpu&) { return true; }, kernels_base},
    {"direct", [](const Cpu&) { return true; }, nullptr},
};

// Best first. A processor that runs one runs all that follow, so its list is an end of this one.
const char FLOAT32_ISAS[] =
#ifdef CMUDRN_WITH_AVX512
    "avx512,"
#endif
#ifdef CMUDRN_WITH_AVX2
    "avx2,"
#endif
    "base,direct";

}  // namespace

const Isa* find_isa(const char* name) {
    const Cpu cpu = this_cpu();
    for (const Isa& isa : ISAS)
        if (std::strcmp(isa.name, name) == 0) return isa.runs_on(cpu) ? &isa : nullptr;
    return nullptr;
}

const char* float32_isas() {
    const Cpu cpu = this_cpu();
    for (const Isa& isa : ISAS) {
        const char* list = std::strstr(FLOAT32_ISAS, isa.name);  // null for avx512bf16
        if (list != nullptr && isa.runs_on(cpu)) return list;
    }
    return "direct";
}

std::unique_ptr<Prepared> prepare(const Network& network) {
    return network.isa->kernels == nullptr ? nullptr : prepare_strips(network, network.isa->kernels());
}

std::unique_ptr<Session> open_session(const Network& network, int threads) {
    if (network.isa->kernels == nullptr) return open_direct(network, threads);
    return open_strips(network, network.isa->kernels(), threads);
}

}  // namespace cmudrn
