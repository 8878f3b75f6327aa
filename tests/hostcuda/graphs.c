#define _GNU_SOURCE
#include "streams.h"

#include <stdlib.h>
#include <string.h>

/* A graph is what one stream was given while it captured, in that order. CUDA's may branch; here, an event
 * that is recorded or awaited meanwhile is refused. Closed ones stay, as streams do. */

struct CUgraph_st {
    CUgraph next;
    Context *context;
    Operation *operations;
    size_t count;
    bool closed;
};

struct CUgraphExec_st {
    CUgraphExec next;
    Context *context;
    Operation *operations; /* its own: the graph may go before */
    size_t count;
    Marker *last; /* of the latest launch: the next one waits for it, on whatever stream */
    bool closed;
};

static CUgraph graphs;
static CUgraphExec executables;

static void count_new(void) {
    counted.live_graphs++;
    counted.total_graphs++;
}

/* Capturing */

CUresult capture(Stream *stream, Operation operation) {
    CUgraph graph = stream->capture.graph;
    if (stream->capture.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    Operation *longer = allocate(graph->count + 1, sizeof operation);
    if (graph->count) memcpy(longer, graph->operations, graph->count * sizeof operation);
    longer[graph->count++] = operation;
    free(graph->operations);
    graph->operations = longer;
    return CUDA_SUCCESS;
}

/* Whatever goes wrong while a stream captures makes the capture worthless. */
CUresult refuse_capturing(const char *call, Stream *stream, CUresult result) {
    if (stream->capture.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->capture.invalidated = true;
    return fault(result, "%s: a stream that captures", call);
}

CUresult check_idle(const char *call, Stream *stream) {
    if (!stream->capture.graph) return CUDA_SUCCESS;
    return refuse_capturing(call, stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}

/* The default stream waits for the others, hence for one that only records. */
CUresult check_legacy_stream(const Context *context) {
    CUresult result = CUDA_SUCCESS;
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream->context == context && stream->capture.graph && !(stream->flags & CU_STREAM_NON_BLOCKING))
            result = refuse_capturing("the default stream", stream, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    return result;
}

/* What isn't enqueued, or waits, would not be in the graph. It is refused to the thread that captures, and
 * to all while one captures in the global mode. */
CUresult check_unsafe(const char *call) {
    static const char *const unsafe[] = {
        "cuMemAlloc_v2",   "cuMemFree_v2",         "cuMemHostAlloc",      "cuMemAllocHost_v2",
        "cuMemFreeHost",   "cuMemHostRegister_v2", "cuMemHostUnregister", "cuMemcpyHtoD_v2",
        "cuMemcpyDtoH_v2", "cuMemcpyDtoD_v2",      "cuMemsetD8_v2",       "cuEventQuery",
        "cuEventSynchronize",
    };
    CUresult result = CUDA_SUCCESS;
    bool is_unsafe = false;
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        if (strcmp(call, unsafe[i]) == 0) is_unsafe = true;
    for (Stream *stream = streams; stream && is_unsafe; stream = stream->next) {
        const Capture *capture = &stream->capture;
        bool own = pthread_equal(capture->thread, pthread_self());
        if (capture->graph && (capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL ||
                               (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && own)))
            result = refuse_capturing(call, stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    return result;
}

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    Context *context;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && (unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS && stream == context->default_stream)
        result = fault(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the default stream can't capture");
    if (result == CUDA_SUCCESS && stream->capture.graph)
        result = fault(CUDA_ERROR_ILLEGAL_STATE, "%s: the stream captures already", __func__);
    if (result == CUDA_SUCCESS) {
        CUgraph graph = allocate(1, sizeof *graph);
        *graph = (struct CUgraph_st){.next = graphs, .context = context};
        graphs = graph;
        stream->capture = (Capture){.graph = graph, .mode = mode, .thread = pthread_self()};
        count_new();
    }
    return leave(result);
}

static void close_graph(CUgraph graph) {
    graph->closed = true;
    free(graph->operations);
    graph->operations = NULL;
    counted.live_graphs--;
}

/* The graph itself stays: it counts as left behind. */
void drop_capture(Stream *stream) { stream->capture.graph = NULL; }

/* Ends it also where it fails, and then gives no graph. */
static CUresult end_capture(Stream *stream, CUresult result, CUgraph *graph) {
    *graph = stream->capture.graph;
    if (result == CUDA_SUCCESS && stream->capture.invalidated) result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->capture.graph = NULL;
    if (result != CUDA_SUCCESS) {
        close_graph(*graph);
        *graph = NULL;
    }
    return result;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    Context *context = NULL;
    Stream *stream;
    CUresult entered = enter(__func__, &context);
    *graph = NULL;
    if (!may_free(context, entered) && entered != CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) return leave(entered);
    CUresult result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS && !stream->capture.graph)
        result = fault(CUDA_ERROR_ILLEGAL_STATE, "%s: the stream doesn't capture", __func__);
    if (result == CUDA_SUCCESS && stream->capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
        !pthread_equal(stream->capture.thread, pthread_self()))
        result = fault(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "%s: another thread began it", __func__);
    if (result == CUDA_SUCCESS) result = end_capture(stream, entered, graph);
    return leave(result);
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    Context *context;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_stream(context, handle, &stream);
    if (result == CUDA_SUCCESS)
        *status = !stream->capture.graph       ? CU_STREAM_CAPTURE_STATUS_NONE
                  : stream->capture.invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return leave(result);
}

/* Graphs */

static CUresult find_graph(CUgraph handle, CUgraph *found) {
    for (CUgraph graph = graphs; graph; graph = graph->next)
        if (graph == handle && !graph->closed) return *found = graph, CUDA_SUCCESS;
    return fault(CUDA_ERROR_INVALID_VALUE, "%p: no graph, or one that was destroyed", (void *)handle);
}

static CUresult find_executable(CUgraphExec handle, CUgraphExec *found) {
    for (CUgraphExec executable = executables; executable; executable = executable->next)
        if (executable == handle && !executable->closed) return *found = executable, CUDA_SUCCESS;
    return fault(CUDA_ERROR_INVALID_VALUE, "%p: no executable graph, or one that was destroyed",
                 (void *)handle);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *handle, CUgraph of, unsigned long long flags) {
    Context *context;
    CUgraph graph;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && flags) result = CUDA_ERROR_NOT_SUPPORTED;
    if (result == CUDA_SUCCESS) result = find_graph(of, &graph);
    if (result == CUDA_SUCCESS) {
        CUgraphExec executable = allocate(1, sizeof *executable);
        *executable = (struct CUgraphExec_st){
            .next = executables, .context = graph->context, .count = graph->count};
        executable->operations = allocate(graph->count + 1, sizeof(Operation));
        if (graph->count) memcpy(executable->operations, graph->operations, graph->count * sizeof(Operation));
        executables = *handle = executable;
        count_new();
    }
    return leave(result);
}

/* Memory that has gone since the capture shows when it runs. */
CUresult cuGraphLaunch(CUgraphExec handle, CUstream on) {
    Context *context;
    CUgraphExec executable;
    Stream *stream;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = find_executable(handle, &executable);
    if (result == CUDA_SUCCESS) result = find_stream(context, on, &stream);
    if (result == CUDA_SUCCESS && executable->context != context)
        result = fault(CUDA_ERROR_INVALID_CONTEXT, "%s: a graph of another context", __func__);
    if (result == CUDA_SUCCESS && stream->capture.graph) /* CUDA would make it a part of the other */
        result = refuse_capturing(__func__, stream, CUDA_ERROR_NOT_SUPPORTED);
    if (result == CUDA_SUCCESS) {
        for (size_t i = 0; i < executable->count; i++)
            append(stream, executable->operations[i], i == 0 ? executable->last : NULL);
        let_go(executable->last);
        executable->last = hold(stream->last);
        counted.graph_launches++;
    }
    return leave(result);
}

static void close_executable(CUgraphExec executable) {
    executable->closed = true;
    free(executable->operations);
    executable->operations = NULL;
    let_go(executable->last);
    executable->last = NULL;
    counted.live_graphs--;
}

/* Launches that still run go on. */
CUresult cuGraphExecDestroy(CUgraphExec handle) {
    Context *context = NULL;
    CUgraphExec executable;
    CUresult entered = enter(__func__, &context);
    if (!may_free(context, entered)) return leave(entered);
    CUresult result = find_executable(handle, &executable);
    if (result == CUDA_SUCCESS) close_executable(executable);
    return finish_freeing(entered, result);
}

CUresult cuGraphDestroy(CUgraph handle) {
    Context *context = NULL;
    CUgraph graph;
    CUresult entered = enter(__func__, &context);
    if (!may_free(context, entered)) return leave(entered);
    CUresult result = find_graph(handle, &graph);
    if (result == CUDA_SUCCESS) close_graph(graph);
    return finish_freeing(entered, result);
}

void release_graphs(Context *context) {
    for (CUgraph graph = graphs; graph; graph = graph->next)
        if (graph->context == context && !graph->closed) counted.leaks++, close_graph(graph);
    for (CUgraphExec executable = executables; executable; executable = executable->next)
        if (executable->context == context && !executable->closed)
            counted.leaks++, close_executable(executable);
}
