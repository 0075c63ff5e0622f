/* Attention over rows without padding, on a CPU.
 *
 * torch needs a dozen operations for a group of equally long rows, and a batch of sentences has
 * dozens of groups. Here all rows are one call, and a head of a row stays in cache.
 *
 * Products go step by step along what is summed over: a number of each operand, or, where the
 * processor multiplies pairs of bfloat16 at twice the rate, two. A step is 32 bits either way. */

#include "vectors.h"

/* What queries, keys, values and weights are: float in memory; bfloat16 that is computed on as
 * float; or bfloat16 multiplied in pairs, and added up as float. */
enum kind { FLOATS, HALVES, PAIRS };

enum { MOST = 8 }; /* queries at a time: their sums stay in registers */

#ifdef __AVX512BF16__
enum { HAS_PAIRS = 1 };
INLINE floats add_products_of_pairs(floats sums, uint32_t a, words b) {
    return (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)((words){} + a), (__m512bh)b);
}
#else
enum { HAS_PAIRS = 0 };
INLINE floats add_products_of_pairs(floats sums, uint32_t a, words b) {
    (void)a, (void)b;
    return sums;
}
#endif

INLINE words load_words(const void *from, size_t at) {
    return *(const words *)((const word *)from + at);
}

INLINE void store_words(void *to, size_t at, words x) {
    *(words *)((word *)to + at) = x;
}

/* Steps of so many numbers. */
INLINE int num_steps(int numbers, enum kind kind) {
    return kind == PAIRS ? (numbers + 1) / 2 : numbers;
}

/* Add to `block` vectors of sums the products of as many rows of steps, `stride` steps from one
 * to the next, with the columns that stand `width` steps from one to the next. */
INLINE void multiply(floats *sums, int block, const void *rows, size_t stride,
                     const void *columns, size_t width, int steps, enum kind kind) {
    for (int step = 0; step < steps; step++) {
        const words column = load_words(columns, step * width);
        UNROLLED for (int i = 0; i < block; i++) {
            if (kind == PAIRS)
                sums[i] = add_products_of_pairs(
                    sums[i], ((const word *)rows)[i * stride + step], column);
            else
                sums[i] += ((const float *)rows)[i * stride + step] * (floats)column;
        }
    }
}

/* Load the LANES steps of a token that begin at `at`. */
INLINE words load_steps(const void *qkv, size_t at, enum kind kind) {
    return kind == PAIRS ? load_words(qkv, at / 2) : (words)load(qkv, at, kind == HALVES);
}

/* Lay out a row's keys as steps along the dimensions, `[steps of width, padded length]`, with
 * zeros behind the last token. */
INLINE void gather_keys(const void *qkv, size_t first, size_t stride, int length, int width,
                        uint32_t *keys, enum kind kind) {
    const int numbers = kind == PAIRS ? 2 * LANES : LANES; /* of a vector of steps */
    for (int token = 0; token < length; token += LANES)
        for (int dim = 0; dim < width; dim += numbers) {
            floats square[LANES];
            UNROLLED for (int i = 0; i < LANES; i++)
                square[i] = token + i < length
                                ? (floats)load_steps(qkv, first + (token + i) * stride + dim, kind)
                                : (floats){};
            transpose(square);
            const int step = num_steps(dim, kind);
            UNROLLED for (int i = 0; i < LANES; i++)
                store(keys, (size_t)(step + i) * padded(length) + token, square[i], 0);
        }
}

/* Lay out a row's values as steps along the tokens, `[steps of length, width]`. */
INLINE void gather_values(const void *qkv, size_t first, size_t stride, int length, int width,
                          uint32_t *values, enum kind kind) {
    const int tokens = kind == PAIRS ? 2 : 1; /* of a step */
    for (int token = 0; token < length; token += tokens)
        for (int dim = 0; dim < width; dim += LANES) {
            const size_t at = first + token * stride + dim;
            words step = (words)load(qkv, at, kind != FLOATS);
            if (kind == PAIRS) { /* the first token's in the lower half, the second's above */
                step >>= 16;
                if (token + 1 < length)
                    step |= (words)load(qkv, at + stride, 1);
            }
            store_words(values, (size_t)num_steps(token, kind) * width + dim, step);
        }
}

/* Make weights of a query's scores, not yet divided by what they add up to, which is returned.
 * They are steps along the tokens, and may take the scores' place. */
INLINE float soften(float *scores, int length, void *weights, enum kind kind) {
    for (int token = length; token < padded(length); token++)
        scores[token] = -1e30f; /* padding: a weight of zero */
    floats most = load(scores, 0, 0);
    for (int token = LANES; token < length; token += LANES)
        most = larger(most, load(scores, token, 0));
    const float top = largest(most);
    floats total = {};
    for (int token = 0; token < length; token += LANES) {
        const floats weight = exponential(load(scores, token, 0) - top);
        store(weights, token, weight, kind == PAIRS);
        total += weight;
    }
    return sum(total);
}

