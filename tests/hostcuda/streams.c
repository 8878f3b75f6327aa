#define _GNU_SOURCE
#include "streams.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct CUevent_st {
    Event *next;
    Context *context;
    unsigned flags;
    bool closed;
    Marker *recorded;
};

/* Closed ones stay: a handle that is used too late is never another's. */
Stream *streams;
static Event *events;
static uint64_t streams_made;

static _Thread_local struct {
    Context *context;
    Operation *operation;
} running;

/* Markers */

Marker *hold(Marker *marker) {
    if (marker) marker->holders++;
    return marker;
}

void let_go(Marker *marker) {
    if (marker && --marker->holders == 0) free(marker);
}

static bool is_done(const Marker *marker) { return !marker || marker->done; }

static void wait_for(Marker *marker) {
    hold(marker);
    while (!is_done(marker)) wait_for_change();
    let_go(marker);
}

void *allocate(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    if (!memory) abort(); /* a test's few bytes */
    return memory;
}

/* A stream's thread */

Context *running_context(void) { return running.operation ? running.context : NULL; }

CUresult pin_for_running(Block *block) {
    Operation *operation = running.operation;
    if (operation->pinned_count == MAX_PINS)
        return fault(CUDA_ERROR_ILLEGAL_ADDRESS, "a function checked more than %d ranges", MAX_PINS);
    pin(block);
    operation->pinned[operation->pinned_count++] = block;
    return CUDA_SUCCESS;
}

