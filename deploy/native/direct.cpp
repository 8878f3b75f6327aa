// The network as plain loops over whole feature maps, in the names and the order of cmudrn/model.py: the
// reference that the faster ways are measured against. float32 throughout, in one order of summing, so that the
// number of threads doesn't show.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "memory.hpp"
#include "session.hpp"

namespace cmudrn {

namespace {

using Index = std::ptrdiff_t;

// Up to 16 planes of one image size in someone else's memory. Each is [height + 2, width + 2] with a border of
// zeros, so that a convolution needs no case for the edge.
struct Maps {
    int channels;
    Index height, width;
    std::array<float*, CHANNELS> planes;

    // The first pixel of row y, -1 <= y <= height; the border is at [-1] and [width].
    float* row(int channel, Index y) const {
        return planes[static_cast<size_t>(channel)] + (y + 1) * (width + 2) + 1;
    }
};

Maps cat(const Maps& a, const Maps& b) {
    Maps both = a;
    both.channels += b.channels;
    std::copy_n(b.planes.begin(), b.channels, both.planes.begin() + a.channels);
    return both;
}

// All that follow work on row y of every channel.

// sum[x] += one row of a 3x3 kernel, laid over one row of a plane.
void add_taps(float* __restrict sum, const float* taps, const float* __restrict in, Index width) {
    for (Index x = 0; x < width; ++x) sum[x] += taps[0] * in[x - 1] + taps[1] * in[x] + taps[2] * in[x + 1];
}

// out = conv(in)
void convolve(const Conv& conv, const Maps& in, const Maps& out, Index y) {
    const float* taps = conv.weight.data();
    for (int o = 0; o < conv.outputs; ++o) {
        float* sum = out.row(o, y);
        std::fill_n(sum, out.width, conv.bias[static_cast<size_t>(o)]);
        for (int i = 0; i < conv.inputs; ++i)
            for (Index ky = -1; ky <= 1; ++ky, taps += 3) add_taps(sum, taps, in.row(i, y + ky), in.width);
    }
}

// f = relu(f)
void relu(const Maps& f, Index y) {
    for (int c = 0; c < f.channels; ++c) {
        float* row = f.row(c, y);
        for (Index x = 0; x < f.width; ++x) row[x] = std::max(row[x], 0.0f);
    }
}

// f += g
void add(const Maps& f, const Maps& g, Index y) {
    for (int c = 0; c < f.channels; ++c) {
        float* __restrict row = f.row(c, y);
        const float* __restrict other = g.row(c, y);
        for (Index x = 0; x < f.width; ++x) row[x] += other[x];
    }
}

// a, b = alpha a + (1 - alpha) b, alpha b + (1 - alpha) a
void mix(float alpha, const Maps& a, const Maps& b, Index y) {
    for (int c = 0; c < a.channels; ++c) {
        float* __restrict row_a = a.row(c, y);
        float* __restrict row_b = b.row(c, y);
        for (Index x = 0; x < a.width; ++x) {
            const float was_a = row_a[x], was_b = row_b[x];
            row_a[x] = alpha * was_a + (1 - alpha) * was_b;
            row_b[x] = alpha * was_b + (1 - alpha) * was_a;
        }
    }
}

// Pixels: [height, width, 3] outside, planes of [0, 1] inside.

float to_unit(uint8_t value) { return static_cast<float>(value) / 255.0f; }
float to_unit(float value) { return value; }

// Written so that NaN, which is promised nothing, becomes 0 and no cast of it is undefined.
float clamp(float value) { return value > 0.0f ? std::min(value, 1.0f) : 0.0f; }

void store(float value, float& pixel) { pixel = clamp(value); }
// Casting cuts, and cutting v + 0.5 rounds v half up.
void store(float value, uint8_t& pixel) { pixel = static_cast<uint8_t>(clamp(value) * 255.0f + 0.5f); }

template <class Pixel>
void read_image(const Pixel* pixels, const Maps& image) {
    for (Index y = 0; y < image.height; ++y)
        for (Index x = 0; x < image.width; ++x)
            for (int c = 0; c < COLOURS; ++c) image.row(c, y)[x] = to_unit(*pixels++);
}

template <class Pixel>
void write_image(const Maps& image, Pixel* pixels) {
    for (Index y = 0; y < image.height; ++y)
        for (Index x = 0; x < image.width; ++x)
            for (int c = 0; c < COLOURS; ++c) store(image.row(c, y)[x], *pixels++);
}

// The feature maps of one image, one behind the other.
class Arena {
public:
    static constexpr int PLANES = 4 * COLOURS + 4 * CHANNELS;

    static uint64_t floats(int height, int width) {
        return PLANES * (uint64_t(height) + 2) * (uint64_t(width) + 2);
    }

    Arena(float* memory, int height, int width) : next_(memory), height_(height), width_(width) {
        std::fill_n(memory, floats(height, width), 0.0f);  // for the borders
    }

    Maps maps(int channels) {
        Maps maps{channels, height_, width_, {}};
        for (int c = 0; c < channels; ++c, next_ += (height_ + 2) * (width_ + 2))
            maps.planes[static_cast<size_t>(c)] = next_;
        return maps;
    }

private:
    float* next_;
    Index height_, width_;
};

// The network on one image at a time.
class Pass {
public:
    Pass(const Network& network, int threads, float* memory, int height, int width)
        : network_(network), threads_(threads), height_(height), arena_(memory, height, width) {}

    const Maps& y() const { return y_; }  // the degraded image, to be filled in before forward()

