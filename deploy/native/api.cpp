// The C interface: arguments are checked here and nowhere behind, and no exception gets out.
#include "cmudrn_native.h"

#include <limits>
#include <memory>
#include <utility>

#include "isa.hpp"

struct cmudrn_network {
    std::unique_ptr<cmudrn::Network> network;
};

struct cmudrn_session {
    std::unique_ptr<cmudrn::Session> session;
};

namespace {

using cmudrn::MAX_LOOPS;
// More than memory holds, and little enough that the sizes of all that is computed from them fit in 64 bits.
constexpr int MAX_BATCH = 1 << 16;
constexpr int MAX_SIDE = 1 << 24;
constexpr uint64_t MAX_PIXELS = uint64_t{1} << 40;

bool is_between(int value, int least, int most) { return least <= value && value <= most; }

bool is_alpha(float value) { return value >= 0.0f && value <= 1.0f; }  // not NaN either

bool is_valid(const cmudrn_config& config) {
    return is_between(config.inter_loops, 1, MAX_LOOPS) && is_between(config.intra_loops, 1, MAX_LOOPS) &&
           is_alpha(config.stem) && is_alpha(config.block1) && is_alpha(config.block2) && is_alpha(config.body);
}

bool is_shape(int batch, int height, int width) {
    if (!is_between(batch, 1, MAX_BATCH)) return false;
    if (!is_between(height, 1, MAX_SIDE) || !is_between(width, 1, MAX_SIDE)) return false;
    return uint64_t(batch) <= MAX_PIXELS / (uint64_t(height) * uint64_t(width));
}

// Of `in`, and of `out`.
uint64_t image_bytes(const cmudrn::Request& r) {
    const uint64_t pixel_bytes = cmudrn::COLOURS * (r.pixel == CMUDRN_UINT8 ? sizeof(uint8_t) : sizeof(float));
    return pixel_bytes * uint64_t(r.batch) * uint64_t(r.height) * uint64_t(r.width);
}

bool is_valid(const cmudrn::Request& r) {
    if (r.in == nullptr || r.out == nullptr || !is_shape(r.batch, r.height, r.width)) return false;
    const uint64_t size = image_bytes(r);
    if (size > uint64_t{std::numeric_limits<size_t>::max() / 2}) return false;
    const auto in = reinterpret_cast<uintptr_t>(r.in), out = reinterpret_cast<uintptr_t>(r.out);
    if (r.pixel == CMUDRN_FLOAT32 && (in % alignof(float) != 0 || out % alignof(float) != 0)) return false;
    return (in < out ? out - in : in - out) >= size;
}

// What `make` makes, or null where memory or another resource is wanting.
template <class Make>
auto made_or_null(const Make& make) noexcept -> decltype(make()) {
    try {
        return make();
    } catch (...) {
        return nullptr;
    }
}

}  // namespace

int cmudrn_abi(void) { return CMUDRN_ABI; }

const char* cmudrn_isas(void) { return cmudrn::float32_isas(); }

int cmudrn_has_isa(const char* isa) { return isa != nullptr && cmudrn::find_isa(isa) != nullptr ? 1 : 0; }

cmudrn_network* cmudrn_network_new(const float* weights, size_t count, const cmudrn_config* config,
                                   const char* isa) {
    if (weights == nullptr || count != CMUDRN_WEIGHTS || config == nullptr || isa == nullptr) return nullptr;
    const cmudrn::Isa* found = cmudrn::find_isa(isa);
    if (found == nullptr || !is_valid(*config)) return nullptr;
    return made_or_null([&] {
        auto network = cmudrn::read_network(weights, *config);
        network->isa = found;
        network->prepared = cmudrn::prepare(*network);
        return new cmudrn_network{std::move(network)};
    });
}

void cmudrn_network_free(cmudrn_network* network) { delete network; }

cmudrn_session* cmudrn_session_new(const cmudrn_network* network, int threads) {
    if (network == nullptr || !is_between(threads, 1, cmudrn::MAX_THREADS)) return nullptr;
    return made_or_null([&] { return new cmudrn_session{cmudrn::open_session(*network->network, threads)}; });
}

void cmudrn_session_free(cmudrn_session* session) { delete session; }

uint64_t cmudrn_session_bytes(const cmudrn_session* session, int batch, int height, int width) {
    if (session == nullptr || !is_shape(batch, height, width)) return 0;
    try {
        return session->session->bytes(batch, height, width);
    } catch (...) {
        return UINT64_MAX;
    }
}

int cmudrn_restore(cmudrn_session* session, const void* in, void* out, int batch, int height, int width, int pixel,
                   int output) {
    if (session == nullptr || !is_between(pixel, CMUDRN_UINT8, CMUDRN_FLOAT32)) return CMUDRN_BAD_ARGUMENT;
    if (!is_between(output, CMUDRN_FUSED, CMUDRN_SNOW)) return CMUDRN_BAD_ARGUMENT;
    const cmudrn::Request request{
        in, out, batch, height, width, static_cast<cmudrn_pixel>(pixel), static_cast<cmudrn_output>(output)};
    if (!is_valid(request)) return CMUDRN_BAD_ARGUMENT;
    try {
        session->session->restore(request);
    } catch (...) {
        return CMUDRN_NO_MEMORY;
    }
    return CMUDRN_OK;
}
