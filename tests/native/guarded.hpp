/* Memory between two pages that may not be touched. */
#ifndef CMUDRN_TESTS_GUARDED_HPP
#define CMUDRN_TESTS_GUARDED_HPP

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

[[noreturn]] inline void fail(const std::string &what) {
    std::printf("%s\n", what.c_str());
    std::exit(1);
}

/* `bytes` that end, or begin, right at a page that may not be touched. */
class Guarded {
  public:
    Guarded(size_t bytes, bool at_end) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), inside = (bytes + page - 1) / page * page;
        length = inside + 2 * page;
        void *mapped = mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) fail("no memory for an image");
        start = static_cast<unsigned char *>(mapped);
        if (mprotect(start + page, inside, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
        first = start + page + (at_end ? inside - bytes : 0);
    }
    ~Guarded() { munmap(start, length); }
    Guarded(const Guarded &) = delete;
    Guarded &operator=(const Guarded &) = delete;
    unsigned char *data() { return first; }

  private:
    unsigned char *start, *first;
    size_t length;
};

#endif
