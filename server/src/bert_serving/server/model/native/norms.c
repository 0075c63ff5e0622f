/* A residual's sum and its LayerNorm in one pass, on a CPU. */

#include "team.h"
#include "vectors.h"

INLINE void add_norm(void *x, const void *residual, const void *weight, const void *bias,
                     float eps, int tokens, int hidden, int is_half) {
#pragma omp for schedule(static) nowait
    for (int token = 0; token < tokens; token++) {
        const size_t first = (size_t)token * hidden;
        float row[hidden];
        floats total = {}, squares = {};
        for (int dim = 0; dim < hidden; dim += LANES) {
            const floats both =
                load(x, first + dim, is_half) + load(residual, first + dim, is_half);
            store(row, dim, both, 0);
            total += both;
        }
        const float mean = sum(total) / hidden;
        for (int dim = 0; dim < hidden; dim += LANES) {
            const floats apart = load(row, dim, 0) - mean;
            squares += apart * apart;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / hidden + eps);
        for (int dim = 0; dim < hidden; dim += LANES)
            store(x, first + dim,
                  (load(row, dim, 0) - mean) * scale * load(weight, dim, is_half) +
                      load(bias, dim, is_half),
                  is_half);
    }
}

/* Compute add_norm_float32. */
void share_add_norm(float *x, const float *residual, const float *weight, const float *bias,
                    float eps, int tokens, int hidden) {
    add_norm(x, residual, weight, bias, eps, tokens, hidden, 0);
}

/* The library's functions: x, residual [tokens, hidden] to LayerNorm(x + residual), in x; hidden
 * is a multiple of LANES. */

void add_norm_float32(float *x, const float *residual, const float *weight, const float *bias,
                      float eps, int tokens, int hidden) {
#pragma omp parallel
    share_add_norm(x, residual, weight, bias, eps, tokens, hidden);
}

void add_norm_bfloat16(void *x, const void *residual, const void *weight, const void *bias,
                       float eps, int tokens, int hidden) {
#pragma omp parallel
    add_norm(x, residual, weight, bias, eps, tokens, hidden, 1);
}
