// The ways of computing that this build holds, by name.
#ifndef CMUDRN_ISA_HPP
#define CMUDRN_ISA_HPP

#include <memory>

#include "session.hpp"

namespace cmudrn {

struct Cpu;

struct Isa {
    const char* name;
    bool (*runs_on)(const Cpu& cpu);
    const Kernels& (*kernels)();  // of the strips; null: the direct way. Called only on a processor that has it
};

// Null for a name that this build doesn't hold or this processor can't run.
const Isa* find_isa(const char* name);

// Those that compute in float32 and run here, best first, parted by commas. Static memory.
const char* float32_isas();

// Both by the network's isa. They throw std::bad_alloc.
std::unique_ptr<Prepared> prepare(const Network& network);  // null where nothing is to be prepared
std::unique_ptr<Session> open_session(const Network& network, int threads);

}  // namespace cmudrn

#endif
