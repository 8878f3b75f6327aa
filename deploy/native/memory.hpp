// Floats on a cache line's border, kept from call to call.
#ifndef CMUDRN_MEMORY_HPP
#define CMUDRN_MEMORY_HPP

#include <cstddef>
#include <limits>
#include <new>
#include <utility>

namespace cmudrn {

constexpr std::size_t CACHE_LINE = 64;  // bytes

class Memory {
public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }

    // At least so many; what was in them is lost where they grow. Throws std::bad_alloc, and holds nothing then.
    float* reserve(std::size_t floats) {
        if (floats <= floats_) return data_;
        release();
        if (floats > std::numeric_limits<std::size_t>::max() / sizeof(float)) throw std::bad_alloc();
        data_ = static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{CACHE_LINE}));
        floats_ = floats;
        return data_;
    }

private:
    void release() {
        // Forgotten first: a process that forks right here has a session that holds nothing, not something freed.
        floats_ = 0;
        ::operator delete(std::exchange(data_, nullptr), std::align_val_t{CACHE_LINE});
    }

    float* data_ = nullptr;
    std::size_t floats_ = 0;
};

}  // namespace cmudrn

#endif
