/* NCCL of the null GPU: communicators of any size, also of ranks that do not exist. Bytes are counted.
 *
 * Where NULL_GPU_MESSAGES names a folder, all-gathers and broadcasts of up to 1 MiB a rank really travel
 * between processes, as files there. Else a rank receives its own numbers from all others: ranks that are
 * alike. Sums are not computed. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "null_gpu.h"

#define REAL_BYTES (1 << 20)
#define ALIKE_BYTES 4096

typedef struct { int size, rank; unsigned long long id; long sequence; int children; } Comm;
typedef struct { char bytes[128]; } Id;
static const int ITEM[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; /* bytes by ncclDataType_t */

int ncclGetUniqueId(char *id) {
    memset(id, 7, 128);
    int file = open("/dev/urandom", O_RDONLY);
    ssize_t n = read(file, id, 8);
    close(file);
    return n != 8;
}

static int begin(void **c, int size, int rank, unsigned long long id) {
    Comm *made = calloc(1, sizeof *made);
    *made = (Comm){size, rank, id};
    *c = made;
    return 0;
}
static unsigned long long first(const void *id) { unsigned long long v; memcpy(&v, id, 8); return v; }
int ncclCommInitRank(void **c, int n, Id id, int r) { return begin(c, n, r, first(&id)); }
int ncclCommInitRankConfig(void **c, int n, Id id, int r, void *o) { return begin(c, n, r, first(&id)); }
int ncclCommInitRankScalable(void **c, int n, int r, int k, void *ids, void *o) { return begin(c, n, r, first(ids)); }
int ncclCommSplit(Comm *c, int color, int key, void **n, void *o) { return begin(n, c->size, c->rank, c->id * 31 + ++c->children); }
int ncclCommGetAsyncError(void *c, int *e) { *e = 0; return 0; }
int ncclCommCount(Comm *c, int *n) { *n = c->size; return 0; }
int ncclCommUserRank(Comm *c, int *r) { *r = c->rank; return 0; }
int ncclCommCuDevice(Comm *c, int *d) { *d = c->rank; return 0; }
OK(ncclCommDestroy)
OK(ncclCommAbort)
OK(ncclCommFinalize)
OK(ncclCommRegister)
OK(ncclCommDeregister)
OK(ncclGroupStart)
OK(ncclGroupEnd)

static void path_of(char *path, size_t n, Comm *c, int rank) {
    snprintf(path, n, "%s/%llx-%ld-%d", getenv("NULL_GPU_MESSAGES"), c->id, c->sequence, rank);
}
static void put(Comm *c, const void *data, size_t n) {
    char path[4096], unfinished[4104];
    path_of(path, sizeof path, c, c->rank);
    snprintf(unfinished, sizeof unfinished, "%s.part", path);
    FILE *file = fopen(unfinished, "wb");
    if (!file || fwrite(data, 1, n, file) != n) null_gpu_unknown("a folder for messages that can be written");
    fclose(file);
    rename(unfinished, path);
}
static void get(Comm *c, int rank, void *data, size_t n) {
    char path[4096];
    path_of(path, sizeof path, c, rank);
    FILE *file;
    while (!(file = fopen(path, "rb"))) usleep(300);
    if (fread(data, 1, n, file) != n) null_gpu_unknown("a message of another length");
    fclose(file);
}
static int travels(size_t n) { return getenv("NULL_GPU_MESSAGES") && n <= REAL_BYTES; }

int ncclAllReduce(const void *s, void *r, size_t n, int type, int op, Comm *c, void *t) { null_gpu_note("nccl:all_reduce", (double)n * ITEM[type]); return 0; }
int ncclReduce(const void *s, void *r, size_t n, int type, int op, int root, Comm *c, void *t) { null_gpu_note("nccl:reduce", (double)n * ITEM[type]); return 0; }
/* Bytes of all ranks: what the rank's tensor holds. */
int ncclReduceScatter(const void *s, void *r, size_t n, int type, int op, Comm *c, void *t) { null_gpu_note("nccl:reduce_scatter", (double)n * ITEM[type] * c->size); return 0; }
int ncclSend(const void *s, size_t n, int type, int peer, Comm *c, void *t) { null_gpu_note("nccl:send", (double)n * ITEM[type]); return 0; }
int ncclRecv(void *r, size_t n, int type, int peer, Comm *c, void *t) { null_gpu_note("nccl:recv", (double)n * ITEM[type]); return 0; }

int ncclBroadcast(const void *s, void *r, size_t n, int type, int root, Comm *c, void *t) {
    n *= ITEM[type];
    null_gpu_note("nccl:broadcast", n);
    if (travels(n) && c->rank == root) put(c, s, n);
    if (travels(n) && c->rank != root) get(c, root, r, n);
    if (r != s && c->rank == root && n <= REAL_BYTES) memmove(r, s, n);
    c->sequence++;
    return 0;
}
int ncclBcast(void *s, size_t n, int type, int root, Comm *c, void *t) { return ncclBroadcast(s, s, n, type, root, c, t); }

int ncclAllGather(const void *s, void *r, size_t n, int type, Comm *c, void *t) {
    n *= ITEM[type];
    null_gpu_note("nccl:all_gather", (double)n * c->size);
    if (travels(n)) put(c, s, n);
    for (int rank = 0; rank < c->size; rank++) {
        char *to = (char *)r + rank * n;
        if (travels(n)) get(c, rank, to, n);
        else if (n <= ALIKE_BYTES) memmove(to, s, n);
    }
    c->sequence++;
    return 0;
}
