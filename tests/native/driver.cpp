/* Calls a built library over sizes, configurations, threads and instruction sets, and holds each to "direct".

   For sanitizers and emulators, under which Python is slow or impossible. It needs the library alone:

       driver fewest|few|many [isa...]    without names: every one that this processor has

   Prints a line for each instruction set; ends with 1 where one differs. */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cmudrn_native.h"
#include "guarded.hpp"

namespace {

/* A wrong term is off by a thousandth or more; Winograd's F(4x4) rounds by some 1e-6. */
constexpr double FLOAT32_TOLERANCE = 1e-5;
/* bf16 has eight bits: here only what is grossly wrong shows, tests/test_native_numbers.py is the judge. */
constexpr double BF16_TOLERANCE = 0.06;

struct Size {
    int batch, height, width;
};

struct Plan {
    std::vector<cmudrn_config> configs;
    std::vector<Size> sizes; /* small after large and large after small: a session's memory is used again */
    std::vector<int> threads;
    double most_macs; /* of one image: what "direct" can do in reasonable time */
    size_t every; /* 1: each configuration takes all sizes; 4: every fourth, the next one others */
};

/* Multiply-adds of a pixel. */
double macs(const cmudrn_config &config) {
    return 2.0 * config.inter_loops * (864 + 9216.0 * config.intra_loops + 432) + 3600;
}

Plan few() {
    return {{{1, 1, 1, 1, 1, 1},
             {2, 1, 0.5f, 1, 1, 0.9f},
             {1, 2, 0.7f, 0.9f, 0.8f, 0.6f},
             {3, 3, 0.9f, 1, 1, 0.9f}},
            {{1, 37, 67}, {2, 3, 2}, {1, 66, 5}, {1, 7, 141}, {1, 1, 1}, {3, 9, 64}, {1, 5, 33}, {1, 16, 17}},
            {1, 2, 3, 8},
            2e8,
            4};
}

/* For emulators. Three images go through two canvases by turns. */
Plan fewest() {
    return {{{2, 2, 0.7f, 0.9f, 0.8f, 0.6f}}, {{1, 9, 100}, {1, 1, 1}, {2, 9, 13}, {3, 5, 40}}, {1, 3}, 2e8, 1};
}

Plan many() {
    Plan plan = few();
    for (int point = 0; point < 4; point++) {
        float alphas[4] = {1, 1, 1, 1};
        alphas[point] = 0.25f;
        plan.configs.push_back({2, 2, alphas[0], alphas[1], alphas[2], alphas[3]});
    }
    plan.configs.insert(plan.configs.end(), {{1, 7, 0.5f, 1, 1, 0.5f}, {7, 1, 0.5f, 0.9f, 1, 1}, {4, 5, 1, 1, 1, 0}});
    const int heights[] = {1, 2, 3, 4, 5, 8, 9, 15, 31, 70};
    const int widths[] = {130, 1, 99, 2, 3, 67, 4, 5, 36, 63, 64, 65, 6, 128, 129, 7, 31, 32, 33, 8, 95, 96, 97};
    int count = 0;
    for (int height : heights)
        for (int width : widths) plan.sizes.push_back({count++ % 5 == 0 ? 2 : 1, height, width});
    plan.threads = {1, 2, 3, 5};
    plan.most_macs = 6e7;
    plan.every = 12;
    return plan;
}

/* Numbers that are the same everywhere: in [0, 1), 24 bits. */
class Chance {
  public:
    explicit Chance(uint64_t seed) : state(seed) {}
    float next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(state >> 40) / (1 << 24);
    }

  private:
    uint64_t state;
};

/* Neither dying out nor growing over the loops, so that every weight shows in the output. */
std::vector<float> random_weights() {
    struct Layer {
        int out, in;
    };
    std::vector<Layer> branch = {{16, 6}, {16, 16}, {16, 16}, {16, 16}, {16, 16}, {3, 16}}, layers = branch;
    layers.insert(layers.end(), branch.begin(), branch.end());
    layers.insert(layers.end(), {{16, 6}, {16, 16}, {3, 16}});
    std::vector<float> weights;
    Chance chance(1);
    for (auto [out, in] : layers) {
        const float spread = 1.04f / std::sqrt(9.0f * static_cast<float>(in));
        for (int i = 0; i < out * in * 9; i++) weights.push_back((2 * chance.next() - 1) * spread);
        /* The fused image in the middle of its range: what is clamped shows nothing. */
        const float bias = weights.size() + 3 == CMUDRN_WEIGHTS ? 0.5f : 0.0f;
        for (int i = 0; i < out; i++) weights.push_back(bias + (2 * chance.next() - 1) * 0.03f);
    }
    return weights;
}

using Network = std::unique_ptr<cmudrn_network, decltype(&cmudrn_network_free)>;
using Session = std::unique_ptr<cmudrn_session, decltype(&cmudrn_session_free)>;

/* One instruction set and configuration, with a session for each number of threads. */
class Subject {
  public:
    Subject(const std::string &isa, const cmudrn_config &config, const std::vector<int> &threads)
        : network(made(isa, config), cmudrn_network_free) {
        for (int count : threads) {
            sessions.emplace_back(cmudrn_session_new(network.get(), count), cmudrn_session_free);
            if (!sessions.back()) fail("no session of " + isa);
        }
    }

