// The threads of a call, and how far each strip is.
#ifndef CMUDRN_CREW_HPP
#define CMUDRN_CREW_HPP

#include <atomic>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "memory.hpp"
#include "plan.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace cmudrn {

// A strip's steps that are done. A cache line each: two threads count side by side.
struct alignas(CACHE_LINE) Progress {
    std::atomic<int> steps{0};

    // It looks for about a step, then it sleeps rather than yields: a core that falls idle is given the thread that
    // is waited for, where another program, or an encoder of photographs, has taken that one's. `infer` comes to
    // 94% of the kernels' own speed by that, and to 89% by yielding.
    void wait_for(int wanted) const {
        constexpr int PATIENCE = 3000;  // looks
        for (int looks = 0; steps.load(std::memory_order_acquire) < wanted; looks++) {
            if (looks >= PATIENCE) std::this_thread::sleep_for(std::chrono::microseconds(20));
#if defined(__x86_64__) || defined(_M_X64)
            _mm_pause();
#endif
        }
    }
};

// One strip of one stage of one image, as the thread that took it sees it.
class Task {
public:
    Task(const Plan& plan, int canvases, Progress* progress, int number)
        : image(number / plan.tasks()),
          stage(stage_of(plan, number % plan.tasks())),
          strip(number % plan.tasks() - plan.tasks_before(stage)),
          plan_(plan),
          canvases_(canvases),
          progress_(progress) {}

    // Waits until the next step may be made; false after the last.
    bool next() {
        if (++step_ == plan_[stage].steps) return false;
        if (strip > 0) of(image, stage, strip - 1).wait_for(step_ + 1);
        if (stage > 0) {
            // The rows that this step sees, and one column beyond its strip, of the stage before.
            const Stage& before = plan_[stage - 1];
            const int rows = std::min(plan_.height, TILE * row() + TILE + 1);
            const int steps = (rows + before.shift + TILE - 1) / TILE + 1;
            const int beyond = before.shift / plan_.strip_width + 1;
            of(image, stage - 1, std::min(before.strips - 1, strip + beyond))
                .wait_for(std::min(before.steps, steps));
        }
        // Two sets of edges: the last strip to read this one's must be past it.
        if (stage > 1 && strip == 0) last(image, stage - 2).wait_for(std::min(plan_[stage - 2].steps, step_ + 1));
        if (stage == 0 && image >= canvases_)
            last(image - canvases_, plan_.stages - 1).wait_for(plan_[plan_.stages - 1].steps);
        return true;
    }

    int row() const { return step_ - 1; }  // r: of tiles

    void done() { of(image, stage, strip).steps.store(step_ + 1, std::memory_order_release); }

    const int image, stage, strip;

private:
    static int stage_of(const Plan& plan, int number) {
        int stage = 0;
        while (stage + 1 < plan.stages && number >= plan.tasks_before(stage + 1)) stage++;
        return stage;
    }

    Progress& of(int image_, int stage_, int strip_) const {
        return progress_[static_cast<std::size_t>(image_ * plan_.tasks() + plan_.tasks_before(stage_) + strip_)];
    }
    Progress& last(int image_, int stage_) const { return of(image_, stage_, plan_[stage_].strips - 1); }

    const Plan& plan_;
    const int canvases_;
    Progress* const progress_;
    int step_ = -1;
};

class Crew {
public:
    // progress: room for one of each task.
    Crew(const Plan& plan, int canvases, int batch, Progress* progress)
        : plan_(plan), canvases_(canvases), tasks_(batch * plan.tasks()), progress_(progress) {
        for (int i = 0; i < tasks_; i++) new (progress + i) Progress();
    }

    // work(Task&, worker): all steps of a strip. The caller works, too; the others end before this returns.
    template <class Work>
    void run(int threads, Work work) {
        std::atomic<int> taken{0};
        const auto member = [&](int worker) {
            for (int number; (number = taken.fetch_add(1)) < tasks_;) {
                Task task(plan_, canvases_, progress_, number);
                work(task, worker);
            }
        };
        std::vector<std::thread> others;
        try {
            others.reserve(static_cast<std::size_t>(std::min(threads, tasks_) - 1));
            for (int worker = 1; worker < std::min(threads, tasks_); worker++) others.emplace_back(member, worker);
        } catch (const std::system_error&) {
            // No thread to be had: the work is done by those there are.
        } catch (const std::bad_alloc&) {
        }
        member(0);
        for (std::thread& other : others) other.join();
    }

private:
    const Plan& plan_;
    const int canvases_, tasks_;
    Progress* const progress_;
};

}  // namespace cmudrn

#endif