/* One head of one row: where its queries begin in `qkv` and how far they lie apart, in numbers;
 * and what all of them need, laid out. */
struct head {
    const void *qkv;
    size_t first, stride;
    const uint32_t *keys, *values;
    int length, width;
};

/* Return queries as steps, as they stand where they are steps already; otherwise in `room`.
 * `stride` becomes what lies from one to the next. */
INLINE const void *queries_of(const struct head *head, int query, int block, float *room,
                              size_t *stride, enum kind kind) {
    const size_t first = head->first + query * head->stride;
    *stride = kind == PAIRS ? head->stride / 2 : head->stride;
    if (kind == PAIRS)
        return (const uint16_t *)head->qkv + first;
    if (kind == FLOATS)
        return (const float *)head->qkv + first;
    *stride = head->width;
    for (int i = 0; i < block; i++)
        for (int dim = 0; dim < head->width; dim += LANES)
            store(room, (size_t)i * head->width + dim,
                  load(head->qkv, first + i * head->stride + dim, 1), 0);
    return room;
}

/* Mix the values for `block` queries of a head, the first of which is `query`. */
INLINE void mix(const struct head *head, int query, int block, void *mixed, size_t at,
                int hidden, enum kind kind) {
    const int length = head->length, width = head->width, across = padded(length);
    float scores[block * across], totals[block], room[kind == HALVES ? block * width : 1];
    size_t stride;
    const void *queries = queries_of(head, query, block, room, &stride, kind);
    for (int token = 0; token < length; token += LANES) {
        floats sums[MOST] = {};
        multiply(sums, block, queries, stride, head->keys + token, across, num_steps(width, kind),
                 kind);
        UNROLLED for (int i = 0; i < block; i++) store(scores, i * across + token, sums[i], 0);
    }
    for (int i = 0; i < block; i++)
        totals[i] = soften(scores + i * across, length, scores + i * across, kind);
    for (int dim = 0; dim < width; dim += LANES) {
        floats sums[MOST] = {};
        multiply(sums, block, scores, across, head->values + dim, width,
                 num_steps(length, kind), kind);
        UNROLLED for (int i = 0; i < block; i++)
            store(mixed, at + (query + i) * (size_t)hidden + dim, sums[i] / totals[i],
                  kind != FLOATS);
    }
}

/* Attend with one head over the `length` tokens of one row, which begin at `token`. */
INLINE void attend(const void *qkv, void *mixed, size_t token, int length, int hidden, int number,
                   int width, enum kind kind) {
    const size_t stride = 3 * (size_t)hidden, first = token * stride + (size_t)number * width;
    const size_t at = token * (size_t)hidden + (size_t)number * width;
    uint32_t keys[(size_t)num_steps(width, kind) * padded(length)];
    uint32_t values[(size_t)num_steps(length, kind) * width];
    gather_keys(qkv, first + hidden, stride, length, width, keys, kind);
    gather_values(qkv, first + 2 * (size_t)hidden, stride, length, width, values, kind);
    const struct head head = {qkv, first, stride, keys, values, length, width};
    int query = 0;
    for (; query + MOST <= length; query += MOST) mix(&head, query, MOST, mixed, at, hidden, kind);
    for (; query + 4 <= length; query += 4) mix(&head, query, 4, mixed, at, hidden, kind);
    for (; query + 2 <= length; query += 2) mix(&head, query, 2, mixed, at, hidden, kind);
    for (; query < length; query++) mix(&head, query, 1, mixed, at, hidden, kind);
}

INLINE void attend_rows(const void *qkv, void *mixed, const int64_t *starts,
                        const int64_t *lengths, int rows, int hidden, int heads,
                        enum kind kind) {
    /* rows are sorted by length: neighbours dealt out in turns are an even share */
#pragma omp parallel for schedule(static, 4)
    for (int i = 0; i < rows * heads; i++)
        attend(qkv, mixed, starts[i / heads], (int)lengths[i / heads], hidden, i % heads,
               hidden / heads, kind);
}

/* The library's functions: qkv [tokens, 3 * hidden] to mixed [tokens, hidden] for rows that begin
 * at tokens `starts` and have `lengths`, both [rows]; queries are scaled. A head's width is a
 * multiple of LANES. */

void attend_float32(const void *qkv, void *mixed, const int64_t *starts, const int64_t *lengths,
                    int rows, int hidden, int heads) {
    attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, FLOATS);
}

void attend_bfloat16(const void *qkv, void *mixed, const int64_t *starts, const int64_t *lengths,
                     int rows, int hidden, int heads) {
    if (HAS_PAIRS && hidden / heads % (2 * LANES) == 0)
        attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, PAIRS);
    else
        attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, HALVES);
}
