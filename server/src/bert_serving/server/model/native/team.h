/* Work that the threads of a team share: each of them calls it, and has done its part when it
 * returns. All is done when all have met at a barrier.
 */

#pragma once

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* See linear_float32, attend_float32 and add_norm_float32. */
void share_linear(const float *x, const float *panels, const float *bias, float *y, int tokens,
                  int in, int out, int has_gelu);
void share_attention(const float *qkv, float *mixed, const int64_t *starts,
                     const int64_t *lengths, int rows, int hidden, int heads);
void share_add_norm(float *x, const float *residual, const float *weight, const float *bias,
                    float eps, int tokens, int hidden);

#pragma GCC visibility pop