    /* The image at both ends of guarded memory; `call` chooses which. */
    std::vector<unsigned char> restore(size_t session, const std::vector<unsigned char> &given, Size size, int pixel,
                                       int output, int call) {
        Guarded in(given.size(), call % 2 == 0), out(given.size(), call % 4 < 2);
        std::memcpy(in.data(), given.data(), given.size());
        std::memset(out.data(), 0xFF, given.size()); /* NaN: a pixel that isn't written shows */
        const int status = cmudrn_restore(sessions[session].get(), in.data(), out.data(), size.batch, size.height,
                                          size.width, pixel, output);
        if (status != CMUDRN_OK) fail("status " + std::to_string(status));
        if (std::memcmp(in.data(), given.data(), given.size()) != 0) fail("the input was written to");
        return {out.data(), out.data() + given.size()};
    }

  private:
    Network network;
    std::vector<Session> sessions;

    static cmudrn_network *made(const std::string &isa, const cmudrn_config &config) {
        static const std::vector<float> weights = random_weights();
        cmudrn_network *network = cmudrn_network_new(weights.data(), weights.size(), &config, isa.c_str());
        if (!network) fail("no network of " + isa);
        return network;
    }
};

std::vector<unsigned char> random_image(Size size, int pixel) {
    const size_t values = size_t(3) * size.batch * size.height * size.width;
    std::vector<unsigned char> image(pixel == CMUDRN_UINT8 ? values : values * sizeof(float));
    Chance chance(values);
    for (size_t i = 0; i < values; i++) {
        const float value = chance.next();
        if (pixel == CMUDRN_UINT8)
            image[i] = static_cast<unsigned char>(value * 256);
        else
            std::memcpy(&image[i * sizeof(float)], &value, sizeof(float));
    }
    return image;
}

/* The largest, in [0, 1] for float32 and grey levels for uint8; infinite where a value is not finite. */
double difference(const std::vector<unsigned char> &a, const std::vector<unsigned char> &b, int pixel) {
    double largest = 0;
    const size_t width = pixel == CMUDRN_UINT8 ? 1 : sizeof(float);
    for (size_t i = 0; i < a.size(); i += width) {
        float values[2] = {static_cast<float>(a[i]), static_cast<float>(b[i])};
        if (pixel == CMUDRN_FLOAT32) {
            std::memcpy(&values[0], &a[i], sizeof(float));
            std::memcpy(&values[1], &b[i], sizeof(float));
        }
        const double apart = std::abs(double(values[0]) - values[1]);
        largest = std::isfinite(apart) ? std::max(largest, apart) : INFINITY;
    }
    return largest;
}

struct Tally {
    int calls = 0, wrong = 0;
    double largest = 0;
};

/* One configuration's sizes: the first number of threads against "direct", the others against it. */
void compare(const std::string &isa, const Plan &plan, size_t number, Tally &tally) {
    const cmudrn_config &config = plan.configs[number];
    /* "direct" starts threads for every layer, which takes long where they are watched. */
    const std::vector<int> threads = isa == "direct" ? std::vector<int>{1, 2} : plan.threads;
    Subject direct("direct", config, {1}), subject(isa, config, threads);
    for (size_t i = number % plan.every; i < plan.sizes.size(); i += plan.every) {
        const Size size = plan.sizes[i];
        if (macs(config) * size.batch * size.height * size.width > plan.most_macs) continue;
        for (int pixel : {CMUDRN_FLOAT32, CMUDRN_UINT8}) {
            const int output = tally.calls % 3;
            const auto image = random_image(size, pixel);
            const auto wanted = direct.restore(0, image, size, pixel, output, tally.calls);
            const auto found = subject.restore(0, image, size, pixel, output, tally.calls++);
            const double apart = difference(found, wanted, pixel);
            const double tolerance = isa == "avx512bf16" ? BF16_TOLERANCE : FLOAT32_TOLERANCE;
            bool right = apart <= (pixel == CMUDRN_UINT8 ? std::max(1.0, 255 * tolerance) : tolerance);
            if (pixel == CMUDRN_FLOAT32) tally.largest = std::max(tally.largest, apart);
            for (size_t session = 1; session < threads.size(); session++)
                right &= subject.restore(session, image, size, pixel, output, tally.calls++) == found;
            if (!right && ++tally.wrong <= 5)
                std::printf("%s differs: %d x %d x %d, loops %d and %d, %s, output %d: by %g\n", isa.c_str(),
                            size.batch, size.height, size.width, config.inter_loops, config.intra_loops,
                            pixel == CMUDRN_UINT8 ? "uint8" : "float32", output, apart);
        }
    }
}

std::vector<std::string> all_isas() {
    std::vector<std::string> isas;
    std::istringstream names(cmudrn_isas());
    for (std::string name; std::getline(names, name, ',');) isas.push_back(name);
    if (cmudrn_has_isa("avx512bf16")) isas.push_back("avx512bf16");
    return isas;
}

} // namespace

int main(int count, char **arguments) {
    const std::string name = count > 1 ? arguments[1] : "few";
    const Plan plan = name == "many" ? many() : name == "few" ? few() : fewest();
    std::vector<std::string> isas(arguments + std::min(count, 2), arguments + count);
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ); /* what is said before a crash is said */
    std::printf("this processor: %s\n", cmudrn_isas());
    int wrong = 0;
    for (const std::string &isa : isas.empty() ? all_isas() : isas) {
        Tally tally;
        for (size_t number = 0; number < plan.configs.size(); number++) compare(isa, plan, number, tally);
        std::printf("%s: %d calls, %d wrong, largest difference %.1e\n", isa.c_str(), tally.calls, tally.wrong,
                    tally.largest);
        wrong += tally.wrong;
    }
    return wrong > 0;
}
