/* A CUDA driver in host memory, for tests: device memory is host memory, a stream is a thread.
 *
 * hostcuda.c   configuration, faults, devices, contexts, statistics
 * memory.c     device and page-locked memory, and what may be read and written
 * streams.c    queues, events, copies
 * graphs.c     what a stream records, and replays
 * symbols.c    names, for who asks by name
 * unsupported.c  the rest of the driver's names
 *
 * Everything below is guarded by one lock, which `enter` takes and `leave` gives back. Operations run
 * without it; what they touch is pinned meanwhile.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CUDA's side: its names, numbers and types are its public binary interface. With HOSTCUDA_WITH_CUDA_H its
 * own header declares them, and the compiler compares every signature. */
#ifdef HOSTCUDA_WITH_CUDA_H
#include <cuda.h>
#else
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef int CUdevice_attribute;
typedef unsigned long long cuuint64_t;
typedef void (*CUhostFn)(void *);
typedef enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_UNKNOWN = 999,
} CUresult;
enum { CU_STREAM_NON_BLOCKING = 1, CU_EVENT_DISABLE_TIMING = 2 };
typedef enum {
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_STREAM_CAPTURE_MODE_RELAXED = 2,
} CUstreamCaptureMode;
typedef enum {
    CU_STREAM_CAPTURE_STATUS_NONE = 0,
    CU_STREAM_CAPTURE_STATUS_ACTIVE = 1,
    CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2,
} CUstreamCaptureStatus;
typedef enum {
    CU_GET_PROC_ADDRESS_SUCCESS = 0,
    CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND = 1,
} CUdriverProcAddressQueryResult;
#endif

typedef struct CUctx_st Context;
typedef struct CUstream_st Stream;
typedef struct CUevent_st Event;

struct CUctx_st {
    bool active;
    int device;
    int references;
    CUresult broken;        /* what every later call returns, once an operation has failed */
    Stream *default_stream; /* made when first used */
    size_t device_bytes;
};

#define MAX_DEVICES 8

/* What tests read. The order is that of `Stats` in __init__.py. */
#define HOSTCUDA_STATS(field)                                                                            \
    field(live_device_bytes) field(live_device_blocks) field(live_pinned_bytes) field(live_pinned_blocks) \
    field(live_streams) field(live_events) field(live_contexts) field(total_device_bytes)                 \
    field(total_device_blocks) field(total_pinned_bytes) field(total_pinned_blocks) field(total_streams)  \
    field(total_events) field(peak_device_bytes) field(peak_pinned_bytes) field(leaks) field(faults)      \
    field(operations) field(allocations_since_mark) field(live_graphs) field(total_graphs)                \
    field(graph_launches)
struct hostcuda_stats {
#define HOSTCUDA_FIELD(name) uint64_t name;
    HOSTCUDA_STATS(HOSTCUDA_FIELD)
#undef HOSTCUDA_FIELD
};

void hostcuda_stats(struct hostcuda_stats *stats);
void hostcuda_mark(void); /* allocations are counted from here */
/* Why the last call or operation was refused; the text stays until the next fault. */
void hostcuda_last_fault(char *text, size_t bytes);
/* Contexts on the calling thread's stack. */
int hostcuda_current_depth(void);
/* Runs fn(data) in the stream's order on the stream's thread. There, no CUDA call may be made. */
CUresult hostcuda_enqueue(CUstream stream, void (*fn)(void *), void *data);
/* Is this device memory of the current context? Inside a function that was enqueued: of its stream's context;
 * what is checked must then stay until the function has ended, and a bad range breaks the context. */
CUresult hostcuda_check_range(CUdeviceptr pointer, size_t bytes);
/* To be called inside a function that was enqueued: it failed, as a kernel fails, and breaks the context. */
void hostcuda_fail(const char *reason);

/* hostcuda.c */
struct Settings {
    int devices;
    int visible[MAX_DEVICES]; /* the device behind each ordinal */
    size_t memory_bytes;
    int version;
    int capability[2];
    uint64_t seed;
    uint64_t delay_us;
};
extern struct Settings settings;
extern struct hostcuda_stats counted;

CUresult enter(const char *call, Context **context); /* context NULL: the call needs none */
CUresult leave(CUresult result);
bool may_free(const Context *context, CUresult entered);
CUresult finish_freeing(CUresult entered, CUresult freed); /* leaves */
void wait_for_change(void);
void announce_change(void);
void lock_state(void);
void unlock_state(void);
bool injected(const char *call, CUresult *result);
__attribute__((format(printf, 2, 3))) CUresult fault(CUresult result, const char *text, ...);
void break_context(Context *context, CUresult result);

/* memory.c */
typedef struct Block Block;
typedef enum { ON_DEVICE, PAGE_LOCKED, ANY_HOST } Where;
typedef struct {
    Where where;
    char *at;
    size_t bytes;
} Range;

CUresult check_range(Context *context, Range range, Block **block);
void pin(Block *block);
void unpin(Block *block);
void release_memory(Context *context);
void check_quarantine(void);

/* graphs.c */
CUresult check_unsafe(const char *call);
void release_graphs(Context *context);

/* streams.c */
void release_streams(Context *context);
Context *running_context(void);
CUresult pin_for_running(Block *block);
