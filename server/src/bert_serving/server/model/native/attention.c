/* Attention over rows without padding, on a CPU.
 *
 * torch needs a dozen operations for a group of equally long rows, and a batch of sentences has
 * dozens of groups. Here all rows are one call, and a head of a row stays in cache.
 *
 * Queries stand side by side in vectors, keys and values are taken a number at a time: so these
 * are read where they are, nothing is padded but the last queries, and a softmax is computed for
 * as many queries as a vector has lanes.
 *
 * Products go step by step along what is summed over: a number of each operand, or, where the
 * processor multiplies pairs of bfloat16, two. */

#include "team.h"
#include "tiles.h"

enum { NEAR = 64 }; /* tokens whose keys and values stay in a core's first cache where they are */

#define ROOM __attribute__((aligned(64))) /* for vectors that cross no line of a cache */

/* Numbers that are summed over, as steps: where a token's begin, and the next one's. */
typedef struct {
    const word *first;
    size_t token_step;
} Steps;

/* One head of one row: where its queries begin in `qkv` and how far they lie apart, in numbers. */
typedef struct {
    const void *qkv;
    size_t first, stride;
    Steps keys, values; /* steps along dimensions, and along tokens */
    int length, width;
} Head;

/* Steps of so many numbers. */
INLINE size_t num_steps(size_t numbers, enum kind kind) {
    return kind == PAIRS ? (numbers + 1) / 2 : numbers;
}

/* Load the LANES steps of a token that begin at `at`. */
INLINE floats load_steps(const void *qkv, size_t at, enum kind kind) {
    return kind == PAIRS ? load(qkv, at / 2, 0) : load(qkv, at, kind == HALVES);
}

/* Return what a row's tokens have from `first` on as steps along its dimensions: where they are,
 * or copied. */
INLINE Steps along_dimensions(const Head *head, size_t first, word *room, enum kind kind) {
    if (head->length <= NEAR && kind != HALVES)
        return (Steps){(const word *)head->qkv + num_steps(first, kind),
                       num_steps(head->stride, kind)};
    const int steps = num_steps(head->width, kind);
    for (int token = 0; token < head->length; token++)
        for (int step = 0; step < steps; step += LANES) {
            const size_t at = first + token * head->stride + step * (kind == PAIRS ? 2 : 1);
            store(room, (size_t)token * steps + step, load_steps(head->qkv, at, kind), 0);
        }
    return (Steps){room, steps};
}

/* Return the same as steps along its tokens: two tokens' numbers, the first one's below. */
INLINE Steps along_tokens(const Head *head, size_t first, word *room, enum kind kind) {
    if (kind != PAIRS)
        return along_dimensions(head, first, room, kind);
    for (int token = 0; token < head->length; token += 2)
        for (int dim = 0; dim < head->width; dim += LANES) {
            const size_t at = first + token * head->stride + dim;
            words pair = (words)load(head->qkv, at, 1) >> 16;
            if (token + 1 < head->length)
                pair |= (words)load(head->qkv, at + head->stride, 1);
            store(room, (size_t)token / 2 * head->width + dim, (floats)pair, 0);
        }
    return (Steps){room, head->width};
}

/* Lay out queries as a panel, a step below the other, with zeros behind the last token. */
INLINE void gather_queries(const Head *head, int query, int vectors, float *panel,
                           enum kind kind) {
    const int numbers = kind == PAIRS ? 2 * LANES : LANES; /* of a vector of steps */
    UNROLLED for (int i = 0; i < vectors; i++, query += LANES)
        for (int dim = 0; dim < head->width; dim += numbers) {
            const size_t at = head->first + query * head->stride + dim;
            floats square[LANES];
            UNROLLED for (int lane = 0; lane < LANES; lane++)
                square[lane] = query + lane < head->length
                                   ? load_steps(head->qkv, at + lane * head->stride, kind)
                                   : (floats){};
            transpose(square);
            float *to = panel + (num_steps(dim, kind) * vectors + i) * LANES;
            UNROLLED for (int lane = 0; lane < LANES; lane++)
                store(to, lane * vectors * LANES, square[lane], 0);
        }
}