/* splitmix64 */
static uint64_t draw(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* 0 to delay_us, and once in eight times eight times that: else what should wait mostly comes last anyway,
 * and a missing wait doesn't show. Each stream's delays follow from the seed and its number. */
static uint64_t draw_delay_us(uint64_t *state) {
    if (settings.delay_us == 0) return 0;
    uint64_t delay_us = draw(state) % (settings.delay_us + 1);
    return draw(state) % 8 == 0 ? 8 * delay_us : delay_us;
}

static void sleep_us(uint64_t us) {
    struct timespec time = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    if (us) nanosleep(&time, NULL);
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static CUresult check_ranges(Context *context, Operation *operation, Block **target, Block **source) {
    CUresult result = CUDA_SUCCESS;
    *target = *source = NULL;
    if (operation->action == COPY || operation->action == FILL)
        result = check_range(context, operation->target, target);
    if (result == CUDA_SUCCESS && operation->action == COPY)
        result = check_range(context, operation->source, source);
    return result;
}

static void act(Operation *operation) {
    switch (operation->action) {
    case COPY: memmove(operation->target.at, operation->source.at, operation->target.bytes); break;
    case FILL: memset(operation->target.at, operation->value, operation->target.bytes); break;
    case CALL: operation->function(operation->data); break;
    case NOTHING: break;
    }
}

/* Its memory may have gone since it was enqueued: looked up again, and kept while it runs. */
static void run_operation(Context *context, Operation *operation) {
    CUresult injection;
    Block *target, *source;
    if (injected("run", &injection)) break_context(context, injection);
    if (context->broken != CUDA_SUCCESS) return;
    if (check_ranges(context, operation, &target, &source) != CUDA_SUCCESS) {
        break_context(context, CUDA_ERROR_ILLEGAL_ADDRESS);
        return;
    }
    pin(target);
    pin(source);
    running.context = context;
    running.operation = operation;
    unlock_state();
    act(operation);
    lock_state();
    running.operation = NULL;
    unpin(target);
    unpin(source);
    while (operation->pinned_count) unpin(operation->pinned[--operation->pinned_count]);
    counted.operations++;
}

static void finish(Operation *operation) {
    operation->done->at_ns = now_ns();
    operation->done->done = true;
    let_go(operation->done);
    for (size_t i = 0; i < operation->after_count; i++) let_go(operation->after[i]);
    free(operation->after);
    free(operation);
    announce_change();
}

static void *run_stream(void *argument) {
    Stream *stream = argument;
    lock_state();
    for (;;) {
        while (!stream->first && !stream->closed) wait_for_change();
        Operation *operation = stream->first;
        if (!operation) break;
        stream->first = operation->next;
        if (!stream->first) stream->end = &stream->first;
        for (size_t i = 0; i < operation->after_count; i++) wait_for(operation->after[i]);
        uint64_t delay_us = draw_delay_us(&stream->random);
        unlock_state();
        sleep_us(delay_us);
        lock_state();
        if (!stream->dropped) run_operation(stream->context, operation);
        finish(operation);
    }
    unlock_state();
    return NULL;
}

/* Streams */

static Stream *make_stream(Context *context, unsigned flags) {
    pthread_attr_t detached;
    pthread_t thread;
    Stream *stream = allocate(1, sizeof *stream);
    *stream = (Stream){.next = streams, .context = context, .flags = flags};
    stream->end = &stream->first;
    stream->random = settings.seed * 0x2545F4914F6CDD1Du + streams_made++;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&thread, &detached, run_stream, stream);
    pthread_attr_destroy(&detached);
    if (failed) {
        free(stream);
        return NULL;
    }
    streams = stream;
    return stream;
}

static void close_stream(Stream *stream) {
    stream->closed = true;
    if (stream != stream->context->default_stream) counted.live_streams--;
    announce_change();
}

/* 0 and 1 name the context's default stream. */
CUresult find_stream(Context *context, CUstream handle, Stream **found) {
    if ((uintptr_t)handle <= 1) {
        CUresult result = check_legacy_stream(context);
        if (result != CUDA_SUCCESS) return result;
        if (!context->default_stream) context->default_stream = make_stream(context, 0);
        *found = context->default_stream;
        return *found ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream == handle && !stream->closed) {
            if (stream->context != context)
                return fault(CUDA_ERROR_INVALID_HANDLE, "a stream of another context than the current one");
            return *found = stream, CUDA_SUCCESS;
        }
    return fault(CUDA_ERROR_INVALID_HANDLE, "%p: no stream, or one that was destroyed", (void *)handle);
}

static void drop_operations(Stream *stream) {
    stream->dropped = true;
    if (!is_done(stream->last))
        fault(CUDA_ERROR_CONTEXT_IS_DESTROYED, "a context was released with work in its streams");
    for (Operation *operation = stream->first, *next; operation; operation = next) {
        next = operation->next;
        finish(operation);
    }
    stream->first = NULL;
    stream->end = &stream->first;
}

static void close_event(Event *event) {
    event->closed = true;
    let_go(event->recorded);
    event->recorded = NULL;
    counted.live_events--;
}

void release_streams(Context *context) {
    for (Stream *stream = streams; stream; stream = stream->next) {
        if (stream->context != context || stream->dropped) continue;
        drop_capture(stream);
        drop_operations(stream);
        if (stream->closed) continue;
        if (stream != context->default_stream) counted.leaks++;
        close_stream(stream);
    }
    for (Event *event = events; event; event = event->next)
        if (event->context == context && !event->closed) {
            counted.leaks++;
            close_event(event);
        }
}

/* Enqueueing */

static void wait_in_order(Operation *operation, Marker *marker) {
    if (!is_done(marker)) operation->after[operation->after_count++] = hold(marker);
}

/* As CUDA's legacy default stream: it waits for every other stream, and they for it, unless they were made
 * to be free of it. */
static void order(Stream *stream, Operation *operation, Marker *awaited) {
    Context *context = stream->context;
    operation->after = allocate(streams_made + 1, sizeof *operation->after);
    wait_in_order(operation, awaited);
    if (stream == context->default_stream) {
        for (Stream *other = streams; other; other = other->next)
            if (other->context == context && other != stream && !(other->flags & CU_STREAM_NON_BLOCKING))
                wait_in_order(operation, other->last);
    } else if (context->default_stream && !(stream->flags & CU_STREAM_NON_BLOCKING)) {
        wait_in_order(operation, context->default_stream->last);
    }
}

void append(Stream *stream, Operation wanted, Marker *awaited) {
    Operation *operation = allocate(1, sizeof *operation);
    *operation = wanted;
    operation->done = allocate(1, sizeof(Marker));
    hold(operation->done);
    order(stream, operation, awaited);
    let_go(stream->last);
    stream->last = hold(operation->done);
    *stream->end = operation;
    stream->end = &operation->next;
    announce_change();
}

/* Into the stream, or into the graph that it records. */
static CUresult enqueue(Stream *stream, Operation wanted) {
    Block *target, *source;
    CUresult result = check_ranges(stream->context, &wanted, &target, &source);
    if (stream->capture.graph && result == CUDA_SUCCESS) return capture(stream, wanted);
    if (stream->capture.graph) stream->capture.invalidated = true;
    if (result == CUDA_SUCCESS) append(stream, wanted, NULL);
    return result;
}

static CUresult submit(const char *call, CUstream handle, Operation operation, bool wait) {
    Context *context;
    Stream *stream;
    CUresult result = enter(call, &context);
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS) result = enqueue(stream, operation);
    if (result == CUDA_SUCCESS && wait) {
        wait_for(stream->last);
        result = context->broken;
    }
    return leave(result);
}

