// The network by fused strips: a stage's layers run one after the other on a few rows, while these are in the
// cache.
//
// An image is cut into strips of a fixed width, and a strip is worked through from top to bottom, a row of tiles at
// a time, in all layers of a stage. A layer needs one pixel around what it makes, so its tiles lie one pixel
// further up and to the left than those of the layer before: layer k makes rows 4r - k to 4r - k + 3 in step r, and
// its strip s starts at column s * width - k. What it needs was then made in this step and the one before, in the
// two last columns of the strip to the left, or just now. Nothing is computed twice.
//
// Six rows of each layer are kept, in a ring. The columns for the next strip go through `edges`. Between stages an
// image is 16 floats a pixel: y, x of the rain branch, x of the snow branch, four each.
//
// Threads take strips in order. Strip s + 1 follows strip s a step behind, and a next stage begins while this one
// is going on; `progress` says how far each strip is. A strip waits only for ones taken before it: no deadlock.
// What is computed doesn't depend on who computes it, so neither do the bytes.
#ifndef CMUDRN_STRIP_HPP
#define CMUDRN_STRIP_HPP

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"
#include "packed.hpp"
#include "plan.hpp"
#include "session.hpp"

namespace cmudrn {

constexpr int Y = 0, X_RAIN = RGB, X_SNOW = 2 * RGB;  // where in a pixel between stages
constexpr int BRANCHES = 2;
constexpr int LAYERS_OF_BLOCKS = 4;     // of both residual blocks
constexpr int ABOVE = 256 * RING_ROWS;  // more rows than any layer begins above the image
static_assert(ABOVE > LAYERS_OF_BLOCKS * MAX_LOOPS + 2 * TILE, "of the deepest network");

// A pixel's colour, and nothing.
typedef float Colour __attribute__((vector_size(RGB * sizeof(float)), may_alias));

inline Colour colour(const float* from) { return *reinterpret_cast<const Colour*>(from); }
inline void put(float* to, Colour value) { *reinterpret_cast<Colour*>(to) = value; }

inline void zero(float* from, int pixels) {
    std::memset(from, 0, static_cast<std::size_t>(pixels) * PIXEL * sizeof(float));
}

// One image on its way: its pixels, and its pixels between stages with a border of zeros around.
struct Canvas {
    const Plan& plan;
    float* map;
    float* edges[2];  // of stages by turns
    const void* in;
    void* out;

    float* at(int row, int column) const {
        return map + (static_cast<std::size_t>(row + 1) * static_cast<std::size_t>(plan.map_columns()) +
                      static_cast<std::size_t>(column + 1)) *
                         PIXEL;
    }

    void clear_border() const {
        for (int row = -1; row <= plan.map_rows() - 2; row++) {
            const bool inside = row >= 0 && row < plan.height;
            if (inside) {
                zero(at(row, -1), 1);
                zero(at(row, plan.width), plan.map_columns() - 1 - plan.width);
            } else {
                zero(at(row, -1), plan.map_columns());
            }
        }
    }
};

// One strip of one stage, as one thread works through it.
class Strip {
public:
    Strip(const Plan& plan, const Packed& packed, const Kernels& kernels, const cmudrn_config& config,
          const Canvas& canvas, const Stage& stage, int index, int parity, Bench bench)
        : plan_(plan),
          packed_(packed),
          kernels_(kernels),
          config_(config),
          canvas_(canvas),
          stage_(stage),
          index_(index),
          edges_(canvas.edges[parity]),
          bench_(bench) {}

    void step(int r) const {
        switch (stage_.kind) {
            case Stage::LOAD:
                return load(r);
            case Stage::BODY:
                return body(r);
            case Stage::FUSE:
                return fuse(r);
            case Stage::STORE:
                return store(r);
        }
    }

private:
    // What a layer makes in a step: rows and columns from here on, and which of its tiles touch the image.
    struct Span {
        int row, column, first_tile, end_tile;
        bool outside;  // no row of it is in the image

        int tiles() const { return end_tile - first_tile; }
    };

    Span span(int r, int layer) const {
        const int row = TILE * r - layer, column = index_ * plan_.strip_width - layer;
        const int all = plan_.strip_width / TILE;
        const int first = std::clamp(-column / TILE, 0, all);  // column + 4t + 3 >= 0
        const int end = std::clamp((plan_.width - column + TILE - 1) / TILE, first, all);
        return {row, column, first, end, row + TILE <= 0 || row >= plan_.height};
    }

