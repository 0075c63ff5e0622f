/* What a transformer layer does between its matrix products, on a CPU: attention over rows
 * without padding, and a residual's sum with its LayerNorm, each in one pass.
 *
 * torch needs a dozen operations for a group of equally long rows, and a batch of sentences
 * has dozens of groups. Here all rows are one call. Numbers are float, or bfloat16 that is
 * computed on as float. Written with GCC's vector types, which become whatever instructions
 * the library is compiled for; threads are those of the OpenMP that torch has loaded.
 */

#include <stddef.h>
#include <stdint.h>

enum {
    LANES = 16, /* numbers of a vector */
    BLOCK = 4,  /* queries at a time: their sums stay in registers */
};

typedef float floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));

/* Everything below takes `is_half` as a constant: one source for both types. */
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

INLINE floats load(const void *from, size_t at, int is_half) {
    if (!is_half)
        return *(const floats *)((const float *)from + at);
    const halves half = *(const halves *)((const uint16_t *)from + at);
    return (floats)(__builtin_convertvector(half, words) << 16);
}

INLINE void store(void *to, size_t at, floats x, int is_half) {
    if (!is_half) {
        *(floats *)((float *)to + at) = x;
        return;
    }
    words bits = (words)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to the nearest, ties to even */
    *(halves *)((uint16_t *)to + at) = __builtin_convertvector(bits, halves);
}

INLINE floats larger(floats a, floats b) {
    const ints is_first = a > b;
    return (floats)(((ints)a & is_first) | ((ints)b & ~is_first));
}

/* e to the power of x <= 0, to 2 units in the last place: 2^n times a polynomial. Cody and
 * Waite's reduction, the coefficients of Cephes' expf. */
