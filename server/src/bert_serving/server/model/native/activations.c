/* The activation between the products of the feed-forward part, on a CPU. */

#include "vectors.h"

enum { MANY = 4096 }; /* numbers of a thread's turn */

/* x times the standard normal distribution function of x (Hendrycks and Gimpel 2016,
 * arXiv:1606.08415), off by at most 2e-7 of x: the odd minimax quotient of polynomials on
 * [-5.62, 5.62], beyond which the function is 0 or 1 in float32. */
INLINE floats gelu(floats x) {
    const floats most = (floats){} + 5.62f;
    const floats in = smaller(larger(x, -most), most);
    const floats square = in * in;
    floats above = square * 2.20277077e-8f + 6.35846573e-6f;
    above = above * square + 1.74900866e-4f;
    above = above * square + 4.71358513e-3f;
    above = above * square + 3.44845913e-2f;
    above = above * square + 3.98942232e-1f;
    floats below = square * 1.17691400e-6f + 7.54103894e-5f;
    below = below * square + 1.91895873e-3f;
    below = below * square + 2.90013347e-2f;
    below = below * square + 2.53105730e-1f;
    below = below * square + 1.0f;
    return x * (in * above / below + 0.5f);
}

/* The library's function: x [tokens, width] to its GELU, in x; width is a multiple of LANES. */

void gelu_float32(void *x, int tokens, int width) {
    const int64_t numbers = (int64_t)tokens * width;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < numbers; first += MANY) {
        const int64_t end = first + MANY < numbers ? first + MANY : numbers;
        for (int64_t at = first; at < end; at += LANES) store(x, at, gelu(load(x, at, 0)), 0);
    }
}