    // Where column `2 + x` of a ring is x pixels right of the strip's start: two columns are the left strip's.
    float* ring(int layer, int branch, int row) const {
        return bench_.rings +
               ((static_cast<std::size_t>(layer) * BRANCHES + static_cast<std::size_t>(branch)) * RING_ROWS +
                static_cast<std::size_t>((row + ABOVE) % RING_ROWS)) *
                   plan_.ring_row_floats();
    }

    void map_rows(const Span& span, const float* rows[WINDOW]) const {
        for (int i = 0; i < WINDOW; i++)
            rows[i] = canvas_.at(span.row - 1 + i, span.column + TILE * span.first_tile - 1);
    }

    // Of the layer before, for a layer that makes `span`: one row and one column more on every side.
    void ring_rows(const Span& span, int layer, int branch, const float* rows[WINDOW]) const {
        for (int i = 0; i < WINDOW; i++)
            rows[i] =
                ring(layer, branch, span.row - 1 + i) + static_cast<std::size_t>(TILE * span.first_tile) * PIXEL;
    }

    // Where a layer's own pixels go; `columns` to the right.
    void own_rows(const Span& span, int layer, int branch, int columns, float* rows[TILE]) const {
        for (int i = 0; i < TILE; i++)
            rows[i] = ring(layer, branch, span.row + i) +
                      static_cast<std::size_t>(HALO + TILE * span.first_tile + columns) * PIXEL;
    }

    // The image ends, and zeros begin: a convolution's border.
    void clear_outside(const Span& span, int layer, int branch) const {
        const int left = std::max(0, -span.column),
                  right = std::clamp(plan_.width - span.column, 0, plan_.strip_width);
        const int from = std::max(0, TILE * (span.first_tile - 1)),
                  to = std::min(plan_.strip_width, TILE * (span.end_tile + 1));
        for (int i = 0; i < TILE; i++) {
            float* const pixels = ring(layer, branch, span.row + i) + HALO * PIXEL;
            const bool inside = span.row + i >= 0 && span.row + i < plan_.height;
            if (!inside || left >= right) {
                zero(pixels + from * PIXEL, to - from);
                continue;
            }
            if (left > from) zero(pixels + from * PIXEL, left - from);
            if (to > right) zero(pixels + right * PIXEL, to - right);
        }
    }

    // The two columns that the strip to the left has left come in, this strip's own go out.
    void exchange_edges(const Span& span, int r, int layer, int branch) const {
        constexpr std::size_t bytes = HALO * PIXEL * sizeof(float);
        float* const edge = edges_ + plan_.edge_offset(layer * BRANCHES + branch, r);
        for (int i = 0; i < TILE; i++) {
            float* const row = ring(layer, branch, span.row + i);
#if defined(CMUDRN_PLANT_HALO_BUG)
            const float* const from_left = edge + ((i + 1) % TILE) * HALO * PIXEL;  // a row off: tests must see it
#else
            const float* const from_left = edge + i * HALO * PIXEL;
#endif
            if (index_ == 0)
                std::memset(row, 0, bytes);
            else
                std::memcpy(row, from_left, bytes);
        }
        if (index_ + 1 == stage_.strips) return;
        for (int i = 0; i < TILE; i++)
            std::memcpy(edge + i * HALO * PIXEL,
                        ring(layer, branch, span.row + i) + static_cast<std::size_t>(plan_.strip_width) * PIXEL,
                        bytes);
    }

    void finish(const Span& span, int r, int layer, int branch) const {
        if (span.outside) return;
        clear_outside(span, layer, branch);
        exchange_edges(span, r, layer, branch);
    }

    // Rows above or below the image are the convolution's border, too.
    void clear_rows(const Span& span, int layer, int branch) const {
        for (int i = 0; i < TILE; i++) zero(ring(layer, branch, span.row + i), plan_.strip_width + HALO);
    }

    void stitch(const Span& span, int layer, float alpha) const {
        if (alpha == 1.f || span.outside || span.tiles() == 0) return;
        float *rain[TILE], *snow[TILE];
        own_rows(span, layer, 0, 0, rain);
        own_rows(span, layer, 1, 0, snow);
        for (int i = 0; i < TILE; i++)
            kernels_.stitch(rain[i], snow[i], static_cast<std::size_t>(span.tiles() * TILE) * PIXEL, alpha);
    }