INLINE floats exponential(floats x) {
    x = larger(x, (floats){} - 87.0f);
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

/* Shuffles for halves of 8, 4, 2 and 1 numbers: vectors rotated by as many, ... */
static const ints ROTATED[4] = {
    {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7},
    {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3},
    {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1},
    {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0},
};
/* ... and the first and the second halves of two vectors, side by side. */
static const ints FIRSTS[4] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
    {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
    {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
    {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30},
};
static const ints SECONDS[4] = {
    {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31},
    {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31},
    {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31},
    {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31},
};

INLINE float sum(floats x) {
    UNROLLED for (int i = 0; i < 4; i++) x += __builtin_shuffle(x, ROTATED[i]);
    return x[0];
}

INLINE float largest(floats x) {
    UNROLLED for (int i = 0; i < 4; i++) x = larger(x, __builtin_shuffle(x, ROTATED[i]));
    return x[0];
}

/* Exchange rows and columns of a square of LANES vectors, halves of halves at a time. */
INLINE void transpose(floats square[LANES]) {
    UNROLLED for (int i = 0; i < 4; i++) {
        const int half = 8 >> i;
        UNROLLED for (int row = 0; row < LANES; row++) {
            if (row & half)
                continue;
            const floats a = square[row], b = square[row + half];
            square[row] = __builtin_shuffle(a, b, FIRSTS[i]);
            square[row + half] = __builtin_shuffle(a, b, SECONDS[i]);
        }
    }
}

INLINE int padded(int length) { return (length + LANES - 1) / LANES * LANES; }

/* Lay out what all queries of a row need: its keys with tokens along the vectors, zeros
 * behind the last, `[width, padded length]`, and its values, `[length, width]`. */
INLINE void gather(const void *qkv, size_t first, size_t stride, int hidden, int length,
                   int width, float *keys, float *values, int is_half) {
    for (int token = 0; token < length; token += LANES)
        for (int dim = 0; dim < width; dim += LANES) {
            floats square[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) {
                square[i] = (floats){};
                if (token + i < length) {
                    const size_t at = first + (token + i) * stride + dim;
                    square[i] = load(qkv, at + hidden, is_half);
                    store(values, (size_t)(token + i) * width + dim,
                          load(qkv, at + 2 * (size_t)hidden, is_half), 0);
                }
            }
            transpose(square);
            UNROLLED for (int i = 0; i < LANES; i++)
                store(keys, (size_t)(dim + i) * padded(length) + token, square[i], 0);
        }
}

/* Products of BLOCK queries with all keys, `[BLOCK, padded length]`. */
INLINE void score(const float *queries, const float *keys, int length, int width,
                  float *scores) {
    for (int token = 0; token < length; token += LANES) {
        floats sums[BLOCK] = {};
        for (int dim = 0; dim < width; dim++) {
            const floats key = load(keys, (size_t)dim * padded(length) + token, 0);
            UNROLLED for (int i = 0; i < BLOCK; i++) sums[i] += queries[i * width + dim] * key;
        }
        UNROLLED for (int i = 0; i < BLOCK; i++)
            store(scores, (size_t)i * padded(length) + token, sums[i], 0);
    }
}

/* Make weights of a query's scores, and return what they add up to. */
INLINE float soften(float *scores, int length) {
    for (int token = length; token < padded(length); token++)
        scores[token] = -1e30f; /* padding: a weight of zero */
    floats most = load(scores, 0, 0);
    for (int token = LANES; token < length; token += LANES)
        most = larger(most, load(scores, token, 0));
    const float top = largest(most);
    floats total = {};
    for (int token = 0; token < length; token += LANES) {
        const floats weight = exponential(load(scores, token, 0) - top);
        store(scores, token, weight, 0);
        total += weight;
    }
    return sum(total);
}

/* Attend with one head over the `length` tokens of one row, which begin at `token`. */
INLINE void attend(const void *qkv, void *mixed, size_t token, int length, int hidden, int head,
                   int width, int is_half) {
    const size_t stride = 3 * (size_t)hidden, first = token * stride + (size_t)head * width;
    float keys[(size_t)width * padded(length)], values[(size_t)length * width];
    float queries[BLOCK * width], scores[BLOCK * padded(length)], totals[BLOCK];
    gather(qkv, first, stride, hidden, length, width, keys, values, is_half);
    for (int query = 0; query < length; query += BLOCK) {
        const int count = length - query < BLOCK ? length - query : BLOCK;
        for (int i = 0; i < BLOCK; i++) /* beyond the last one, the first again */
            for (int dim = 0; dim < width; dim += LANES)
                store(queries, (size_t)i * width + dim,
                      load(qkv, first + (query + (i < count ? i : 0)) * stride + dim, is_half),
                      0);
        score(queries, keys, length, width, scores);
        for (int i = 0; i < BLOCK; i++)
            totals[i] = soften(scores + (size_t)i * padded(length), length);
        for (int dim = 0; dim < width; dim += LANES) {
            floats sums[BLOCK] = {};
            for (int other = 0; other < length; other++) {
                const floats value = load(values, (size_t)other * width + dim, 0);
                UNROLLED for (int i = 0; i < BLOCK; i++)
                    sums[i] += scores[i * padded(length) + other] * value;
            }
            for (int i = 0; i < count; i++)
                store(mixed, (token + query + i) * (size_t)hidden + (size_t)head * width + dim,
                      sums[i] / totals[i], is_half);
        }
    }
}

INLINE void attend_rows(const void *qkv, void *mixed, const int64_t *starts,
                        const int64_t *lengths, int rows, int hidden, int heads, int is_half) {
    /* rows are sorted by length: neighbours dealt out in turns are an even share */
#pragma omp parallel for schedule(static, 4)
    for (int i = 0; i < rows * heads; i++)
        attend(qkv, mixed, starts[i / heads], (int)lengths[i / heads], hidden, i % heads,
               hidden / heads, is_half);
}

INLINE void add_norm(void *x, const void *residual, const void *weight, const void *bias,
                     float eps, int tokens, int hidden, int is_half) {
#pragma omp parallel for schedule(static)
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

/* The library's functions, for float and for bfloat16.
 *
 * attend_*: qkv [tokens, 3 * hidden] to mixed [tokens, hidden] for rows that begin at tokens
 * `starts` and have `lengths`, both [rows]; queries are scaled. A head's width is a multiple
 * of LANES.
 * add_norm_*: x, residual [tokens, hidden] to LayerNorm(x + residual), in x; hidden is a
 * multiple of LANES. */

#define EXPORT(TYPE, IS_HALF)                                                                  \
    void attend_##TYPE(const void *qkv, void *mixed, const int64_t *starts,                    \
                       const int64_t *lengths, int rows, int hidden, int heads) {              \
        attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, IS_HALF);                \
    }                                                                                          \
    void add_norm_##TYPE(void *x, const void *residual, const void *weight, const void *bias,  \
                         float eps, int tokens, int hidden) {                                  \
        add_norm(x, residual, weight, bias, eps, tokens, hidden, IS_HALF);                     \
    }

EXPORT(float32, 0)
EXPORT(bfloat16, 1)