static Range device(CUdeviceptr pointer, size_t bytes) {
    return (Range){ON_DEVICE, (char *)(uintptr_t)pointer, bytes};
}

static Range host(Where where, const void *pointer, size_t bytes) {
    return (Range){where, (char *)pointer, bytes};
}

static Operation copy(Range target, Range source) {
    Action action = target.bytes ? COPY : NOTHING;
    return (Operation){.action = action, .target = target, .source = source};
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream stream) {
    return submit(__func__, stream, copy(device(target, bytes), host(PAGE_LOCKED, source, bytes)), false);
}

CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return submit(__func__, stream, copy(host(PAGE_LOCKED, target, bytes), device(source, bytes)), false);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    return submit(__func__, stream, copy(device(target, bytes), device(source, bytes)), false);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t bytes) {
    return submit(__func__, NULL, copy(device(target, bytes), host(ANY_HOST, source, bytes)), true);
}

CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t bytes) {
    return submit(__func__, NULL, copy(host(ANY_HOST, target, bytes), device(source, bytes)), true);
}

/* On the device alone nobody waits, as CUDA says. */
CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes) {
    return submit(__func__, NULL, copy(device(target, bytes), device(source, bytes)), false);
}

static Operation fill(CUdeviceptr target, unsigned char value, size_t bytes) {
    return (Operation){.action = bytes ? FILL : NOTHING, .target = device(target, bytes), .value = value};
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
    return submit(__func__, stream, fill(target, value, bytes), false);
}

CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t bytes) {
    return submit(__func__, NULL, fill(target, value, bytes), false);
}

CUresult hostcuda_enqueue(CUstream stream, void (*fn)(void *), void *data) {
    return submit(__func__, stream, (Operation){.action = CALL, .function = fn, .data = data}, false);
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *data) {
    return submit(__func__, stream, (Operation){.action = CALL, .function = fn, .data = data}, false);
}

/* Streams' own calls */

CUresult cuStreamCreate(CUstream *handle, unsigned int flags) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && flags > CU_STREAM_NON_BLOCKING) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        *handle = make_stream(context, flags);
        if (!*handle) return leave(CUDA_ERROR_OUT_OF_MEMORY);
        counted.live_streams++;
        counted.total_streams++;
    }
    return leave(result);
}

/* Returns at once; what is queued still runs. */
CUresult cuStreamDestroy_v2(CUstream handle) {
    Context *context = NULL;
    Stream *stream;
    CUresult entered = enter(__func__, &context);
    if (!may_free(context, entered)) return leave(entered);
    CUresult result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS && stream == context->default_stream)
        result = fault(CUDA_ERROR_INVALID_HANDLE, "the default stream can't be destroyed");
    if (result == CUDA_SUCCESS) result = check_idle(__func__, stream);
    if (result == CUDA_SUCCESS) close_stream(stream);
    return finish_freeing(entered, result);
}

/* On the default stream it waits for that one's own work. */
CUresult cuStreamSynchronize(CUstream handle) {
    Context *context;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS) result = check_idle(__func__, stream);
    if (result == CUDA_SUCCESS) {
        wait_for(stream->last);
        result = context->broken;
    }
    return leave(result);
}

CUresult cuStreamQuery(CUstream handle) {
    Context *context;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS) result = check_idle(__func__, stream);
    if (result == CUDA_SUCCESS && !is_done(stream->last)) result = CUDA_ERROR_NOT_READY;
    return leave(result);
}

