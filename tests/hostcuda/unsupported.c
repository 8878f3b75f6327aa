/* What a CUDA extension names beside what hostcuda does: pycuda's, and some that others ask for.
 *
 * Whatever the arguments, each says "not supported"; without a header, so that no prototype stands in the
 * way. A default stream for each thread (`_ptsz`) isn't there either.
 */
enum { NOT_SUPPORTED = 801 };

#define UNSUPPORTED(NAME) \
    NAME(cuArray3DCreate_v2) NAME(cuArray3DGetDescriptor_v2) NAME(cuArrayCreate_v2) NAME(cuArrayDestroy) \
    NAME(cuArrayGetDescriptor_v2) NAME(cuCtxAttach) NAME(cuCtxCreate_v2) NAME(cuCtxCreate_v4)            \
    NAME(cuCtxDestroy_v2) NAME(cuCtxDetach) NAME(cuCtxDisablePeerAccess) NAME(cuCtxEnablePeerAccess)     \
    NAME(cuCtxGetApiVersion) NAME(cuCtxGetCacheConfig) NAME(cuCtxGetLimit) NAME(cuCtxGetSharedMemConfig) \
    NAME(cuCtxSetCacheConfig) NAME(cuCtxSetLimit) NAME(cuCtxSetSharedMemConfig)                          \
    NAME(cuDeviceCanAccessPeer) NAME(cuDeviceGetUuid_v2) NAME(cuEventRecord_ptsz)                        \
    NAME(cuFuncGetAttribute) NAME(cuFuncSetAttribute) NAME(cuFuncSetBlockShape)                          \
    NAME(cuFuncSetCacheConfig) NAME(cuFuncSetSharedSize) NAME(cuIpcCloseMemHandle)                       \
    NAME(cuIpcGetEventHandle) NAME(cuIpcGetMemHandle) NAME(cuIpcOpenEventHandle)                         \
    NAME(cuIpcOpenMemHandle_v2) NAME(cuLaunch) NAME(cuLaunchGrid) NAME(cuLaunchGridAsync)                \
    NAME(cuLaunchKernel) NAME(cuLaunchKernelEx) NAME(cuLinkAddData_v2) NAME(cuLinkAddFile_v2)            \
    NAME(cuLinkComplete) NAME(cuLinkCreate_v2) NAME(cuLinkDestroy) NAME(cuMemAllocAsync)                 \
    NAME(cuMemAllocManaged) NAME(cuMemAllocPitch_v2) NAME(cuMemFreeAsync)                                \
    NAME(cuMemHostGetDevicePointer_v2) NAME(cuMemcpy) NAME(cuMemcpy2DAsync_v2)                           \
    NAME(cuMemcpy2DUnaligned_v2) NAME(cuMemcpy2D_v2) NAME(cuMemcpy3DAsync_v2) NAME(cuMemcpy3DPeer)       \
    NAME(cuMemcpy3DPeerAsync) NAME(cuMemcpy3D_v2) NAME(cuMemcpyAsync) NAME(cuMemcpyAtoA_v2)              \
    NAME(cuMemcpyAtoD_v2) NAME(cuMemcpyAtoH_v2) NAME(cuMemcpyDtoA_v2) NAME(cuMemcpyDtoHAsync_v2_ptsz)    \
    NAME(cuMemcpyHtoA_v2) NAME(cuMemcpyHtoDAsync_v2_ptsz) NAME(cuMemcpyPeer) NAME(cuMemcpyPeerAsync)     \
    NAME(cuMemsetD16Async) NAME(cuMemsetD16_v2) NAME(cuMemsetD2D16Async) NAME(cuMemsetD2D16_v2)          \
    NAME(cuMemsetD2D32Async) NAME(cuMemsetD2D32_v2) NAME(cuMemsetD2D8Async) NAME(cuMemsetD2D8_v2)        \
    NAME(cuMemsetD32Async) NAME(cuMemsetD32_v2) NAME(cuModuleGetFunction) NAME(cuModuleGetGlobal_v2)     \
    NAME(cuModuleGetSurfRef) NAME(cuModuleGetTexRef) NAME(cuModuleLoad) NAME(cuModuleLoadData)           \
    NAME(cuModuleLoadDataEx) NAME(cuModuleUnload) NAME(cuParamSetSize) NAME(cuParamSetTexRef)            \
    NAME(cuParamSetf) NAME(cuParamSeti) NAME(cuParamSetv) NAME(cuPointerGetAttribute)                    \
    NAME(cuProfilerInitialize) NAME(cuProfilerStart) NAME(cuProfilerStop) NAME(cuStreamAttachMemAsync)   \
    NAME(cuStreamCreateWithPriority) NAME(cuStreamSynchronize_ptsz) NAME(cuSurfRefGetArray)              \
    NAME(cuSurfRefSetArray) NAME(cuTexRefCreate) NAME(cuTexRefDestroy) NAME(cuTexRefGetAddressMode)      \
    NAME(cuTexRefGetAddress_v2) NAME(cuTexRefGetArray) NAME(cuTexRefGetFilterMode)                       \
    NAME(cuTexRefGetFlags) NAME(cuTexRefGetFormat) NAME(cuTexRefSetAddress2D_v3)                         \
    NAME(cuTexRefSetAddressMode) NAME(cuTexRefSetAddress_v2) NAME(cuTexRefSetArray)                      \
    NAME(cuTexRefSetFilterMode) NAME(cuTexRefSetFlags) NAME(cuTexRefSetFormat)

#define REFUSE(name) \
    int name(void); \
    int name(void) { return NOT_SUPPORTED; }
UNSUPPORTED(REFUSE)
