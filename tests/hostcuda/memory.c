#define _GNU_SOURCE
#include "hostcuda.h"

#include <stdlib.h>
#include <string.h>

/* Memory is filled when it comes and when it goes, has a zone on both sides that nobody may write, and lies
 * a while in quarantine, so that what was freed is known when it is used again. */
#define NEW 0xCB
#define FREED 0xDD
#define ZONE 0xFD
#define ZONE_BYTES 256 /* also cuMemAlloc's alignment */
#define QUARANTINE_BYTES ((size_t)64 << 20)

typedef enum { DEVICE, HOST, REGISTERED } Kind;

struct Block {
    Block *next;
    Kind kind;
    Context *context;
    char *raw; /* what was allocated: zone, memory, zone; NULL for memory of others */
    char *base;
    size_t bytes;
    unsigned flags;
    int pins; /* operations that run on it */
    bool freed;
};

static Block *live;
static Block *quarantine, **quarantine_end = &quarantine;
static size_t quarantined_bytes;

static bool holds(const Block *block, const char *at) {
    return at >= block->base && at < block->base + block->bytes;
}

static Block *find(Block *block, const char *at) {
    while (block && !holds(block, at)) block = block->next;
    return block;
}

static bool filled(const char *at, unsigned char value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)at[i] != value) return false;
    return true;
}

static const char *name_of(const Block *block) {
    return block->kind == DEVICE ? "device memory" : "page-locked memory";
}

/* What may be used */

static CUresult check_bounds(const Block *block, Range range) {
    size_t offset = (size_t)(range.at - block->base);
    if (range.bytes <= block->bytes - offset) return CUDA_SUCCESS;
    return fault(CUDA_ERROR_INVALID_VALUE, "out of bounds: %zu bytes from %zu on, in %s of %zu bytes",
                 range.bytes, offset, name_of(block), block->bytes);
}

static CUresult check_device(Context *context, Range range, Block *block) {
    if (!block || block->kind != DEVICE) {
        Block *freed = find(quarantine, range.at);
        return fault(CUDA_ERROR_INVALID_VALUE, "unknown pointer %p: %s", (void *)range.at,
                     block   ? "page-locked, not on a device"
                     : freed ? "it was freed"
                             : "no device memory");
    }
    if (block->context != context)
        return fault(CUDA_ERROR_INVALID_VALUE, "%p: device memory of another context", (void *)range.at);
    return check_bounds(block, range);
}

static CUresult check_host(Range range, Block *block) {
    if (find(quarantine, range.at))
        return fault(CUDA_ERROR_INVALID_VALUE, "%p: host memory that was freed", (void *)range.at);
    if (block && block->kind == DEVICE)
        return fault(CUDA_ERROR_INVALID_VALUE, "%p: device memory where host memory should be",
                     (void *)range.at);
    if (!block && range.where == PAGE_LOCKED)
        return fault(CUDA_ERROR_INVALID_VALUE,
                     "%p: an asynchronous copy from or to memory that isn't page-locked", (void *)range.at);
    return block ? check_bounds(block, range) : CUDA_SUCCESS;
}

/* block: where it lies, NULL for ordinary host memory. */
CUresult check_range(Context *context, Range range, Block **block) {
    *block = find(live, range.at);
    return range.where == ON_DEVICE ? check_device(context, range, *block) : check_host(range, *block);
}

void pin(Block *block) {
    if (block) block->pins++;
}
void unpin(Block *block) {
    if (block && --block->pins == 0 && block->freed) memset(block->base, FREED, block->bytes);
}

/* Taken */

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static void count_taken(const Block *block) {
    counted.allocations_since_mark++;
    if (block->kind == DEVICE) {
        block->context->device_bytes += block->bytes;
        counted.live_device_bytes += block->bytes, counted.live_device_blocks++;
        counted.total_device_bytes += block->bytes, counted.total_device_blocks++;
        counted.peak_device_bytes = larger(counted.peak_device_bytes, counted.live_device_bytes);
    } else {
        counted.live_pinned_bytes += block->bytes, counted.live_pinned_blocks++;
        counted.total_pinned_bytes += block->bytes, counted.total_pinned_blocks++;
        counted.peak_pinned_bytes = larger(counted.peak_pinned_bytes, counted.live_pinned_bytes);
    }
}

static void count_given_back(const Block *block) {
    if (block->kind == DEVICE) {
        block->context->device_bytes -= block->bytes;
        counted.live_device_bytes -= block->bytes, counted.live_device_blocks--;
    } else {
        counted.live_pinned_bytes -= block->bytes, counted.live_pinned_blocks--;
    }
}

static CUresult add(Block block) {
    Block *kept = malloc(sizeof *kept);
    if (!kept) return CUDA_ERROR_OUT_OF_MEMORY;
    *kept = block;
    kept->next = live;
    live = kept;
    count_taken(kept);
    return CUDA_SUCCESS;
}

static CUresult take(Context *context, Kind kind, unsigned flags, size_t bytes, char **base) {
    char *raw;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (kind == DEVICE && bytes > settings.memory_bytes - context->device_bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes > SIZE_MAX / 2 || posix_memalign((void **)&raw, ZONE_BYTES, bytes + 2 * ZONE_BYTES))
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset(raw, ZONE, ZONE_BYTES);
    memset(raw + ZONE_BYTES, NEW, bytes);
    memset(raw + ZONE_BYTES + bytes, ZONE, ZONE_BYTES);
    *base = raw + ZONE_BYTES;
    CUresult result = add((Block){
        .kind = kind, .context = context, .raw = raw, .base = *base, .bytes = bytes, .flags = flags});
    if (result != CUDA_SUCCESS) free(raw);
    return result;
}

