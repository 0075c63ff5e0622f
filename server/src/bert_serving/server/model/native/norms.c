/* Sums and their LayerNorm in one pass, on a CPU: of a residual, and of embeddings. */

#include "team.h"
#include "vectors.h"

/* Store the LayerNorm of a token's numbers, which add up to what is in total. */
INLINE void normalize(const float *row, floats total, const void *weight, const void *bias,
                      float eps, void *y, size_t first, int hidden, int is_half) {
    const float mean = sum(total) / hidden;
    floats squares = {};
    for (int dim = 0; dim < hidden; dim += LANES) {
        const floats apart = load(row, dim, 0) - mean;
        squares += apart * apart;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / hidden + eps);
    for (int dim = 0; dim < hidden; dim += LANES)
        store(y, first + dim,
              (load(row, dim, 0) - mean) * scale * load(weight, dim, is_half) +
                  load(bias, dim, is_half),
              is_half);
}

INLINE void add_norm(void *x, const void *residual, const void *weight, const void *bias,
                     float eps, int tokens, int hidden, int is_half) {
#pragma omp for schedule(static) nowait
    for (int token = 0; token < tokens; token++) {
        const size_t first = (size_t)token * hidden;
        float row[hidden];
        floats total = {};
        for (int dim = 0; dim < hidden; dim += LANES) {
            const floats both =
                load(x, first + dim, is_half) + load(residual, first + dim, is_half);
            store(row, dim, both, 0);
            total += both;
        }
        normalize(row, total, weight, bias, eps, x, first, hidden, is_half);
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

/* Tables of embeddings, [size, hidden] each, and the norm of their sums. */
typedef struct {
    const float *tables[3];
    int64_t sizes[3];
    const float *weight, *bias;
    float eps;
    int num_tables, hidden;
} Embeddings;

/* Some lines of each table to the LayerNorm of their sum, y [tokens, hidden]: each table with the
 * numbers [tokens] of its lines. Returns whether any number is of no line, and there is no y. */
int embed_float32(const Embeddings *of, const int64_t *const *numbers, float *y, int tokens) {
    const int hidden = of->hidden;
    for (int table = 0; table < of->num_tables; table++)
        for (int token = 0; token < tokens; token++)
            if (numbers[table][token] < 0 || numbers[table][token] >= of->sizes[table])
                return 1;
#pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        float row[hidden];
        floats total = {};
        for (int dim = 0; dim < hidden; dim += LANES) {
            floats all = {};
            for (int table = 0; table < of->num_tables; table++)
                all += load(of->tables[table] + numbers[table][token] * hidden, dim, 0);
            store(row, dim, all, 0);
            total += all;
        }
        normalize(row, total, of->weight, of->bias, of->eps, y, (size_t)token * hidden, hidden,
                  0);
    }
    return 0;
}