    // The image asked for; not clamped.
    Maps forward(cmudrn_output output) const {
        const Branch &rain = network_.rain, &snow = network_.snow;
        const cmudrn_config& config = network_.config;
        for (int stage = 0; stage < config.inter_loops; ++stage) {
            stem(rain.conv_in, stage == 0 ? y_ : x_rain_, f_rain_);
            stem(snow.conv_in, stage == 0 ? y_ : x_snow_, f_snow_);
            stitch(config.stem);
            recur();
            stitch(config.body);
            estimate(rain.conv_out, f_rain_, x_rain_);
            estimate(snow.conv_out, f_snow_, x_snow_);
        }
        if (output == CMUDRN_RAIN) return x_rain_;
        if (output == CMUDRN_SNOW) return x_snow_;
        fuse();
        return fused_;
    }

private:
    void stem(const Conv& conv_in, const Maps& x, const Maps& f) const {
        const Maps y_and_x = cat(y_, x);
        for_each_row([&](Index y) {
            convolve(conv_in, y_and_x, f, y);
            relu(f, y);
        });
    }

    void recur() const {
        const Branch &rain = network_.rain, &snow = network_.snow;
        for (int loop = 0; loop < network_.config.intra_loops; ++loop) {
            block(rain.block1_conv1, rain.block1_conv2, f_rain_);
            block(snow.block1_conv1, snow.block1_conv2, f_snow_);
            stitch(network_.config.block1);
            block(rain.block2_conv1, rain.block2_conv2, f_rain_);
            block(snow.block2_conv1, snow.block2_conv2, f_snow_);
            stitch(network_.config.block2);
        }
    }

    // f = relu(relu(conv2(relu(conv1(f)))) + f)
    void block(const Conv& conv1, const Conv& conv2, const Maps& f) const {
        for_each_row([&](Index y) {
            convolve(conv1, f, g_, y);
            relu(g_, y);
        });
        for_each_row([&](Index y) {
            convolve(conv2, g_, h_, y);
            relu(h_, y);
            add(f, h_, y);
            relu(f, y);
        });
    }

    void stitch(float alpha) const {
        if (alpha == 1.0f) return;
        for_each_row([&](Index y) { mix(alpha, f_rain_, f_snow_, y); });
    }

    // x = y + conv_out(f)
    void estimate(const Conv& conv_out, const Maps& f, const Maps& x) const {
        for_each_row([&](Index y) {
            convolve(conv_out, f, x, y);
            add(x, y_, y);
        });
    }

    void fuse() const {
        const Maps x = cat(x_rain_, x_snow_);
        const Fusion& fusion = network_.fusion;
        for_each_row([&](Index y) {
            convolve(fusion.conv1, x, g_, y);
            relu(g_, y);
        });
        for_each_row([&](Index y) {
            convolve(fusion.conv2, g_, h_, y);
            relu(h_, y);
        });
        for_each_row([&](Index y) { convolve(fusion.conv3, h_, fused_, y); });
    }

    // Threads of a layer's own, in bands of rows: every layer reads its neighbours' rows of the one before.
    template <class Work>
    void for_each_row(const Work& work) const {
        const int bands = static_cast<int>(std::min<Index>(threads_, height_));
        const auto run_band = [&](int band) {
            const Index end = band_start(band + 1, bands);
            for (Index y = band_start(band, bands); y < end; ++y) work(y);
        };
        std::array<std::thread, MAX_THREADS> others;
        int started = 1;
        try {
            for (; started < bands; ++started)
                others[static_cast<size_t>(started)] = std::thread(run_band, started);
        } catch (...) {
            // The system gives no more threads: their bands are done here.
        }
        run_band(0);
        for (int band = started; band < bands; ++band) run_band(band);
        for (int band = 1; band < started; ++band) others[static_cast<size_t>(band)].join();
    }

    Index band_start(int band, int bands) const {
        return static_cast<Index>(int64_t{height_} * band / bands);
    }

    const Network& network_;
    const int threads_;
    const Index height_;
    Arena arena_;
    // Images and features, named as in the model; g and h lie within a block, either branch's.
    const Maps y_ = arena_.maps(COLOURS), x_rain_ = arena_.maps(COLOURS), x_snow_ = arena_.maps(COLOURS);
    const Maps fused_ = arena_.maps(COLOURS);
    const Maps f_rain_ = arena_.maps(CHANNELS), f_snow_ = arena_.maps(CHANNELS);
    const Maps g_ = arena_.maps(CHANNELS), h_ = arena_.maps(CHANNELS);
};

class DirectSession final : public Session {
public:
    DirectSession(const Network& network, int threads) : network_(network), threads_(threads) {}

    uint64_t bytes(int, int height, int width) const override {  // one image of a batch at a time
        return sizeof(float) * Arena::floats(height, width);
    }

    void restore(const Request& request) override {
        const uint64_t floats = Arena::floats(request.height, request.width);
        // What 32 bits cannot hold becomes the most that they can, and no memory has that.
        float* memory = memory_.reserve(static_cast<size_t>(std::min<uint64_t>(floats, SIZE_MAX)));
        if (request.pixel == CMUDRN_UINT8)
            restore_all<uint8_t>(request, memory);
        else
            restore_all<float>(request, memory);
    }

private:
    template <class Pixel>
    void restore_all(const Request& request, float* memory) {
        const Pass pass(network_, threads_, memory, request.height, request.width);
        const Index image_size = Index{COLOURS} * request.height * request.width;
        for (Index i = 0; i < request.batch; ++i) {
            read_image(static_cast<const Pixel*>(request.in) + i * image_size, pass.y());
            write_image(pass.forward(request.output), static_cast<Pixel*>(request.out) + i * image_size);
        }
    }

    const Network& network_;
    const int threads_;
    Memory memory_;
};

}  // namespace

std::unique_ptr<Session> open_direct(const Network& network, int threads) {
    return std::make_unique<DirectSession>(network, threads);
}

}  // namespace cmudrn
