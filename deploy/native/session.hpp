// What restores images: the interface that every way of computing has, and how each is opened.
#ifndef CMUDRN_SESSION_HPP
#define CMUDRN_SESSION_HPP

#include <cstdint>
#include <memory>

#include "network.hpp"

namespace cmudrn {

struct Kernels;

// One call, its arguments checked: sides and batch >= 1, and no size of it in bytes overflows.
struct Request {
    const void* in;  // [batch, height, width, 3] of `pixel`
    void* out;       // the same
    int batch, height, width;
    cmudrn_pixel pixel;
    cmudrn_output output;
};

constexpr int MAX_LOOPS = 32;
constexpr int MAX_THREADS = 256;

class Session {
public:
    virtual ~Session() = default;

    // Memory held for such a call, and kept from then on.
    virtual uint64_t bytes(int batch, int height, int width) const = 0;

    // Throws std::bad_alloc, and only before it has written anything; smaller images can be restored then.
    virtual void restore(const Request& request) = 0;
};

// The network outlives its sessions. threads: at most so many work, 1 to MAX_THREADS. All throw std::bad_alloc.
std::unique_ptr<Session> open_direct(const Network& network, int threads);

// For open_strips the network has been prepared by prepare_strips with the same kernels.
std::unique_ptr<Prepared> prepare_strips(const Network& network, const Kernels& kernels);
std::unique_ptr<Session> open_strips(const Network& network, const Kernels& kernels, int threads);

}  // namespace cmudrn

#endif
