#define _GNU_SOURCE
#include "hostcuda.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Settings settings;
struct hostcuda_stats counted;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Context contexts[MAX_DEVICES]; /* each device's primary one; others can't be made */
static bool initialised;
static char last_fault[512];

#define MAX_CURRENT 64
static _Thread_local Context *current[MAX_CURRENT];
static _Thread_local int depth;

#define MAX_INJECTIONS 16
static struct Injection {
    char call[64];
    long countdown;
} injections[MAX_INJECTIONS];

void lock_state(void) { pthread_mutex_lock(&lock); }
void unlock_state(void) { pthread_mutex_unlock(&lock); }
void wait_for_change(void) { pthread_cond_wait(&changed, &lock); }
void announce_change(void) { pthread_cond_broadcast(&changed); }

/* Faults */

CUresult fault(CUresult result, const char *text, ...) {
    va_list values;
    va_start(values, text);
    vsnprintf(last_fault, sizeof last_fault, text, values);
    va_end(values);
    counted.faults++;
    return result;
}

/* As on a GPU: what failed while it ran is told by every later call, and nothing more runs. */
void break_context(Context *context, CUresult result) {
    if (context->broken == CUDA_SUCCESS) context->broken = result;
}

/* What a call returns on a GPU that is well used: out of memory where something is taken, else the failure of
 * earlier work. */
static CUresult natural_error(const char *call) {
    static const char *const takes[] = {
        "cuMemAlloc_v2",  "cuMemHostAlloc", "cuMemAllocHost_v2",        "cuMemHostRegister_v2",
        "cuStreamCreate", "cuEventCreate",  "cuDevicePrimaryCtxRetain", "cuGraphInstantiateWithFlags",
    };
    for (size_t i = 0; i < sizeof takes / sizeof *takes; i++)
        if (strcmp(call, takes[i]) == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    if (strcmp(call, "run") == 0) return CUDA_ERROR_ILLEGAL_ADDRESS;
    if (strcmp(call, "cuStreamBeginCapture_v2") == 0) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (strcmp(call, "cuStreamEndCapture") == 0) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    bool in_context = strncmp(call, "cuInit", 6) != 0 && strncmp(call, "cuDevice", 8) != 0;
    return in_context ? CUDA_ERROR_LAUNCH_FAILED : CUDA_ERROR_UNKNOWN;
}

/* The others are told once, and all goes on. */
static bool breaks(CUresult result) {
    return result == CUDA_ERROR_LAUNCH_FAILED || result == CUDA_ERROR_ILLEGAL_ADDRESS;
}

/* Is this the call that HOSTCUDA_FAIL names? */
bool injected(const char *call, CUresult *result) {
    bool fails = false;
    for (int i = 0; i < MAX_INJECTIONS; i++)
        if (strcmp(injections[i].call, call) == 0 && --injections[i].countdown == 0) fails = true;
    if (fails) *result = natural_error(call);
    return fails;
}

/* Settings, once, from the environment */

static long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtol(value, NULL, 10) : otherwise;
}

/* "0,2": ordinals 0 and 1 are devices 0 and 2; as CUDA's, it ends before the first that isn't there. */
static int visible_devices(int present, int visible[MAX_DEVICES]) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int count = 0;
    if (!list) {
        for (; count < present; count++) visible[count] = count;
        return count;
    }
    while (*list && count < MAX_DEVICES) {
        char *end;
        long device = strtol(list, &end, 10);
        if (end == list || device < 0 || device >= present) break;
        visible[count++] = (int)device;
        list = *end == ',' ? end + 1 : end;
    }
    return count;
}

/* "cuMemAlloc_v2:3,run:7": the third allocation, and the seventh operation while it runs. */
static void read_injections(const char *list) {
    for (int i = 0; list && *list && i < MAX_INJECTIONS; i++) {
        int used = 0;
        if (sscanf(list, "%63[^:,]:%ld%n", injections[i].call, &injections[i].countdown, &used) != 2) {
            fprintf(stderr, "hostcuda: HOSTCUDA_FAIL is \"name:nth,name:nth\", not \"%s\"\n", list);
            abort();
        }
        list += used;
        if (*list == ',') list++;
    }
}

static void read_settings(void) {
    long present = number("HOSTCUDA_DEVICES", 1);
    const char *capability = getenv("HOSTCUDA_CAPABILITY");
    settings.devices = visible_devices(present > MAX_DEVICES ? MAX_DEVICES : (int)present, settings.visible);
    settings.memory_bytes = (size_t)number("HOSTCUDA_MEMORY_MB", 1024) << 20;
    settings.version = (int)number("HOSTCUDA_VERSION", 13000);
    settings.seed = (uint64_t)number("HOSTCUDA_SEED", 0);
    settings.delay_us = (uint64_t)number("HOSTCUDA_DELAY_US", 200);
    if (!capability || sscanf(capability, "%d.%d", &settings.capability[0], &settings.capability[1]) != 2)
        settings.capability[0] = 8, settings.capability[1] = 9;
    read_injections(getenv("HOSTCUDA_FAIL"));
}

