/* The CUDA runtime of a GPU that does nothing: torch takes it for an H100 and runs its own dispatcher,
 * allocator, streams, events and autograd. Kernels are counted by name and not run; memory is address
 * space that nobody touches, except that copies and memsets of up to 1 MiB are real, so that a small
 * tensor that was sent there can be read back.
 *
 * Environment: NULL_GPU_COUNT devices (1), NULL_GPU_GIB memory of each (79.19). */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "null_gpu.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int current;

static int num_devices(void) {
    const char *given = getenv("NULL_GPU_COUNT");
    return given ? atoi(given) : 1;
}


/* --- counts ------------------------------------------------------------------------------------- */
#define COUNTS 65536
typedef struct { char *name; long n; double amount; } Count;
static Count counts[COUNTS];
static void (*listener)(const char *);
static FILE *order; /* names as they are noted, while somebody wants them */

static Count *count_of(const char *name) {
    unsigned i = 5381;
    for (const char *s = name; *s; s++) i = i * 33 ^ (unsigned char)*s;
    for (i %= COUNTS; counts[i].name && strcmp(counts[i].name, name); i = (i + 1) % COUNTS) {}
    if (!counts[i].name) counts[i].name = strdup(name);
    return &counts[i];
}

void null_gpu_note(const char *name, double amount) {
    pthread_mutex_lock(&lock);
    Count *count = count_of(name);
    count->n++, count->amount += amount;
    if (order) fprintf(order, "%s\n", name);
    pthread_mutex_unlock(&lock);
}

void null_gpu_waits(const char *name) {
    null_gpu_note("wait", 0);
    null_gpu_note(name, 0);
    if (listener) listener(name);
}

void null_gpu_listen(void (*told)(const char *)) { listener = told; }

void null_gpu_reset(void) {
    for (int i = 0; i < COUNTS; i++) counts[i].n = 0, counts[i].amount = 0;
}

/* Begins to write names to a file, in their order; NULL: ends. */
void null_gpu_order(const char *path) {
    pthread_mutex_lock(&lock);
    if (order) fclose(order);
    order = path ? fopen(path, "w") : 0;
    pthread_mutex_unlock(&lock);
}

/* Lines of count, amount, name, separated by tabs. */
void null_gpu_write(const char *path) {
    FILE *file = fopen(path, "w");
    for (int i = 0; i < COUNTS; i++)
        if (counts[i].n) fprintf(file, "%ld\t%.0f\t%s\n", counts[i].n, counts[i].amount, counts[i].name);
    fclose(file);
}

int null_gpu_unknown(const char *name) {
    fprintf(stderr, "null GPU: %s was called, which it does not know: write it in tests/helpers/null_gpu\n", name);
    fflush(stderr);
    raise(SIGUSR1); /* at which the tests' processes print their Python stack */
    _exit(86);
}

void *null_gpu_handle(void) {
    static uintptr_t last = 4096;
    return (void *)__sync_add_and_fetch(&last, 16);
}

/* --- kernels ------------------------------------------------------------------------------------ */
#define KERNELS 262144
static struct { const void *host; const char *name; } kernels[KERNELS];

void __cudaRegisterFunction(void **h, const char *host, char *d, const char *name, int t, void *a, void *b, void *c, void *e, int *f) {
    uintptr_t i = ((uintptr_t)host >> 4) % KERNELS;
    while (kernels[i].host && kernels[i].host != host) i = (i + 1) % KERNELS;
    kernels[i].host = host, kernels[i].name = name;
}

static cudaError_t launch(const void *host, dim3 grid) {
    uintptr_t i = ((uintptr_t)host >> 4) % KERNELS;
    while (kernels[i].host && kernels[i].host != host) i = (i + 1) % KERNELS;
    char name[4096];
    snprintf(name, sizeof name, "kernel:%s", kernels[i].host ? kernels[i].name : "?");
    null_gpu_note("launch", 1);
    null_gpu_note(name, (double)grid.x * grid.y * grid.z);
    return 0;
}

cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return 0; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(k, g); }
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(k, g); }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(f, g); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launch(f, c->gridDim); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) { return launch(f, g); }
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return 0; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = 90, a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448;
    return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { *n = 8; return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 8; return 0; }

/* --- devices ------------------------------------------------------------------------------------ */
cudaError_t cudaGetDeviceCount(int *n) { *n = num_devices(); return 0; }
cudaError_t cudaGetDevice(int *d) { *d = current; return 0; }
cudaError_t cudaSetDevice(int d) { current = d; return 0; }
cudaError_t cudaDriverGetVersion(int *v) { *v = NULL_GPU_CUDA; return 0; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = NULL_GPU_CUDA; return 0; }
cudaError_t cudaDeviceSynchronize(void) { null_gpu_waits("cudaDeviceSynchronize"); return 0; }
cudaError_t cudaDeviceCanAccessPeer(int *y, int a, int b) { *y = 1; return 0; }
cudaError_t cudaDeviceEnablePeerAccess(int d, unsigned f) { return 0; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { if (low) *low = 0; if (high) *high = -5; return 0; }
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d + 1); return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "NVIDIA H100 80GB HBM3 (null)");
    p->totalGlobalMem = null_gpu_bytes(), p->multiProcessorCount = 132, p->major = 9, p->minor = 0;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->warpSize = 32;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->l2CacheSize = 52428800;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->textureAlignment = 512, p->unifiedAddressing = 1, p->concurrentKernels = 1, p->canMapHostMemory = 1;
    p->maxBlocksPerMultiProcessor = 32, p->memoryBusWidth = 5120, p->pciBusID = d + 1;
    return 0;
}
int null_gpu_attribute(int number) {
    switch (number) {
        case 1: case 2: case 3: return 1024; /* threads of a block, and along x and y */
        case 4: return 64;                   /* along z */
        case 5: return 2147483647;           /* blocks along x */
        case 6: case 7: return 65535;
        case 8: return 49152;                /* shared memory of a block */
        case 10: return 32;                  /* warp */
        case 12: case 82: return 65536;      /* registers of a block, of a multiprocessor */
        case 13: return 1980000;             /* kHz */
        case 16: return 132;                 /* multiprocessors */
        case 36: return 2619000;             /* memory, kHz */
        case 37: return 5120;                /* memory bus, bits */
        case 38: return 52428800;            /* L2 */
        case 39: return 2048;                /* threads of a multiprocessor */
        case 75: return 9;                   /* compute capability 9.0 */
        case 81: return 233472;              /* shared memory of a multiprocessor */
        case 95: return 1;                   /* cooperative launch */
        case 97: return 232448;              /* shared memory of a block, opted in */
        case 106: return 32;                 /* blocks of a multiprocessor */
        default: return 0;
    }
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { *v = null_gpu_attribute(a); return 0; }
cudaError_t cudaGetLastError(void) { return 0; }
cudaError_t cudaPeekAtLastError(void) { return 0; }
const char *cudaGetErrorString(cudaError_t e) { return e == 2 ? "out of memory" : "null GPU"; }
const char *cudaGetErrorName(cudaError_t e) { return e == 2 ? "cudaErrorMemoryAllocation" : "null"; }
cudaError_t cudaProfilerStart(void) { return 0; }
cudaError_t cudaProfilerStop(void) { return 0; }

/* --- streams and events ------------------------------------------------------------------------- */
cudaError_t cudaStreamCreate(cudaStream_t *s) { return MAKE(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return MAKE(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { return MAKE(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return 0; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { null_gpu_waits("cudaStreamSynchronize"); return 0; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { null_gpu_note("cudaStreamWaitEvent", 0); return 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = 0; return 0; }
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return MAKE(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return MAKE(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { null_gpu_note("cudaEventRecord", 0); return 0; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { null_gpu_note("cudaEventRecord", 0); return 0; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { null_gpu_waits("cudaEventSynchronize"); return 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0.01f; return 0; }
