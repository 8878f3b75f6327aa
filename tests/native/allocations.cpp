/* Counts what a session allocates: the program's own malloc stands before the library's.

       allocations ISA

   Ends with 1 unless
   - a call of a size that the session had before allocates nothing, on one thread;
   - on several, it allocates what starting a thread takes, and has freed it at its end;
   - a session holds no more than cmudrn_session_bytes says, and nothing once it is freed. */
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "cmudrn_native.h"
#include "guarded.hpp"

extern "C" {
/* glibc's own, under the names that it keeps for such programs. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);
}

namespace {

std::atomic<int64_t> live_bytes{0}, live_blocks{0}, allocations{0}, largest{0};

void *counted(void *block) {
    if (!block) return block;
    const auto bytes = static_cast<int64_t>(malloc_usable_size(block));
    live_bytes += bytes;
    live_blocks++;
    allocations++;
    if (bytes > largest) largest = bytes;
    return block;
}

void discount(void *block) {
    if (!block) return;
    live_bytes -= static_cast<int64_t>(malloc_usable_size(block));
    live_blocks--;
}

} // namespace

extern "C" {
void *malloc(size_t bytes) { return counted(__libc_malloc(bytes)); }
void *calloc(size_t count, size_t bytes) { return counted(__libc_calloc(count, bytes)); }
void *realloc(void *block, size_t bytes) {
    discount(block);
    return counted(__libc_realloc(block, bytes));
}
void *memalign(size_t alignment, size_t bytes) { return counted(__libc_memalign(alignment, bytes)); }
void *aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void **block, size_t alignment, size_t bytes) {
    *block = memalign(alignment, bytes);
    return *block ? 0 : ENOMEM;
}
void free(void *block) {
    discount(block);
    __libc_free(block);
}
}

namespace {

/* malloc rounds up: to pages, where the block is large. */
constexpr int64_t ROUNDING_BYTES = 3 * 4096;
/* A thread's argument, and the table of its thread-local variables. */
constexpr int64_t THREAD_BLOCKS = 3, THREAD_BLOCK_BYTES = 4096;

struct Size {
    int batch, height, width;
};

struct Counts {
    int64_t bytes = live_bytes, blocks = live_blocks, total = allocations;
};

class Counter {
  public:
    explicit Counter(const char *isa, int threads) : threads(threads) {
        const cmudrn_config config = {2, 2, 0.9f, 1, 1, 0.9f};
        static const std::vector<float> weights(CMUDRN_WEIGHTS, 0.01f);
        network = cmudrn_network_new(weights.data(), weights.size(), &config, isa);
        if (!network) fail(std::string("no network of ") + isa);
        before = Counts();
        session = cmudrn_session_new(network, threads);
        if (!session) fail("no session");
    }

    /* Allocations of one call. */
    int64_t call(Size size, int output) {
        const size_t bytes = size_t(3) * size.batch * size.height * size.width;
        Guarded in(bytes, true), out(bytes, true); /* not by malloc */
        for (size_t i = 0; i < bytes; i++) in.data()[i] = static_cast<unsigned char>(i);
        const Counts at_start;
        largest = 0;
        const int status = cmudrn_restore(session, in.data(), out.data(), size.batch, size.height, size.width,
                                          CMUDRN_UINT8, output);
        if (status != CMUDRN_OK) fail("status " + std::to_string(status));
        return Counts().total - at_start.total;
    }

    void first(Size size) {
        call(size, CMUDRN_FUSED);
        most_bytes = std::max(most_bytes, cmudrn_session_bytes(session, size.batch, size.height, size.width));
        const int64_t held = Counts().bytes - before.bytes;
        std::printf("%d threads: %d x %d x %d holds %lld bytes, %llu were announced\n", threads, size.batch,
                    size.height, size.width, static_cast<long long>(held), static_cast<unsigned long long>(most_bytes));
        if (held > static_cast<int64_t>(most_bytes) + ROUNDING_BYTES) fail("it holds more than it says");
    }

    void again(Size size) {
        const Counts at_start;
        for (int output : {CMUDRN_FUSED, CMUDRN_RAIN, CMUDRN_SNOW}) {
            const int64_t made = call(size, output), most = threads > 1 ? 1 + THREAD_BLOCKS * (threads - 1) : 0;
            if (made > most || largest > THREAD_BLOCK_BYTES)
                fail(std::to_string(made) + " allocations, the largest of " + std::to_string(largest) + " bytes");
        }
        if (Counts().bytes != at_start.bytes || Counts().blocks != at_start.blocks) fail("something is left");
    }

    void end() {
        cmudrn_session_free(session);
        if (Counts().blocks != before.blocks) fail("a session leaves something");
        cmudrn_network_free(network);
    }

  private:
    const int threads;
    cmudrn_network *network;
    cmudrn_session *session;
    Counts before;
    uint64_t most_bytes = 0;
};

} // namespace

int main(int count, char **arguments) {
    if (count != 2) fail("allocations ISA");
    std::setvbuf(stdout, nullptr, _IONBF, 0); /* its buffer would be counted, too */
    {
        /* glibc keeps their stacks and tables for the next ones. */
        std::atomic<int> there{0};
        std::vector<std::thread> first;
        for (int i = 0; i < 4; i++)
            first.emplace_back([&] {
                for (there++; there < 4;) std::this_thread::yield();
            });
        for (std::thread &thread : first) thread.join();
    }
    for (int threads : {1, 4}) {
        if (threads > 1 && std::string(arguments[1]) == "direct") continue; /* starts some for each layer */
        Counter counter(arguments[1], threads);
        const Size sizes[] = {{1, 9, 9}, {1, 61, 131}, {2, 30, 40}, {64, 1, 1}};
        for (Size size : sizes) counter.first(size);
        for (Size size : sizes) counter.again(size);
        counter.end();
    }
}