/* Every call starts with `enter` and ends with `leave` */

CUresult enter(const char *call, Context **context) {
    CUresult result;
    lock_state();
    if (!initialised) return fault(CUDA_ERROR_NOT_INITIALIZED, "%s before cuInit", call);
    if (context) {
        *context = depth ? current[depth - 1] : NULL;
        if (!*context)
            return fault(CUDA_ERROR_INVALID_CONTEXT, "%s: this thread has no current context", call);
        if (!(*context)->active)
            return fault(CUDA_ERROR_CONTEXT_IS_DESTROYED, "%s: the current context was released", call);
    }
    if (injected(call, &result)) {
        if (context && breaks(result)) break_context(*context, result);
        return result;
    }
    if (context && (*context)->broken != CUDA_SUCCESS) return (*context)->broken;
    return check_unsafe(call);
}

CUresult leave(CUresult result) {
    unlock_state();
    return result;
}

/* What frees does so in a broken context too, and then tells its error: `finish_freeing` after it. */
bool may_free(const Context *context, CUresult entered) {
    return context && context->active && (entered == CUDA_SUCCESS || entered == context->broken);
}

CUresult finish_freeing(CUresult entered, CUresult freed) {
    return leave(entered != CUDA_SUCCESS ? entered : freed);
}

CUresult cuInit(unsigned int flags) {
    CUresult result = CUDA_SUCCESS;
    lock_state();
    if (!initialised) read_settings();
    if (flags)
        result = CUDA_ERROR_INVALID_VALUE;
    else if (settings.devices == 0)
        result = CUDA_ERROR_NO_DEVICE;
    else if (!injected(__func__, &result))
        initialised = true;
    return leave(result);
}

CUresult cuDriverGetVersion(int *version) {
    *version = (int)number("HOSTCUDA_VERSION", 13000);
    return CUDA_SUCCESS;
}

static const struct {
    CUresult result;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE",
     "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

CUresult cuGetErrorString(CUresult error, const char **text) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].result == error) return *text = errors[i].text, CUDA_SUCCESS;
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].result == error) return *name = errors[i].name, CUDA_SUCCESS;
    *name = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

/* Devices. A CUdevice is the ordinal among those visible; names and addresses are those of the device. */

static CUresult enter_device(const char *call, CUdevice device) {
    CUresult result = enter(call, NULL);
    bool known = device >= 0 && device < settings.devices;
    return result == CUDA_SUCCESS && !known ? CUDA_ERROR_INVALID_DEVICE : result;
}

CUresult cuDeviceGetCount(int *count) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) *count = settings.devices;
    return leave(result);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CUresult result = enter_device(__func__, ordinal);
    if (result == CUDA_SUCCESS) *device = ordinal;
    return leave(result);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) snprintf(name, (size_t)length, "Host memory %d", settings.visible[device]);
    return leave(result);
}

CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) snprintf(id, (size_t)length, "0000:%02X:00.0", settings.visible[device] + 1);
    return leave(result);
}

CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) {
        unsigned domain = 0, bus = 0, slot = 0;
        result = CUDA_ERROR_INVALID_DEVICE;
        if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3 && sscanf(id, "%x:%x.", &bus, &slot) != 2)
            result = CUDA_ERROR_INVALID_VALUE;
        for (int i = 0; i < settings.devices && result == CUDA_ERROR_INVALID_DEVICE; i++)
            if ((unsigned)settings.visible[i] + 1 == bus) *device = i, result = CUDA_SUCCESS;
    }
    return leave(result);
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) *major = settings.capability[0], *minor = settings.capability[1];
    return leave(result);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) *bytes = settings.memory_bytes;
    return leave(result);
}

/* What isn't here is 0: a feature that this device hasn't. */
static int attribute_value(int attribute, CUdevice device) {
    switch (attribute) {
    case 1: return 1024;                          /* threads in a block */
    case 10: return 32;                           /* threads in a warp */
    case 15: return 1;                            /* copies and kernels overlap */
    case 16: return 1;                            /* multiprocessors */
    case 31: return 1;                            /* concurrent kernels */
    case 33: return settings.visible[device] + 1; /* PCI bus */
    case 40: return 2;                            /* copy engines */
    case 41: return 1;                            /* unified addressing */
    case 75: return settings.capability[0];
    case 76: return settings.capability[1];
    default: return 0;
    }
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    bool known = (int)attribute >= 1 && (int)attribute <= 147; /* CUDA 13.0's last */
    if (result == CUDA_SUCCESS && !known) result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) *value = attribute_value((int)attribute, device);
    return leave(result);
}

