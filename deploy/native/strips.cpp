// A session of fused strips: its memory, and its threads at the strips of a batch.
#include "crew.hpp"
#include "memory.hpp"
#include "packed.hpp"
#include "plan.hpp"
#include "session.hpp"
#include "strip.hpp"

#if defined(CMUDRN_POISON)
#include <algorithm>
#include <limits>
#endif

namespace cmudrn {
namespace {

class StripSession : public Session {
public:
    StripSession(const Network& network, const Kernels& kernels, int threads)
        : network_(network),
          packed_(static_cast<const Packed&>(*network.prepared)),
          kernels_(kernels),
          threads_(threads) {}

    uint64_t bytes(int batch, int height, int width) const override {
        return Layout(plan_of(height, width, CMUDRN_UINT8, CMUDRN_FUSED), batch, threads_).floats() * sizeof(float);
    }

    void restore(const Request& request) override {
        const Plan plan = plan_of(request.height, request.width, request.pixel, request.output);
        const Layout layout(plan, request.batch, threads_);
        float* const memory = memory_.reserve(layout.floats());
#if defined(CMUDRN_POISON)
        std::fill(memory, memory + layout.floats(), std::numeric_limits<float>::quiet_NaN());
#endif
        Canvas canvases[2] = {canvas(plan, layout, memory, 0), canvas(plan, layout, memory, layout.canvases - 1)};
        for (int i = 0; i < layout.canvases; i++) canvases[i].clear_border();
        // An image after the other, through two canvases by turns.
        Crew crew(plan, layout.canvases, request.batch, static_cast<Progress*>(layout.tasks(memory)));
        crew.run(threads_, [&](Task& task, int worker) {
            Canvas here = canvases[task.image % layout.canvases];
            const std::size_t start =
                static_cast<std::size_t>(task.image) * plan.pixel_offset(plan.height, 0) * plan.pixel_bytes();
            here.in = static_cast<const char*>(request.in) + start;
            here.out = static_cast<char*>(request.out) + start;
            const Strip strip(plan, packed_, kernels_, network_.config, here, plan[task.stage], task.strip,
                              task.stage % 2, layout.bench(memory, worker));
            while (task.next()) {
                strip.step(task.row());
                task.done();
            }
        });
    }

private:
    Plan plan_of(int height, int width, cmudrn_pixel pixel, cmudrn_output output) const {
        return Plan(network_.config, height, width, pixel, output);
    }

    static Canvas canvas(const Plan& plan, const Layout& layout, float* memory, int i) {
        return {plan,
                layout.map(memory, i),
                {layout.edges(memory, i, 0), layout.edges(memory, i, 1)},
                nullptr,
                nullptr};
    }

    const Network& network_;
    const Packed& packed_;
    const Kernels& kernels_;
    const int threads_;
    Memory memory_;
};

}  // namespace

std::unique_ptr<Prepared> prepare_strips(const Network& network, const Kernels& kernels) {
    return std::make_unique<Packed>(network, kernels);
}

std::unique_ptr<Session> open_strips(const Network& network, const Kernels& kernels, int threads) {
    return std::make_unique<StripSession>(network, kernels, threads);
}

}  // namespace cmudrn
