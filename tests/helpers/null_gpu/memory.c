/* Memory of the null GPU: the runtime's allocations and copies. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "null_gpu.h"

#define REAL_BYTES (1 << 20) /* copies up to here are made, and so small tensors hold what they were sent */
#define BLOCKS 65536
#define DEVICES 64

typedef struct { char *at; size_t bytes; int device; } Block; /* device -1: pinned memory of the host */
static Block blocks[BLOCKS];
static int num_blocks;
static size_t used[DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

size_t null_gpu_bytes(void) {
    const char *given = getenv("NULL_GPU_GIB");
    return (size_t)((given ? atof(given) : 79.19) * (1L << 30));
}

static int device_now(void) { int d; cudaGetDevice(&d); return d; }

static cudaError_t take(void **p, size_t bytes, int device) {
    if (!bytes) bytes = 1;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (device < 0 ? 0 : MAP_NORESERVE);
    void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) return 2;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < num_blocks && blocks[i].at) i++;
    if (i == num_blocks) num_blocks++;
    blocks[i] = (Block){at, bytes, device};
    if (device >= 0) used[device] += bytes;
    pthread_mutex_unlock(&lock);
    *p = at;
    return 0;
}

static cudaError_t give(void *p) {
    pthread_mutex_lock(&lock);
    for (int i = 0; p && i < num_blocks; i++)
        if (blocks[i].at == p) {
            munmap(p, blocks[i].bytes);
            if (blocks[i].device >= 0) used[blocks[i].device] -= blocks[i].bytes;
            blocks[i].at = 0;
            break;
        }
    pthread_mutex_unlock(&lock);
    return 0;
}

static Block find(const void *p) {
    Block found = {0};
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_blocks; i++)
        if (blocks[i].at && (char *)p >= blocks[i].at && (char *)p < blocks[i].at + blocks[i].bytes) {
            found = blocks[i];
            break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

cudaError_t cudaMalloc(void **p, size_t n) {
    null_gpu_note("cudaMalloc", n);
    return used[device_now()] + n > null_gpu_bytes() ? 2 : take(p, n, device_now());
}
cudaError_t cudaFree(void *p) { return give(p); }
cudaError_t cudaMallocHost(void **p, size_t n) { null_gpu_note("cudaHostAlloc", n); return take(p, n, -1); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { null_gpu_note("cudaHostAlloc", n); return take(p, n, -1); }
cudaError_t cudaFreeHost(void *p) { return give(p); }
cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return 0; }
cudaError_t cudaHostUnregister(void *p) { return 0; }
cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned f) { *d = h; return 0; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *t = null_gpu_bytes(); *f = *t - used[device_now()]; return 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    Block block = find(p);
    if (!block.at) return 0;
    a->type = block.device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    a->device = block.device < 0 ? 0 : block.device;
    a->devicePointer = (void *)p;
    a->hostPointer = block.device < 0 ? (void *)p : 0;
    return 0;
}

static const char *const KINDS[] = {"copy:HtoH", "copy:HtoD", "copy:DtoH", "copy:DtoD", "copy:default"};

static cudaError_t copy(void *to, const void *from, size_t n, int kind, cudaStream_t stream) {
    char name[64];
    const void *host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : 0;
    const char *pinned = !host ? "" : find(host).at ? ":pinned" : ":pageable";
    const char *side = host && stream ? ":side" : ""; /* not the stream in which torch computes */
    snprintf(name, sizeof name, "%s%s%s", KINDS[kind], pinned, side);
    null_gpu_note(name, n);
    if (n <= REAL_BYTES) memmove(to, from, n);
    return 0;
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { null_gpu_waits("cudaMemcpy"); return copy(d, s, n, k, 0); }
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) { return copy(d, s, n, k, t); }
cudaError_t cudaMemcpyPeerAsync(void *d, int a, const void *s, int b, size_t n, cudaStream_t t) { return copy(d, s, n, 3, t); }
cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t t) {
    null_gpu_note(KINDS[k], (double)w * h);
    for (size_t i = 0; w * h <= REAL_BYTES && i < h; i++) memmove((char *)d + i * dp, (char *)s + i * sp, w);
    return 0;
}

static cudaError_t set(void *d, int v, size_t n) {
    null_gpu_note("memset", n);
    if (n <= REAL_BYTES) memset(d, v, n);
    return 0;
}
cudaError_t cudaMemset(void *d, int v, size_t n) { return set(d, v, n); }
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t s) { return set(d, v, n); }
