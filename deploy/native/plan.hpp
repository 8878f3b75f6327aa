// How a batch of images is cut into strips and steps, and where everything lies in memory. Arithmetic only.
#ifndef CMUDRN_PLAN_HPP
#define CMUDRN_PLAN_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>

#include "cmudrn_native.h"
#include "kernels.hpp"
#include "memory.hpp"

namespace cmudrn {

constexpr int RING_ROWS = 6;                       // two of the last step, four of this one
constexpr int NARROW_STRIP = 32, WIDE_STRIP = 64;  // pixels
static_assert(WIDE_STRIP <= MAX_TILES * TILE, "scratch holds a row of it");
static_assert(sizeof(std::size_t) == 8, "offsets into 64 bytes a pixel; without it ONNX Runtime restores");
constexpr int HALO = 2;  // columns that a strip's layers need of the strip to the left

// One pass over the image: strips from left to right, steps from top to bottom.
struct Stage {
    enum Kind { LOAD, BODY, FUSE, STORE } kind;
    int shift;  // of its last layer, in pixels up and left
    int strips;
    int steps;  // step i makes the rows of r = i - 1; in the first, all rows lie above the image
};

struct Plan {
    Plan(const cmudrn_config& config, int image_height, int image_width, cmudrn_pixel pixels, cmudrn_output wanted)
        : height(image_height),
          width(image_width),
          pixel(pixels),
          output(wanted),
          block_layers(4 * config.intra_loops),
          strip_width(best_strip_width(config.intra_loops)),
          stages(config.inter_loops + 2) {
        const int body_shift = block_layers + 1, fuse_shift = 2;
        load_ = stage(Stage::LOAD, 0);
        body_ = stage(Stage::BODY, body_shift);
        last_ = wanted == CMUDRN_FUSED ? stage(Stage::FUSE, fuse_shift) : stage(Stage::STORE, 0);
    }

    // The stages of an image in order: pixels in, inter_loops times the branches, pixels out.
    const Stage& operator[](int i) const { return i == 0 ? load_ : i + 1 == stages ? last_ : body_; }

    int tasks_before(int i) const {
        return i == 0 ? 0 : load_.strips + (i - 1) * body_.strips;  // the last stage is never before another
    }
    int tasks() const { return tasks_before(stages - 1) + last_.strips; }

    // With the border of zeros that a convolution sees, and up to three pixels more to fill the last tile.
    int map_rows() const { return round_up(height) + 2; }
    int map_columns() const { return round_up(width) + 2; }
    std::size_t map_floats() const {
        return static_cast<std::size_t>(map_rows()) * static_cast<std::size_t>(map_columns()) * PIXEL;
    }

    // Of what a strip leaves to the next: HALO columns of every row of every layer of both branches. What a step
    // needs lies together, as the processor then fetches it ahead.
    std::size_t edge_offset(int ring, int r) const {
        return (static_cast<std::size_t>(r + 1) * static_cast<std::size_t>(rings()) +
                static_cast<std::size_t>(ring)) *
               TILE * HALO * PIXEL;
    }
    int rings() const { return 2 * (block_layers + 1); }
    std::size_t edge_floats() const { return edge_offset(0, body_.steps - 1); }
    std::size_t ring_row_floats() const { return static_cast<std::size_t>(strip_width + HALO) * PIXEL; }

    std::size_t pixel_offset(int row, int column) const {
        return (static_cast<std::size_t>(row) * static_cast<std::size_t>(width) +
                static_cast<std::size_t>(column)) *
               3;
    }
    std::size_t pixel_bytes() const { return pixel == CMUDRN_UINT8 ? 1 : sizeof(float); }

    const int height, width;
    const cmudrn_pixel pixel;
    const cmudrn_output output;
    const int block_layers;  // convolutions of both residual blocks, all inner loops
    const int strip_width;   // pixels
    const int stages;

private:
    static int round_up(int pixels) { return (pixels + TILE - 1) / TILE * TILE; }

    // Narrow, so that the rings of a stage stay in the second-level cache: 26 KB a layer of both branches at 32
    // pixels. Where they wouldn't all the same, wider: fewer passes from strip to strip.
    static int best_strip_width(int intra_loops) { return intra_loops <= 4 ? NARROW_STRIP : WIDE_STRIP; }

    Stage stage(Stage::Kind kind, int shift) const {
        const auto cover = [shift](int pixels, int each) { return (pixels - 1 + shift) / each + 1; };
        return {kind, shift, cover(width, strip_width), cover(height, TILE) + 1};
    }

    Stage load_, body_, last_;
};

// One thread's own memory.
struct Bench {
    float *rings, *scratch, *colours;
};

// What a session holds for a plan, in floats from its start: one or two images between stages, two sets of edges
// for each, as a stage begins while the one before goes on, a bench for each thread, and a cache line for each
// task, which says how far it is. Throws std::bad_alloc for more tasks than can be counted.
class Layout {
public:
    Layout(const Plan& plan, int batch, int threads)
        : canvases(std::min(batch, 2)),
          map_floats_(plan.map_floats()),
          edge_floats_(plan.edge_floats()),
          ring_floats_(static_cast<std::size_t>(plan.rings()) * RING_ROWS * plan.ring_row_floats()),
          bench_floats_(ring_floats_ + SCRATCH_FLOATS + static_cast<std::size_t>(TILE * plan.strip_width * RGB)),
          benches_(canvas_floats() * static_cast<std::size_t>(canvases)),
          tasks_(benches_ + bench_floats_ * static_cast<std::size_t>(threads)) {
        const std::size_t tasks = static_cast<std::size_t>(batch) * static_cast<std::size_t>(plan.tasks());
        if (tasks > std::numeric_limits<int>::max() / 2) throw std::bad_alloc();
        floats_ = tasks_ + tasks * FLOATS_OF_TASK;
    }

    std::size_t floats() const { return floats_; }
    float* map(float* memory, int canvas) const {
        return memory + canvas_floats() * static_cast<std::size_t>(canvas);
    }
    float* edges(float* memory, int canvas, int turn) const {
        return map(memory, canvas) + map_floats_ + edge_floats_ * static_cast<std::size_t>(turn);
    }
    Bench bench(float* memory, int worker) const {
        float* const start = memory + benches_ + bench_floats_ * static_cast<std::size_t>(worker);
        return {start, start + ring_floats_, start + ring_floats_ + SCRATCH_FLOATS};
    }
    void* tasks(float* memory) const { return memory + tasks_; }

    const int canvases;

private:
    static constexpr std::size_t FLOATS_OF_TASK = CACHE_LINE / sizeof(float);

    std::size_t canvas_floats() const { return map_floats_ + 2 * edge_floats_; }

    const std::size_t map_floats_, edge_floats_, ring_floats_, bench_floats_, benches_, tasks_;
    std::size_t floats_;
};

}  // namespace cmudrn

#endif
