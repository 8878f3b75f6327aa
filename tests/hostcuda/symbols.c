#define _GNU_SOURCE
#include "hostcuda.h"

#include <dlfcn.h>
#include <stdio.h>

/* Some callers, cuda-bindings for one, bind by name and CUDA version instead of linking: "cuMemAlloc", 3020 is
 * cuMemAlloc_v2. Here the latest is given, whatever the version: the older ones aren't here. */
CUresult cuGetProcAddress_v2(const char *name, void **function, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *status) {
    static const char *const suffixes[] = {"_v4", "_v3", "_v2", ""};
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    (void)version, (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && self && !*function; i++) {
        char symbol[128];
        snprintf(symbol, sizeof symbol, "%s%s", name, suffixes[i]);
        *function = dlsym(self, symbol);
    }
    if (self) dlclose(self);
    if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return CUDA_SUCCESS;
}
