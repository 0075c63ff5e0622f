/* What lies around matrix products of 8-bit integers, on a CPU: activations to codes, with a scale
 * for each token, and the products back to numbers, each in one pass.
 *
 * A scale for each token, not one for all: what a row becomes does not depend on which others are
 * computed beside it. Numbers are bfloat16 in memory; a width is a multiple of LANES. */

#include "vectors.h"

typedef uint8_t codes __attribute__((vector_size(LANES), aligned(1), may_alias));

/* x times the standard normal distribution function of x (Hendrycks and Gimpel 2016,
 * arXiv:1606.08415), off by at most 6e-5 or 1e-5 of x: the odd minimax polynomial on [-4.5, 4.5],
 * beyond which the function is 0 or 1 in bfloat16. */
INLINE floats gelu(floats x) {
    const floats most = (floats){} + 4.5f;
    const floats in = smaller(larger(x, -most), most);
    const floats square = in * in;
    floats part = square * 3.0364284e-11f - 3.31466876e-09f;
    part = part * square + 1.59100011e-07f;
    part = part * square - 4.45173555e-06f;
    part = part * square + 8.14252344e-05f;
    part = part * square - 1.03759172e-03f;
    part = part * square + 9.58520453e-03f;
    part = part * square - 6.59846589e-02f;
    part = part * square + 3.98712605e-01f;
    return x * (in * part + 0.5f);
}

/* Codes of a token's numbers, 0 for the least to 255 for the largest; what lies between two codes
 * is returned, and what the numbers add up to is put into `total`. */
INLINE float quantize_token(const void *x, size_t first, int width, uint8_t *to, float *total) {
    floats least = load(x, first, 1), most = least, sums = {};
    for (int dim = 0; dim < width; dim += LANES) {
        const floats number = load(x, first + dim, 1);
        least = smaller(least, number);
        most = larger(most, number);
        sums += number;
    }
    const float bottom = -largest(-least), range = largest(most) - bottom;
    const float by = range > 0 ? 255 / range : 0;
    for (int dim = 0; dim < width; dim += LANES) {
        const floats code = (load(x, first + dim, 1) - bottom) * by + 0.5f; /* to the nearest */
        *(codes *)(to + first + dim) =
            __builtin_convertvector(__builtin_convertvector(code, ints), codes);
    }
    *total = sum(sums);
    return range / 255;
}

INLINE void finish_token(void *y, size_t first, int width, float scale, float total,
                         const float *means, const float *bias, int has_gelu) {
    for (int dim = 0; dim < width; dim += LANES) {
        const floats x = load(y, first + dim, 1) * scale + load(means, dim, 0) * total +
                         load(bias, dim, 0);
        store(y, first + dim, has_gelu ? gelu(x) : x, 1);
    }
}

/* The library's functions.
 *
 * quantize: x [tokens, width] to codes [tokens, width], scales and totals [tokens].
 * finish: y [tokens, width], a product of codes, times its token's scale, plus the token's total
 * times means [width], plus bias [width]; and the GELU of that, if wanted. In y. */

void quantize(const void *x, uint8_t *to, float *scales, float *totals, int tokens, int width) {
#pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++)
        scales[token] = quantize_token(x, (size_t)token * width, width, to, totals + token);
}

void finish(void *y, const float *scales, const float *totals, const float *means,
            const float *bias, int tokens, int width, int has_gelu) {
#pragma omp parallel for schedule(static)
    for (int token = 0; token < tokens; token++) {
        const size_t first = (size_t)token * width;
        if (has_gelu)
            finish_token(y, first, width, scales[token], totals[token], means, bias, 1);
        else
            finish_token(y, first, width, scales[token], totals[token], means, bias, 0);
    }
}
