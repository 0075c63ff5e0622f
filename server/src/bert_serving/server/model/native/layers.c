/* Whole layers in one call, on a CPU: of a few tokens, what lies between seven calls for each takes
 * about as long as these. */

#include <stddef.h>

#include "team.h"

typedef struct {
    const float *panels, *bias; /* see linear_float32 */
} Linear;

typedef struct {
    const float *weight, *bias; /* [hidden] */
} Norm;

/* A layer's weights and sizes. */
typedef struct {
    Linear qkv, attention_out, feed_in, feed_out;
    Norm attention_norm, feed_norm;
    float eps;
    int hidden, inner;
} Layer;

/* Compute a layer; in may be y. */
static void share_layer(const Layer *l, const float *in, float *y, float *wide, float *mixed,
                        float *attended, const int64_t *starts, const int64_t *lengths, int rows,
                        int tokens, int heads) {
    const int hidden = l->hidden, inner = l->inner;
    share_linear(in, l->qkv.panels, l->qkv.bias, wide, tokens, hidden, 3 * hidden, 0);
#pragma omp barrier
    share_attention(wide, mixed, starts, lengths, rows, hidden, heads);
#pragma omp barrier
    share_linear(mixed, l->attention_out.panels, l->attention_out.bias, attended, tokens, hidden,
                 hidden, 0);
#pragma omp barrier
    share_add_norm(attended, in, l->attention_norm.weight, l->attention_norm.bias, l->eps, tokens,
                   hidden);
#pragma omp barrier
    share_linear(attended, l->feed_in.panels, l->feed_in.bias, wide, tokens, hidden, inner, 1);
#pragma omp barrier
    share_linear(wide, l->feed_out.panels, l->feed_out.bias, y, tokens, inner, hidden, 0);
#pragma omp barrier
    share_add_norm(y, attended, l->feed_norm.weight, l->feed_norm.bias, l->eps, tokens, hidden);
#pragma omp barrier
}

/* x to y, both [tokens, hidden], through all of at least one layer, for rows as in attend_float32;
 * by way of `wide` [tokens, 3 * hidden or inner, whichever is more] and `narrow`
 * [2, tokens, hidden]. */
void layers_float32(const Layer *const *layers, int count, const float *x, float *y, float *wide,
                    float *narrow, const int64_t *starts, const int64_t *lengths, int rows,
                    int tokens, int heads) {
    float *mixed = narrow, *attended = narrow + (size_t)tokens * layers[0]->hidden;
#pragma omp parallel
    for (int layer = 0; layer < count; layer++)
        share_layer(layers[layer], layer ? y : x, y, wide, mixed, attended, starts, lengths, rows,
                    tokens, heads);
}
