/* A whole layer of a few tokens in one call, on a CPU: what lies between seven calls takes about as
 * long as these then. */

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

/* x to y, both [tokens, hidden], for rows as in attend_float32; by way of `wide`
 * [tokens, 3 * hidden or inner, whichever is more] and `narrow` [2, tokens, hidden]. */
void layer_float32(const Layer *layer, const float *x, float *y, float *wide, float *narrow,
                   const int64_t *starts, const int64_t *lengths, int rows, int tokens,
                   int heads) {
    const Layer *l = layer;
    const int hidden = l->hidden, inner = l->inner;
    float *mixed = narrow, *attended = narrow + (size_t)tokens * hidden;
#pragma omp parallel
    {
        share_linear(x, l->qkv.panels, l->qkv.bias, wide, tokens, hidden, 3 * hidden, 0);
#pragma omp barrier
        share_attention(wide, mixed, starts, lengths, rows, hidden, heads);
#pragma omp barrier
        share_linear(mixed, l->attention_out.panels, l->attention_out.bias, attended, tokens,
                     hidden, hidden, 0);
#pragma omp barrier
        share_add_norm(attended, x, l->attention_norm.weight, l->attention_norm.bias, l->eps,
                       tokens, hidden);
#pragma omp barrier
        share_linear(attended, l->feed_in.panels, l->feed_in.bias, wide, tokens, hidden, inner, 1);
#pragma omp barrier
        share_linear(wide, l->feed_out.panels, l->feed_out.bias, y, tokens, inner, hidden, 0);
#pragma omp barrier
        share_add_norm(y, attended, l->feed_norm.weight, l->feed_norm.bias, l->eps, tokens,
                       hidden);
    }
}
