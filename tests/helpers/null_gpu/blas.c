/* cuBLAS and cuBLASLt of the null GPU: handles that are there, products that are counted. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

static const char *type_of(int t) { return t == 0 ? "f32" : t == 14 ? "bf16" : t == 2 ? "f16" : t == 1 ? "f64" : "?"; }

static int product(int type, double batch, double m, double n, double k) {
    char name[128];
    double flops = 2 * batch * m * n * k;
    null_gpu_note("launch", 1);
    snprintf(name, sizeof name, "gemm:%s %.0f x %.0f x %.0f x %.0f", type_of(type), batch, m, n, k);
    null_gpu_note(name, flops);
    snprintf(name, sizeof name, "flops:%s", type_of(type));
    null_gpu_note(name, flops);
    return 0;
}

int cublasCreate_v2(void **h) { return MAKE(h); }
OK(cublasDestroy_v2)
OK(cublasSetStream_v2)
OK(cublasSetWorkspace_v2)
OK(cublasSetMathMode)
OK(cublasSetPointerMode_v2)
OK(cublasSetSmCountTarget)
int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *al, const void *A, int type) { return product(type, 1, m, n, k); }
int cublasSgemmEx(void *h, int ta, int tb, int m, int n, int k, const float *al, const void *A, int type) { return product(type, 1, m, n, k); }
int cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k) { return product(0, 1, m, n, k); }
int cublasDgemm_v2(void *h, int ta, int tb, int m, int n, int k) { return product(1, 1, m, n, k); }
int cublasSgemv_v2(void *h, int t, int m, int n) { return product(0, 1, m, n, 1); }
int cublasDgemv_v2(void *h, int t, int m, int n) { return product(1, 1, m, n, 1); }
int cublasSdot_v2(void *h, int n) { return product(0, 1, 1, 1, n); }
int cublasDdot_v2(void *h, int n) { return product(1, 1, 1, 1, n); }
int cublasDotEx(void *h, int n, const void *x, int type) { return product(type, 1, 1, 1, n); }
int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *al, const void *A, int type, int lda,
                               long long sa, const void *B, int tB, int ldb, long long sb, const void *be, void *C, int tC,
                               int ldc, long long sc, int batch) { return product(type, batch, m, n, k); }
int cublasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const void *al, const void *A, int lda, long long sa,
                              const void *B, int ldb, long long sb, const void *be, void *C, int ldc, long long sc,
                              int batch) { return product(0, batch, m, n, k); }
int cublasDgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const void *al, const void *A, int lda, long long sa,
                              const void *B, int ldb, long long sb, const void *be, void *C, int ldc, long long sc,
                              int batch) { return product(1, batch, m, n, k); }

typedef struct { uint64_t type, rows, columns; int64_t stride; int32_t batch; } Layout;
static int make(void **d) { *d = calloc(1, 512); return 0; }
static int end(void *d) { free(d); return 0; }
int cublasLtMatmulDescCreate(void **d) { return make(d); }
int cublasLtMatmulDescDestroy(void *d) { return end(d); }
int cublasLtMatmulPreferenceCreate(void **d) { return make(d); }
int cublasLtMatmulPreferenceDestroy(void *d) { return end(d); }
int cublasLtMatrixLayoutCreate(void **d, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    make(d);
    **(Layout **)d = (Layout){type, rows, columns, stride, 1};
    return 0;
}
int cublasLtMatrixLayoutDestroy(void *d) { return end(d); }
int cublasLtMatrixLayoutSetAttribute(Layout *l, int a, const void *v, size_t n) { if (a == 5) l->batch = *(int32_t *)v; return 0; }
OK(cublasLtMatmulDescSetAttribute)
OK(cublasLtMatmulPreferenceSetAttribute)
OK(cublasLtMatmulAlgoInit)
OK(cublasLtMatmulAlgoCheck)
OK(cublasLtMatmulAlgoConfigGetAttribute)
OK(cublasLtMatmulAlgoConfigSetAttribute)
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, char *results, int *found) {
    memset(results, 0, 96);
    *found = 1;
    return 0;
}
int cublasLtMatmul(void *h, void *o, const void *al, const void *A, Layout *a, const void *B, Layout *b, const void *be, const void *C, void *c, void *D, Layout *d) {
    double m = d->rows, n = d->columns; /* a is m k long, b n k, whichever way round they lie */
    double k = m * n ? sqrt((double)a->rows * a->columns * b->rows * b->columns / (m * n)) : 0;
    return product(a->type, d->batch, m, n, k);
}