/* Contexts */

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) {
        Context *primary = &contexts[device];
        if (primary->references++ == 0) {
            *primary = (Context){.active = true, .device = device, .references = 1};
            counted.live_contexts++;
        }
        *context = primary;
    }
    return leave(result);
}

/* The last release ends the context, with all that is still in it: that was leaked. */
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) {
        Context *primary = &contexts[device];
        if (primary->references == 0)
            result = fault(CUDA_ERROR_INVALID_CONTEXT, "released more often than retained");
        else if (--primary->references == 0) {
            release_streams(primary);
            release_graphs(primary);
            release_memory(primary);
            primary->active = false;
            counted.live_contexts--;
        }
    }
    return leave(result);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    CUresult result = enter_device(__func__, device);
    if (result == CUDA_SUCCESS) *flags = 0, *active = contexts[device].active;
    return leave(result);
}

static bool is_context(CUcontext context) { return context >= contexts && context < contexts + MAX_DEVICES; }

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) {
        if (!is_context(context) || !context->active || depth == MAX_CURRENT)
            result = fault(CUDA_ERROR_INVALID_CONTEXT, "%s: no context, or too many", __func__);
        else
            current[depth++] = context;
    }
    return leave(result);
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) {
        if (depth == 0) {
            result = fault(CUDA_ERROR_INVALID_CONTEXT, "%s: this thread has no current context", __func__);
        } else {
            depth--;
            if (context) *context = current[depth];
        }
    }
    return leave(result);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) *context = depth ? current[depth - 1] : NULL;
    return leave(result);
}

/* Replaces the top of the stack; NULL takes it away. */
CUresult cuCtxSetCurrent(CUcontext context) {
    CUresult result = enter(__func__, NULL);
    if (result == CUDA_SUCCESS) {
        if (context && (!is_context(context) || !context->active)) {
            result = fault(CUDA_ERROR_INVALID_CONTEXT, "%s: no context", __func__);
        } else {
            if (depth) depth--;
            if (context) current[depth++] = context;
        }
    }
    return leave(result);
}

CUresult cuCtxGetDevice(CUdevice *device) {
    Context *context;
    CUresult result = enter(__func__, &context);
    if (result == CUDA_SUCCESS) *device = context->device;
    return leave(result);
}

/* For tests */

void hostcuda_stats(struct hostcuda_stats *stats) {
    lock_state();
    check_quarantine();
    *stats = counted;
    unlock_state();
}

void hostcuda_mark(void) {
    lock_state();
    counted.allocations_since_mark = 0;
    unlock_state();
}

void hostcuda_last_fault(char *text, size_t bytes) {
    lock_state();
    snprintf(text, bytes, "%s", last_fault);
    unlock_state();
}

int hostcuda_current_depth(void) { return depth; }

CUresult hostcuda_check_range(CUdeviceptr pointer, size_t bytes) {
    Context *context;
    Block *block;
    CUresult result;
    lock_state();
    context = running_context();
    bool running = context != NULL;
    if (!running) {
        context = depth ? current[depth - 1] : NULL;
        if (!context) return leave(fault(CUDA_ERROR_INVALID_CONTEXT, "%s: no current context", __func__));
    }
    result = check_range(context, (Range){ON_DEVICE, (char *)(uintptr_t)pointer, bytes}, &block);
    if (running && result == CUDA_SUCCESS) result = pin_for_running(block);
    if (running && result != CUDA_SUCCESS) break_context(context, CUDA_ERROR_ILLEGAL_ADDRESS);
    return leave(result);
}

void hostcuda_fail(const char *reason) {
    lock_state();
    Context *context = running_context();
    fault(CUDA_ERROR_LAUNCH_FAILED, "%s", reason);
    if (context) break_context(context, CUDA_ERROR_LAUNCH_FAILED);
    unlock_state();
}

/* At the end of the process, for tests that start a program and cannot ask it: name and number in each line,
 * then the last fault. */
__attribute__((destructor)) static void write_report(void) {
    const char *path = getenv("HOSTCUDA_REPORT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    lock_state();
    check_quarantine();
#define HOSTCUDA_FIELD(name) fprintf(file, #name " %llu\n", (unsigned long long)counted.name);
    HOSTCUDA_STATS(HOSTCUDA_FIELD)
#undef HOSTCUDA_FIELD
    fprintf(file, "last_fault %s\n", last_fault);
    fclose(file);
    unlock_state();
}