/* Given back */

static void unlink_block(Block *block) {
    Block **link = &live;
    while (*link != block) link = &(*link)->next;
    *link = block->next;
    block->next = NULL;
}

/* Written after it was freed? Then it no longer is as it was left. */
static void check_freed(Block *block) {
    if (block->pins == 0 && !filled(block->base, FREED, block->bytes)) {
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s of %zu bytes was written after it was freed", name_of(block),
              block->bytes);
        memset(block->base, FREED, block->bytes); /* told once */
    }
}

void check_quarantine(void) {
    for (Block *block = quarantine; block; block = block->next) check_freed(block);
}

static void shrink_quarantine(void) {
    while (quarantine && quarantined_bytes > QUARANTINE_BYTES && quarantine->pins == 0) {
        Block *oldest = quarantine;
        check_freed(oldest);
        quarantine = oldest->next;
        if (!quarantine) quarantine_end = &quarantine;
        quarantined_bytes -= oldest->bytes;
        free(oldest->raw);
        free(oldest);
    }
}

static bool zones_are_whole(const Block *block) {
    return !block->raw || (filled(block->raw, ZONE, ZONE_BYTES) &&
                           filled(block->base + block->bytes, ZONE, ZONE_BYTES));
}

/* Operations that still run on it may go on: what they write is lost when they end. */
static void give_back(Block *block) {
    unlink_block(block);
    count_given_back(block);
    if (block->pins || !zones_are_whole(block)) {
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s of %zu bytes was %s", name_of(block), block->bytes,
              block->pins ? "freed while an operation ran on it" : "written outside");
        break_context(block->context, CUDA_ERROR_ILLEGAL_ADDRESS);
    }
    if (!block->raw) block->bytes = 0; /* its owner's again: found no more, and never filled */
    block->freed = true;
    if (!block->pins) memset(block->base, FREED, block->bytes);
    quarantined_bytes += block->bytes;
    *quarantine_end = block;
    quarantine_end = &block->next;
    shrink_quarantine();
}

static CUresult give_back_at(const void *pointer, bool (*kind)(Kind), CUresult unknown) {
    Block *block = find(live, pointer);
    if (!block || block->base != pointer || !kind(block->kind))
        return fault(unknown, "freed %p, which %s", pointer,
                     find(quarantine, pointer) ? "was freed before" : "isn't the start of such memory");
    give_back(block);
    return CUDA_SUCCESS;
}

static bool is_device(Kind kind) { return kind == DEVICE; }
static bool is_host(Kind kind) { return kind == HOST; }
static bool is_registered(Kind kind) { return kind == REGISTERED; }

void release_memory(Context *context) {
    for (Block *block = live, *next; block; block = next) {
        next = block->next;
        if (block->context != context) continue;
        counted.leaks++;
        give_back(block);
    }
}

/* The driver's calls */

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    Context *context;
    char *base;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = take(context, DEVICE, 0, bytes, &base);
    if (result == CUDA_SUCCESS) *pointer = (CUdeviceptr)(uintptr_t)base;
    return leave(result);
}

static CUresult free_call(const char *call, const void *pointer, bool (*kind)(Kind), CUresult unknown) {
    Context *context = NULL;
    CUresult entered = enter(call, &context);
    if (!may_free(context, entered)) return leave(entered);
    return finish_freeing(entered, give_back_at(pointer, kind, unknown));
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return free_call(__func__, (void *)(uintptr_t)pointer, is_device, CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS)
        *total = settings.memory_bytes, *available = settings.memory_bytes - context->device_bytes;
    return leave(result);
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) {
        Block *block;
        result = check_range(context, (Range){ON_DEVICE, (char *)(uintptr_t)pointer, 1}, &block);
        if (result == CUDA_SUCCESS) {
            if (base) *base = (CUdeviceptr)(uintptr_t)block->base;
            if (bytes) *bytes = block->bytes;
        }
    }
    return leave(result);
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
    Context *context;
    char *base;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && flags > 7) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) result = take(context, HOST, flags, bytes, &base);
    if (result == CUDA_SUCCESS) *pointer = base;
    return leave(result);
}

CUresult cuMemAllocHost_v2(void **pointer, size_t bytes) {
    Context *context;
    char *base;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) result = take(context, HOST, 0, bytes, &base);
    if (result == CUDA_SUCCESS) *pointer = base;
    return leave(result);
}

CUresult cuMemFreeHost(void *pointer) {
    return free_call(__func__, pointer, is_host, CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned int flags) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS && (!pointer || bytes == 0)) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        char *base = pointer;
        for (Block *block = live; block; block = block->next)
            if (base < block->base + block->bytes && block->base < base + bytes)
                result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
        if (result == CUDA_SUCCESS)
            result = add((Block){
                .kind = REGISTERED, .context = context, .base = base, .bytes = bytes, .flags = flags});
    }
    return leave(result);
}

CUresult cuMemHostUnregister(void *pointer) {
    return free_call(__func__, pointer, is_registered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

CUresult cuMemHostGetFlags(unsigned int *flags, void *pointer) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) {
        Block *block = find(live, pointer);
        if (!block || block->kind == DEVICE)
            result = fault(CUDA_ERROR_INVALID_VALUE, "%p: no page-locked memory", pointer);
        else
            *flags = block->flags;
    }
    return leave(result);
}