    // A first layer, of the map: `count` convolutions of three floats of a pixel and three others.
    struct FirstLayer {
        int count;
        const float* weights[BRANCHES];
        int first[BRANCHES], second[BRANCHES];
        float alpha;  // of the stitch after it
    };

    void from_map(int r, const FirstLayer& layer) const {
        const Span here = span(r, 0);
        if (here.outside) {
            for (int b = 0; b < layer.count; b++) clear_rows(here, 0, b);
            return;
        }
        if (here.tiles() > 0) {
            const float* rows[WINDOW];
            float* out[BRANCHES][TILE];
            map_rows(here, rows);
            for (int b = 0; b < layer.count; b++) own_rows(here, 0, b, 0, out[b]);
            kernels_.conv6(rows, here.tiles(), layer.count, layer.weights, layer.first, layer.second, out,
                           bench_.scratch);
            stitch(here, 0, layer.alpha);
        }
        for (int b = 0; b < layer.count; b++) finish(here, r, 0, b);
    }

    // A convolution of 16 to 16 of the layer before; in a block's second one f is added, of two layers back.
    void features(const Span& here, int layer, int branch, const float* weights, bool residual) const {
        if (here.outside) return clear_rows(here, layer, branch);
        if (here.tiles() == 0) return;
        const float* rows[WINDOW];
        float *out[TILE], *f[TILE];
        ring_rows(here, layer - 1, branch, rows);
        own_rows(here, layer, branch, 0, out);
        // A pixel here is the one 2 to the left of that layer's place for it.
        if (residual) own_rows(here, layer - 2, branch, -2, f);
        kernels_.conv16(rows, here.tiles(), weights, out, residual ? &f : nullptr, bench_.scratch);
    }

    // conv_in of both branches, of y and their own x.
    void stem(int r) const {
        from_map(r, {BRANCHES,
                     {packed_.branch[0].conv_in, packed_.branch[1].conv_in},
                     {Y, Y},
                     {X_RAIN, X_SNOW},
                     config_.stem});
    }

    // One convolution of a residual block.
    void block_layer(const Span& here, int layer, int branch) const {
        const int of_four = (layer - 1) % LAYERS_OF_BLOCKS;
        features(here, layer, branch, packed_.branch[branch].blocks[of_four], of_four % 2 == 1);
    }

    // The next layer, from this one on, after which the branches meet at a stitch; at the latest, the last.
    int next_meeting(int layer) const {
        for (; layer < plan_.block_layers; layer++) {
            const int done = layer % LAYERS_OF_BLOCKS;
            if (done == 2 && config_.block1 != 1.f) break;
            if (done == 0 && config_.block2 != 1.f) break;
        }
        return layer;
    }

    // The recursion: a branch as far as it goes alone, while its features are in the cache, then the other.
    void blocks(int r) const {
        for (int first = 1, last; first <= plan_.block_layers; first = last + 1) {
            last = next_meeting(first);
            for (int b = 0; b < BRANCHES; b++)
                for (int layer = first; layer <= last; layer++) {
                    const Span here = span(r, layer);
                    block_layer(here, layer, b);
                    if (layer < last) finish(here, r, layer, b);
                }
            const Span here = span(r, last);
            if (last % LAYERS_OF_BLOCKS == 2) stitch(here, last, config_.block1);
            if (last % LAYERS_OF_BLOCKS == 0) stitch(here, last, config_.block2);
            if (last == plan_.block_layers) stitch(here, last, config_.body);
            for (int b = 0; b < BRANCHES; b++) finish(here, r, last, b);
        }
    }

    // conv_out of both branches: x = y + conv_out(f).
    void new_estimates(int r) const {
        const Span here = span(r, stage_.shift);
        if (here.outside || here.tiles() == 0) return;
        for (int b = 0; b < BRANCHES; b++) {
            colours(here, stage_.shift - 1, b, packed_.branch[b].conv_out);
            each_inside(here, [&](int row, int column, const float* z) {
                float* const pixel = canvas_.at(row, column);
                put(pixel + (b == 0 ? X_RAIN : X_SNOW), colour(pixel + Y) + colour(z));
            });
        }
    }

