/* A tile of a matrix product, on a CPU: rows of numbers by vectors that stand below each other. Its
 * sums stay in registers while they grow.
 */

#pragma once

#include "vectors.h"

/* Rows and vectors of a tile at most: its sums take three quarters of the registers. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define STRIP 6
#define EACH_SIZE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#else
#define STRIP 12
#define EACH_SIZE(CASE)                                                                           \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)                                               \
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
enum { VECTORS = 2 };

typedef floats Sums[STRIP][VECTORS];

/* What is multiplied, 32 bits at a time: float, which bfloat16 becomes where it is computed on;
 * or bfloat16 in pairs, multiplied at twice the rate and added up as float. */
enum kind { FLOATS, HALVES, PAIRS };

#ifdef __AVX512BF16__
enum { HAS_PAIRS = 1 };
#else
enum { HAS_PAIRS = 0 };
#endif

/* Has GCC leave a vector where it is: else it adds up in a factor's register, and copies the sums
 * about, which took 5 %. */
#ifdef __aarch64__
#define HOLD(vector) __asm__("" : : "w"(vector))
#else
#define HOLD(vector) __asm__("" : : "v"(vector))
#endif

INLINE int least(int a, int b) { return a < b ? a : b; }

/* The size of equal shares of a whole: in steps, and as large as they may be. */
INLINE int share(int whole, int most, int step) {
    const int shares = (whole + most - 1) / most;
    return ((whole + shares - 1) / shares + step - 1) / step * step;
}

/* A number, or a pair, in all places of a vector. */
INLINE floats spread(const void *from, size_t at, enum kind kind) {
    if (kind == PAIRS)
        return (floats)(((const word *)from)[at] + (words){});
    return ((const float *)from)[at] - (floats){};
}

INLINE floats add_products(floats sums, floats a, floats b, enum kind kind) {
#ifdef __AVX512BF16__
    if (kind == PAIRS)
        return (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#endif
    (void)kind;
    return sums + a * b;
}

/* Add to a tile the products of one step: a number of each row, `row_step` from one to the next, by
 * vectors that stand side by side. */
INLINE void add_step(Sums sums, int rows, int vectors, const void *numbers, size_t row_step,
                     const float *panel, enum kind kind) {
    floats columns[VECTORS];
    UNROLLED for (int i = 0; i < vectors; i++) columns[i] = load(panel, i * LANES, 0);
    UNROLLED for (int row = 0; row < rows; row++) {
        const floats factor = spread(numbers, row * row_step, kind);
        UNROLLED for (int i = 0; i < vectors; i++)
            sums[row][i] = add_products(sums[row][i], factor, columns[i], kind);
        HOLD(factor);
    }
    UNROLLED for (int i = 0; i < vectors; i++) HOLD(columns[i]);
}