INLINE void tile(int rows, int vectors, const word *numbers, size_t row_step, size_t step,
                 const float *panel, int steps, float *to, enum kind kind) {
    Sums sums = {};
    for (; steps > 0; steps--, numbers += step, panel += vectors * LANES)
        add_step(sums, rows, vectors, numbers, row_step, panel, kind);
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int i = 0; i < vectors; i++)
            store(to, (row * vectors + i) * LANES, sums[row][i], 0);
}

/* Multiply rows of steps, `row_step` and `step` from one to the next, with a panel that has a
 * step's vectors below those of the other, to one that has a row's. */
INLINE void multiply(int rows, int vectors, const word *numbers, size_t row_step, size_t step,
                     const float *panel, int steps, float *to, enum kind kind) {
#define CASE(count)                                                                               \
    case count: tile(count, vectors, numbers, row_step, step, panel, steps, to, kind); break;
    const int strip = share(rows, STRIP, 1);
    for (; rows > 0; rows -= strip) {
        switch (least(strip, rows)) { EACH_SIZE(CASE) }
        numbers += strip * row_step;
        to += strip * vectors * LANES;
    }
#undef CASE
}

/* Make weights of the scores of a vector of queries, in their place and as steps along the tokens;
 * return what to multiply with to have them add up to one. */
INLINE floats soften(float *scores, int length, int across, enum kind kind) {
    floats most = load(scores, 0, 0), total = {};
    for (int token = 1; token < length; token++)
        most = larger(most, load(scores, token * across, 0));
    for (int token = 0; token < length; token += kind == PAIRS ? 2 : 1) {
        floats weight = exponential(load(scores, token * across, 0) - most);
        total += weight;
        if (kind == PAIRS) {
            floats next = {};
            if (token + 1 < length)
                next = exponential(load(scores, (token + 1) * across, 0) - most);
            total += next;
            weight = (floats)(rounded(weight) >> 16 | (rounded(next) & 0xffff0000));
        }
        store(scores, num_steps(token, kind) * across, weight, 0);
    }
    return 1.0f / total;
}

/* Store a vector of queries' mixed values: sums for a dimension below those for the other. */
INLINE void scatter(const float *sums, int across, floats scale, void *mixed, size_t at,
                    size_t stride, int queries, int width, enum kind kind) {
    for (int dim = 0; dim < width; dim += LANES) {
        floats square[LANES];
        UNROLLED for (int i = 0; i < LANES; i++)
            square[i] = load(sums, (dim + i) * across, 0) * scale;
        transpose(square);
        UNROLLED for (int query = 0; query < LANES; query++)
            if (query < queries)
                store(mixed, at + query * stride + dim, square[query], kind != FLOATS);
    }
}

/* Mix the values for some vectors of a head's queries, the first of which is `query`. */
INLINE void mix(const Head *head, int query, int vectors, void *mixed, size_t at, int hidden,
                enum kind kind) {
    const int across = vectors * LANES, length = head->length, width = head->width;
    const int of_width = num_steps(width, kind), of_length = num_steps(length, kind);
    const Steps keys = head->keys, values = head->values;
    float queries[of_width * across] ROOM, scores[length * across] ROOM, sums[width * across] ROOM;
    gather_queries(head, query, vectors, queries, kind);
    multiply(length, vectors, keys.first, keys.token_step, 1, queries, of_width, scores, kind);
    floats scales[VECTORS];
    UNROLLED for (int i = 0; i < vectors; i++)
        scales[i] = soften(scores + i * LANES, length, across, kind);
    multiply(width, vectors, values.first, 1, values.token_step, scores, of_length, sums, kind);
    UNROLLED for (int i = 0; i < vectors; i++, query += LANES)
        scatter(sums + i * LANES, across, scales[i], mixed, at + query * (size_t)hidden, hidden,
                length - query, width, kind);
}

