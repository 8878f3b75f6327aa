// Flat weights to named layers.
#include "network.hpp"

namespace cmudrn {

namespace {

// Hands out the weights in their order. In the braces below, C++ evaluates from left to right.
class Reader {
public:
    explicit Reader(const float* weights) : next_(weights) {}

    Conv conv(int inputs, int outputs) {
        return {inputs, outputs, floats(outputs * inputs * 9), floats(outputs)};
    }

    Branch branch() {
        return {conv(2 * COLOURS, CHANNELS),
                conv(CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS),
                conv(CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS),
                conv(CHANNELS, COLOURS)};
    }

    Fusion fusion() {
        return {conv(2 * COLOURS, CHANNELS), conv(CHANNELS, CHANNELS), conv(CHANNELS, COLOURS)};
    }

private:
    std::vector<float> floats(int count) {
        const float* first = next_;
        next_ += count;
        return {first, next_};
    }

    const float* next_;
};

constexpr int conv_size(int inputs, int outputs) { return outputs * inputs * 9 + outputs; }

constexpr int FIRST = conv_size(2 * COLOURS, CHANNELS);
constexpr int INNER = conv_size(CHANNELS, CHANNELS);
constexpr int LAST = conv_size(CHANNELS, COLOURS);
static_assert(2 * (FIRST + 4 * INNER + LAST) + FIRST + INNER + LAST == CMUDRN_WEIGHTS, "reads past the weights");

}  // namespace

std::unique_ptr<Network> read_network(const float* weights, const cmudrn_config& config) {
    Reader reader(weights);
    auto network = std::make_unique<Network>();
    network->rain = reader.branch();
    network->snow = reader.branch();
    network->fusion = reader.fusion();
    network->config = config;
    return network;
}

}  // namespace cmudrn
