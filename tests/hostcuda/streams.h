/* What streams.c and graphs.c share: queues, and what stands in them. */
#pragma once
#include "hostcuda.h"

#include <pthread.h>

/* When one operation is done. Events, later operations and waiting threads each hold it. */
typedef struct {
    int holders;
    bool done;
    int64_t at_ns;
} Marker;

typedef enum { COPY, FILL, CALL, NOTHING } Action;

#define MAX_PINS 16

typedef struct Operation {
    struct Operation *next;
    Action action;
    Range target, source;
    unsigned char value;
    void (*function)(void *);
    void *data;
    Marker *done;
    Marker **after; /* beside what stands before it in its stream */
    size_t after_count;
    Block *pinned[MAX_PINS];
    int pinned_count;
} Operation;

/* What a stream records instead of running it; graph NULL: nothing. */
typedef struct {
    CUgraph graph;
    CUstreamCaptureMode mode;
    pthread_t thread; /* that began it */
    bool invalidated;
} Capture;

struct CUstream_st {
    Stream *next;
    Context *context;
    unsigned flags;
    bool closed;  /* no handle any more; what is queued still runs */
    bool dropped; /* its context went: nothing runs any more */
    Operation *first, **end;
    Marker *last; /* of what was enqueued last */
    uint64_t random;
    Capture capture;
};

/* streams.c */
extern Stream *streams;
void *allocate(size_t count, size_t bytes);
Marker *hold(Marker *marker);
void let_go(Marker *marker);
CUresult find_stream(Context *context, CUstream handle, Stream **found);
/* Unchecked, so that what is wrong with it shows when it runs. awaited: what it also waits for, or NULL. */
void append(Stream *stream, Operation wanted, Marker *awaited);

/* graphs.c */
CUresult capture(Stream *stream, Operation operation);
CUresult check_idle(const char *call, Stream *stream); /* of captures */
CUresult refuse_capturing(const char *call, Stream *stream, CUresult result);
CUresult check_legacy_stream(const Context *context);
void drop_capture(Stream *stream);