CUresult cuCtxSynchronize(void) {
    Context *context;
    CUresult result = enter(__func__, &context);
    for (Stream *stream = streams; stream && result == CUDA_SUCCESS; stream = stream->next)
        if (stream->context == context) result = check_idle(__func__, stream);
    if (result == CUDA_SUCCESS) {
        for (Stream *stream = streams; stream; stream = stream->next)
            if (stream->context == context) wait_for(stream->last);
        result = context->broken;
    }
    return leave(result);
}

/* Events */

static CUresult find_event(CUevent handle, Event **found) {
    for (Event *event = events; event; event = event->next)
        if (event == handle && !event->closed) return *found = event, CUDA_SUCCESS;
    return fault(CUDA_ERROR_INVALID_HANDLE, "%p: no event, or one that was destroyed", (void *)handle);
}

static CUresult find_own_event(Context *context, CUevent handle, Event **found) {
    CUresult result = find_event(handle, found);
    if (result == CUDA_SUCCESS && (*found)->context != context)
        result = fault(CUDA_ERROR_INVALID_HANDLE, "an event of another context than the current one");
    return result;
}

CUresult cuEventCreate(CUevent *handle, unsigned int flags) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && flags > 3) result = CUDA_ERROR_INVALID_VALUE; /* 4: between processes */
    if (result == CUDA_SUCCESS) {
        Event *event = allocate(1, sizeof *event);
        *event = (Event){.next = events, .context = context, .flags = flags};
        events = *handle = event;
        counted.live_events++;
        counted.total_events++;
    }
    return leave(result);
}

CUresult cuEventDestroy_v2(CUevent handle) {
    Context *context = NULL;
    Event *event;
    CUresult entered = enter(__func__, &context);
    if (!may_free(context, entered)) return leave(entered);
    CUresult result = find_own_event(context, handle, &event);
    if (result == CUDA_SUCCESS) close_event(event);
    return finish_freeing(entered, result);
}

/* Stands for what was enqueued until now; who waits for an earlier record goes on waiting for that. */
CUresult cuEventRecord(CUevent handle, CUstream on) {
    Context *context;
    Event *event;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_own_event(context, handle, &event);
    if (result == CUDA_SUCCESS) result = find_stream(context, on, &stream);
    if (result == CUDA_SUCCESS && stream->capture.graph) /* CUDA would capture it */
        result = refuse_capturing(__func__, stream, CUDA_ERROR_NOT_SUPPORTED);
    if (result == CUDA_SUCCESS) {
        append(stream, (Operation){.action = NOTHING}, NULL);
        let_go(event->recorded);
        event->recorded = hold(stream->last);
    }
    return leave(result);
}

/* The event may be of another context. */
CUresult cuStreamWaitEvent(CUstream handle, CUevent awaited, unsigned int flags) {
    Context *context;
    Event *event;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && flags) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS) result = find_event(awaited, &event);
    if (result == CUDA_SUCCESS && stream->capture.graph) /* no event here was recorded in a capture */
        result = refuse_capturing(__func__, stream, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    if (result == CUDA_SUCCESS)
        append(stream, (Operation){.action = NOTHING}, event->recorded);
    return leave(result);
}

CUresult cuEventQuery(CUevent handle) {
    Context *context;
    Event *event;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_event(handle, &event);
    if (result == CUDA_SUCCESS && !is_done(event->recorded)) result = CUDA_ERROR_NOT_READY;
    return leave(result);
}

CUresult cuEventSynchronize(CUevent handle) {
    Context *context;
    Event *event;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_event(handle, &event);
    if (result == CUDA_SUCCESS) {
        wait_for(event->recorded);
        result = context->broken;
    }
    return leave(result);
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    Context *context;
    Event *from, *to;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_own_event(context, start, &from);
    if (result == CUDA_SUCCESS) result = find_own_event(context, end, &to);
    if (result == CUDA_SUCCESS) {
        if ((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING || !from->recorded || !to->recorded)
            result = fault(CUDA_ERROR_INVALID_HANDLE, "time between events without any, or never recorded");
        else if (!is_done(from->recorded) || !is_done(to->recorded))
            result = CUDA_ERROR_NOT_READY;
        else
            *milliseconds = (float)(to->recorded->at_ns - from->recorded->at_ns) / 1e6f;
    }
    return leave(result);
}
