// What this processor can do at best in the instruction set that the file is compiled for: multiply-adds of float32
// (and bfloat16 where there is one) from registers alone, and memory's bandwidth.
//
//     fma_peak THREADS  ->  {"flops_per_s": ..., "bf16_flops_per_s": ..., "bytes_per_s": ...}

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));
constexpr int lanes = vector_bytes / 4;

// Enough to hide a latency of four or five cycles on two units, and few enough for sixteen registers.
constexpr int chains = 12;
constexpr long steps = 4'000'000;  // about ten milliseconds
constexpr int attempts = 12;       // the best counts: interrupts only ever take away

volatile float sink;

double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Seconds from the moment that all threads are there until the last has done its part.
double timed(int threads, const std::function<void(int)> &part) {
    std::atomic<int> missing{threads};
    std::vector<double> began(threads), ended(threads);
    std::vector<std::thread> some;
    for (int i = 0; i < threads; ++i)
        some.emplace_back([&, i] {
            for (--missing; missing.load() > 0;) std::this_thread::yield();
            began[i] = seconds();
            part(i);
            ended[i] = seconds();
        });
    for (auto &thread : some) thread.join();
    return *std::max_element(ended.begin(), ended.end()) - *std::min_element(began.begin(), began.end());
}

double best(int threads, const std::function<void(int)> &part) {
    double least = timed(threads, part);
    for (int i = 1; i < attempts; ++i) least = std::min(least, timed(threads, part));
    return least;
}

void multiply_add(int) {
    Vector sum[chains], factor = Vector{} + 0.999999f, addend = Vector{} + 1e-6f;
    for (int k = 0; k < chains; ++k) sum[k] = Vector{} + float(k);
    for (long step = 0; step < steps; ++step)
#pragma GCC unroll 12
        for (int k = 0; k < chains; ++k) sum[k] = sum[k] * factor + addend;
    for (int k = 1; k < chains; ++k) sum[0] += sum[k];
    sink = sum[0][0];
}

#if defined(__AVX512BF16__)
void multiply_add_bf16(int) {
    __m512 sum[chains];
    const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f));
    for (int k = 0; k < chains; ++k) sum[k] = _mm512_set1_ps(float(k));
    for (long step = 0; step < steps; ++step)
#pragma GCC unroll 12
        for (int k = 0; k < chains; ++k) sum[k] = _mm512_dpbf16_ps(sum[k], factor, factor);
    for (int k = 1; k < chains; ++k) sum[0] = _mm512_add_ps(sum[0], sum[k]);
    sink = sum[0][0];
}
#endif

// STREAM's triad, a = b + s c, on arrays far larger than any cache; three of them are counted, as there.
double bytes_per_s(int threads) {
    constexpr std::size_t count = std::size_t{1} << 26;
    auto array = [] { return std::unique_ptr<float[]>(new float[count]); };
    auto a = array(), b = array(), c = array();
    float *pa = a.get(), *pb = b.get(), *pc = c.get();
    auto span = [&](int i) { return std::pair{count * i / threads, count * (i + 1) / threads}; };
    timed(threads, [&](int i) {  // each thread touches first what is to be its own
        auto [from, to] = span(i);
        for (auto k = from; k < to; ++k) pa[k] = 0, pb[k] = 1, pc[k] = 2;
    });
    double least = best(threads, [&](int i) {
        auto [from, to] = span(i);
        for (auto k = from; k < to; ++k) pa[k] = pb[k] + 3 * pc[k];
    });
    sink = pa[count / 2];
    return 3.0 * count * sizeof(float) / least;
}

}  // namespace

int main(int argc, char **argv) {
    int threads = argc > 1 ? std::atoi(argv[1]) : 1;
    if (threads < 1) return 2;
    double each = 2.0 * threads * steps * chains;
    double bf16 = 0;
#if defined(__AVX512BF16__)
    bf16 = each * 2 * lanes / best(threads, multiply_add_bf16);
#endif
    std::printf("{\"flops_per_s\": %.6g, \"bf16_flops_per_s\": %.6g, \"bytes_per_s\": %.6g}\n",
                each * lanes / best(threads, multiply_add), bf16, bytes_per_s(threads));
}