    void body(int r) const {
        stem(r);
        blocks(r);
        new_estimates(r);
    }

    // The fusion, of both branches' x: conv1, conv2, conv3.
    void fuse(int r) const {
        from_map(r, {1, {packed_.fusion_conv1}, {X_RAIN}, {X_SNOW}, 1.f});
        const Span second = span(r, 1), third = span(r, 2);
        features(second, 1, 0, packed_.fusion_conv2, false);
        finish(second, r, 1, 0);
        if (third.outside || third.tiles() == 0) return;
        colours(third, 1, 0, packed_.fusion_conv3);
        each_inside(third, [&](int row, int column, const float* z) { write_pixel(row, column, z); });
    }

    void load(int r) const {
        const Span here = span(r, 0);
        if (here.outside) return;
        const int end = std::min(plan_.width, here.column + plan_.strip_width);
        for (int row = here.row; row < std::min(plan_.height, here.row + TILE); row++)
            for (int column = here.column; column < end; column++) {
                const Colour y = read_pixel(plan_.pixel_offset(row, column));
                float* const pixel = canvas_.at(row, column);
                put(pixel + Y, y), put(pixel + X_RAIN, y), put(pixel + X_SNOW, y), put(pixel + 3 * RGB, Colour{});
            }
    }

    void store(int r) const {
        const Span here = span(r, 0);
        if (here.outside) return;
        const int of = plan_.output == CMUDRN_RAIN ? X_RAIN : X_SNOW;
        const int end = std::min(plan_.width, here.column + plan_.strip_width);
        for (int row = here.row; row < std::min(plan_.height, here.row + TILE); row++)
            for (int column = here.column; column < end; column++)
                write_pixel(row, column, canvas_.at(row, column) + of);
    }

    // A convolution to three colours of the ring of `layer`, into the bench's colours.
    void colours(const Span& here, int layer, int branch, const float* weights) const {
        const float* rows[WINDOW];
        float* out[TILE];
        ring_rows(here, layer, branch, rows);
        for (int i = 0; i < TILE; i++) out[i] = colour_row(i);
        kernels_.conv3(rows, here.tiles(), weights, out, bench_.scratch);
    }

    float* colour_row(int i) const {
        return bench_.colours + static_cast<std::size_t>(i * plan_.strip_width) * RGB;
    }

    // Calls with every pixel of the image in the span, and its colour.
    template <class Use>
    void each_inside(const Span& here, Use use) const {
        const int start = here.column + TILE * here.first_tile;
        const int from = std::max(0, start), to = std::min(plan_.width, here.column + TILE * here.end_tile);
        for (int i = 0; i < TILE; i++) {
            const int row = here.row + i;
            if (row < 0 || row >= plan_.height) continue;
            for (int column = from; column < to; column++) use(row, column, colour_row(i) + (column - start) * RGB);
        }
    }

    Colour read_pixel(std::size_t from) const {
        Colour y = {};
        for (std::size_t i = 0; i < 3; i++)
            y[i] = plan_.pixel == CMUDRN_UINT8 ? packed_.levels[static_cast<const uint8_t*>(canvas_.in)[from + i]]
                                               : static_cast<const float*>(canvas_.in)[from + i];
        return y;
    }

    void write_pixel(int row, int column, const float* from) const {
        const std::size_t to = plan_.pixel_offset(row, column);
        const Colour zero = {}, one = {1.f, 1.f, 1.f, 1.f};
        Colour value = colour(from);
        value = value > zero ? value : zero;
        value = value < one ? value : one;
        if (plan_.pixel == CMUDRN_UINT8) {
            value = value * 255.f + 0.5f;
            uint8_t* const out = static_cast<uint8_t*>(canvas_.out) + to;
            for (int i = 0; i < 3; i++) out[i] = static_cast<uint8_t>(static_cast<int>(value[i]));
        } else {
            float* const out = static_cast<float*>(canvas_.out) + to;
            for (int i = 0; i < 3; i++) out[i] = value[i];
        }
    }

    const Plan& plan_;
    const Packed& packed_;
    const Kernels& kernels_;
    const cmudrn_config& config_;
    const Canvas& canvas_;
    const Stage& stage_;
    const int index_;
    float* const edges_;
    const Bench bench_;
};

}  // namespace cmudrn

#endif
