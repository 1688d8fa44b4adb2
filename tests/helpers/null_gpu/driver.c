/* The driver of the null GPU, libcuda.so.1: what torch's NVRTC stub and Triton's launcher ask for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

OK(cuInit)
OK(cuLogsRegisterCallback)
OK(cuLogsUnregisterCallback)
OK(cuCtxSetCurrent)
OK(cuCtxPushCurrent_v2)
OK(cuCtxSetLimit)
OK(cuFuncSetAttribute)
OK(cuFuncSetCacheConfig)
OK(cuModuleUnload)
OK(cuLinkAddData_v2)
OK(cuLinkComplete)
OK(cuTensorMapEncodeTiled)
OK(cuMemFree_v2)
OK(cuDevicePrimaryCtxRelease_v2)
int cuCtxSynchronize() { null_gpu_waits("cuCtxSynchronize"); return 0; }
int cuStreamSynchronize() { null_gpu_waits("cuStreamSynchronize"); return 0; }
int cuDriverGetVersion(int *v) { *v = NULL_GPU_CUDA; return 0; }
int cuDeviceGetCount(int *n) { const char *given = getenv("NULL_GPU_COUNT"); *n = given ? atoi(given) : 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA H100 (null)", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = null_gpu_attribute(a); return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)64; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)64; return 0; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuCtxPopCurrent_v2(void **c) { *c = (void *)64; return 0; }
int cuCtxGetStreamPriorityRange(int *a, int *b) { *a = 0; *b = -5; return 0; }
int cuCtxGetLimit(size_t *v, int l) { *v = 1 << 20; return 0; }
int cuStreamGetCtx(void *s, void **c) { *c = (void *)64; return 0; }
int cuStreamIsCapturing(void *s, int *c) { *c = 0; return 0; }
int cuModuleLoad(void **m, const char *f) { return MAKE(m); }
int cuModuleLoadData(void **m, const void *p) { return MAKE(m); }
int cuModuleLoadDataEx(void **m, const void *p, unsigned n, void *o, void *v) { return MAKE(m); }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = strdup(name); return 0; }
int cuModuleGetGlobal_v2(void **p, size_t *n, void *m, const char *s) { return MAKE(p); }
int cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 0 ? 1024 : a == 4 ? 32 : 0; return 0; }
int cuFuncGetParamCount(void *f, size_t *n) { *n = 0; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t s) { *n = 8; return 0; }
int cuOccupancyMaxActiveClusters(int *n, void *f, void *c) { *n = 8; return 0; }
int cuPointerGetAttribute(void *v, int a, uint64_t p) { *(uint64_t *)v = p; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "null GPU"; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "null"; return 0; }
int cuLinkCreate_v2(unsigned n, void *o, void *v, void **s) { return MAKE(s); }

static int launch(const char *function) {
    char name[4096];
    snprintf(name, sizeof name, "kernel:triton:%s", function ? function : "?");
    null_gpu_note("launch", 1);
    null_gpu_note(name, 0);
    return 0;
}
int cuLaunchKernel(void *f) { return launch(f); }
int cuLaunchCooperativeKernel(void *f) { return launch(f); }
int cuLaunchKernelEx(void *config, void *f) { return launch(f); }

/* A function for each name that is asked for and not written: it ends the process when it is called. */
#define UNKNOWN 1024
static const char *unknown[UNKNOWN];
#define F(i) static int unknown_##i(void) { return null_gpu_unknown(unknown[i]); }
#define ROW(M, i) M(i##0) M(i##1) M(i##2) M(i##3) M(i##4) M(i##5) M(i##6) M(i##7) M(i##8) M(i##9)
#define PAGE(M, i) ROW(M, i##0) ROW(M, i##1) ROW(M, i##2) ROW(M, i##3) ROW(M, i##4) ROW(M, i##5) ROW(M, i##6) ROW(M, i##7) ROW(M, i##8) ROW(M, i##9)
#define ALL(M) PAGE(M, 1) PAGE(M, 2) PAGE(M, 3) PAGE(M, 4) PAGE(M, 5) PAGE(M, 6) PAGE(M, 7) PAGE(M, 8) PAGE(M, 9)
#define A(i) [i] = unknown_##i,
ALL(F)
static int (*const answers[UNKNOWN])(void) = {ALL(A)};

static void *function_of(const char *name) {
    static int last = 99;
    void *known = dlsym(RTLD_DEFAULT, name);
    if (known) return known;
    for (int i = 100; i <= last; i++)
        if (!strcmp(unknown[i], name)) return (void *)answers[i];
    if (last == 999) return 0;
    unknown[++last] = strdup(name);
    return (void *)answers[last];
}
int cuGetProcAddress_v2(const char *s, void **f, int v, uint64_t flags, int *r) { *f = function_of(s); if (r) *r = 0; return 0; }
int cuGetProcAddress(const char *s, void **f, int v, uint64_t flags) { return cuGetProcAddress_v2(s, f, v, flags, 0); }
int cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned v, unsigned long long flags, int *r) { return cuGetProcAddress_v2(s, f, v, flags, r); }
int cudaGetDriverEntryPoint(const char *s, void **f, unsigned long long flags, int *r) { return cuGetProcAddress_v2(s, f, 0, flags, r); }

/* Of the runtime, with other arguments behind these in other versions. */
static int not_capturing(int *status, unsigned long long *id) { *status = 0; if (id) *id = 0; return 0; }
int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id) { return not_capturing(status, id); }
int cudaStreamGetCaptureInfo_v2(void *s, int *status, unsigned long long *id) { return not_capturing(status, id); }