/* The same, for vectors and a kind: as a function, because in one that has all of them GCC spills
 * what the loops need, which took a tenth. */
typedef void Mix(const Head *head, int query, void *mixed, size_t at, int hidden);
#define MIX(name, vectors, kind)                                                                  \
    static __attribute__((noinline)) void name(const Head *head, int query, void *mixed,          \
                                               size_t at, int hidden) {                           \
        mix(head, query, vectors, mixed, at, hidden, kind);                                       \
    }
MIX(mix_floats, 1, FLOATS)
MIX(mix_halves, 1, HALVES)
MIX(mix_pairs, 1, PAIRS)
MIX(mix_more_floats, VECTORS, FLOATS)
MIX(mix_more_halves, VECTORS, HALVES)
MIX(mix_more_pairs, VECTORS, PAIRS)
static Mix *const MIXES[] = {mix_floats, mix_halves, mix_pairs};
static Mix *const MIXES_OF_MORE[] = {mix_more_floats, mix_more_halves, mix_more_pairs};

/* Attend with one head over the `length` tokens of one row, which begin at `token`. */
INLINE void attend(const void *qkv, void *mixed, size_t token, int length, int hidden, int number,
                   int width, enum kind kind) {
    const size_t stride = 3 * (size_t)hidden, first = token * stride + (size_t)number * width;
    const size_t at = token * (size_t)hidden + (size_t)number * width;
    const int is_copied = length > NEAR || kind != FLOATS;
    word keys[is_copied ? num_steps(width, kind) * length : 1] ROOM;
    word values[is_copied ? num_steps(length, kind) * width : 1] ROOM;
    Head head = {.qkv = qkv, .first = first, .stride = stride, .length = length, .width = width};
    head.keys = along_dimensions(&head, first + hidden, keys, kind);
    head.values = along_tokens(&head, first + 2 * (size_t)hidden, values, kind);
    for (int query = 0; query < length; query += VECTORS * LANES) {
        Mix *const one_or_more = (length - query > LANES ? MIXES_OF_MORE : MIXES)[kind];
        one_or_more(&head, query, mixed, at, hidden);
    }
}

INLINE void attend_rows(const void *qkv, void *mixed, const int64_t *starts,
                        const int64_t *lengths, int rows, int hidden, int heads,
                        enum kind kind) {
    /* rows are sorted by length: neighbours dealt out in turns are an even share */
#pragma omp for schedule(static, 4) nowait
    for (int i = 0; i < rows * heads; i++)
        attend(qkv, mixed, starts[i / heads], (int)lengths[i / heads], hidden, i % heads,
               hidden / heads, kind);
}

/* Compute attend_float32. */
void share_attention(const float *qkv, float *mixed, const int64_t *starts,
                     const int64_t *lengths, int rows, int hidden, int heads) {
    attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, FLOATS);
}

/* The library's functions: qkv [tokens, 3 * hidden] to mixed [tokens, hidden] for rows that begin
 * at tokens `starts` and have `lengths`, both [rows]; queries are scaled. A head's width is a
 * multiple of LANES. */

void attend_float32(const float *qkv, float *mixed, const int64_t *starts,
                    const int64_t *lengths, int rows, int hidden, int heads) {
#pragma omp parallel
    share_attention(qkv, mixed, starts, lengths, rows, hidden, heads);
}

void attend_bfloat16(const void *qkv, void *mixed, const int64_t *starts, const int64_t *lengths,
                     int rows, int hidden, int heads) {
    const int is_in_pairs = HAS_PAIRS && hidden / heads % (2 * LANES) == 0;
#pragma omp parallel
    {
        if (is_in_pairs)
            attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, PAIRS);
        else
            attend_rows(qkv, mixed, starts, lengths, rows, hidden, heads, HALVES);
    }
}
