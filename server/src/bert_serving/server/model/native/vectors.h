/* Vectors of numbers, and what is computed with them: float, or bfloat16 that is computed on as
 * float. Written with GCC's vector types, as wide as the processor's registers: wider ones GCC
 * keeps in memory, and shuffles and compares a number at a time. Threads are those of the OpenMP
 * that torch has loaded.
 */

#pragma once

#include <stddef.h>
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* Numbers of a vector. */
#if defined(__AVX512F__)
#define LANES 16
#define NUMBERED {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX2__)
#define LANES 8
#define NUMBERED {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANES 4
#define NUMBERED {0, 1, 2, 3}
#endif

typedef uint32_t word __attribute__((may_alias));
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* Everything here takes `is_half` and the like as constants: one source for all types. */
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

INLINE floats load(const void *from, size_t at, int is_half) {
    if (!is_half)
        return *(const floats *)((const float *)from + at);
    const halves half = *(const halves *)((const uint16_t *)from + at);
    return (floats)(__builtin_convertvector(half, words) << 16);
}

/* Round to bfloat16, to the nearest, ties to even: the upper 16 bits; what is below is left. */
INLINE words rounded(floats x) {
    const words bits = (words)x;
    return bits + 0x7fff + ((bits >> 16) & 1);
}

INLINE void store(void *to, size_t at, floats x, int is_half) {
    if (!is_half) {
        *(floats *)((float *)to + at) = x;
        return;
    }
#ifdef __AVX512BF16__
    *(halves *)((uint16_t *)to + at) = (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    *(halves *)((uint16_t *)to + at) = __builtin_convertvector(rounded(x) >> 16, halves);
#endif
}

/* The larger ones of a and b, those of b where either is no number. */
INLINE floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const ints is_first = a > b;
    return (floats)(((ints)a & is_first) | ((ints)b & ~is_first));
#endif
}

INLINE floats smaller(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return -larger(-a, -b);
#endif
}

/* e to the power of x <= 0, to 2 units in the last place: 2^n times a polynomial. Cody and
 * Waite's reduction, the coefficients of Cephes' expf. What is no number stays none. */
INLINE floats exponential(floats x) {
    x = larger((floats){} - 87.0f, x);
    const ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, ints);
    const floats whole = __builtin_convertvector(n, floats);
    const floats rest = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    floats power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    return power * (floats)((n + 127) << 23);
}

/* Shuffles for halves of so many numbers: a vector rotated by as many, ... */
INLINE ints rotated(int half) {
    const ints numbers = NUMBERED;
    return (numbers + half) & (LANES - 1);
}

/* ... and the first or the second halves of two vectors, side by side. */
INLINE ints firsts(int half) {
    const ints numbers = NUMBERED;
    return numbers + (((numbers & half) != 0) & (LANES - half));
}

INLINE ints seconds(int half) { return firsts(half) + half; }

INLINE float sum(floats x) {
    UNROLLED for (int half = LANES / 2; half; half /= 2) x += __builtin_shuffle(x, rotated(half));
    return x[0];
}

INLINE float largest(floats x) {
    UNROLLED for (int half = LANES / 2; half; half /= 2)
        x = larger(x, __builtin_shuffle(x, rotated(half)));
    return x[0];
}

/* Exchange rows and columns of a square of LANES vectors, halves of halves at a time. */
INLINE void transpose(floats square[LANES]) {
    UNROLLED for (int half = LANES / 2; half; half /= 2)
        UNROLLED for (int row = 0; row < LANES; row++) {
            if (row & half)
                continue;
            const floats a = square[row], b = square[row + half];
            square[row] = __builtin_shuffle(a, b, firsts(half));
            square[row + half] = __builtin_shuffle(a, b, seconds(half));
        }
}

INLINE int padded(int length) { return (length + LANES - 1) / LANES * LANES; }
