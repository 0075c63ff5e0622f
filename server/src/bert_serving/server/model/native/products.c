/* A matrix product with bias, and the GELU of it, on a CPU. Blocked for its caches as in Goto and
 * van de Geijn 2008, Anatomy of High-Performance Matrix Multiplication: a strip of tokens and a
 * panel of the weight make a tile of the result, which stays in registers while it grows.
 */

#include <omp.h>

#include "team.h"
#include "tiles.h"

#define PANEL (VECTORS * LANES)

enum {
    LINE = 16,     /* numbers of a line of a cache */
    DEPTH = 768,   /* inputs added up at a time: with them a panel and ... */
    BLOCK = 96,    /* ... so many tokens stay in a core's second cache */
    OUTPUTS = 384, /* outputs of a thread's turn, or fewer, so that ... */
    TURNS = 8,     /* ... each thread has about so many: they may not be equally fast */
};

/* Some tokens and inputs of a product. */
typedef struct {
    const float *x;
    size_t x_step; /* from token to token */
    const float *panel; /* [depth, PANEL] */
    float *y;
    size_t y_step;
    int tokens, depth;
    int lines; /* what to have on its way of the next panel, for each line of inputs */
} Part;

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

/* Compute a tile: products added to the bias, or where there is none, to what is there. */
INLINE void tile(Part at, const float *bias, const float *next, int tokens, int has_gelu) {
    Sums sums = {};
    for (int first = 0; first < at.depth; first += LINE) {
        for (int line = 0; line < at.lines; line++)
            __builtin_prefetch(next + first * at.lines + line * LINE, 0, 2);
        for (int in = first; in < first + LINE; in++)
            add_step(sums, tokens, VECTORS, at.x + in, at.x_step, at.panel + in * PANEL, FLOATS);
    }
    UNROLLED for (int token = 0; token < tokens; token++)
        UNROLLED for (int i = 0; i < VECTORS; i++) {
            float *to = at.y + token * at.y_step;
            const floats sum = sums[token][i] + load(bias ? bias : to, i * LANES, 0);
            store(to, i * LANES, has_gelu ? gelu(sum) : sum, 0);
        }
}

static void tile_of(Part at, const float *bias, const float *next, int tokens, int has_gelu) {
#define CASE(count)                                                                               \
    case count: return has_gelu ? tile(at, bias, next, count, 1) : tile(at, bias, next, count, 0);
    switch (tokens) { EACH_SIZE(CASE) }
#undef CASE
}

/* Compute the part's tiles of some panels, and have each next panel on its way. */
static void multiply(Part at, const float *bias, int panels, size_t panel_step, int has_gelu) {
    const int strip = share(at.tokens, STRIP, 1), strips = (at.tokens + strip - 1) / strip;
    at.lines = (PANEL + strips - 1) / strips;
    for (int panel = 0; panel < panels; panel++) {
        Part of_strip = at;
        const float *next = at.panel + panel_step;
        for (int token = 0; token < at.tokens; token += strip) {
            tile_of(of_strip, bias, next, least(strip, at.tokens - token), has_gelu);
            of_strip.x += strip * at.x_step;
            of_strip.y += strip * at.y_step;
            next += at.depth * at.lines;
        }
        at.panel += panel_step;
        at.y += PANEL;
        if (bias)
            bias += PANEL;
    }
}

/* Compute linear_float32. */
void share_linear(const float *x, const float *panels, const float *bias, float *y, int tokens,
                  int in, int out, int has_gelu) {
    const int block = share(tokens, BLOCK, STRIP), depth = share(in, DEPTH, LINE);
    const int blocks = (tokens + block - 1) / block;
    const int turns = TURNS * omp_get_num_threads() / blocks + 1; /* of each block */
    const int outputs = share(out, least(OUTPUTS, out / PANEL / turns * PANEL + PANEL), PANEL);
#pragma omp for collapse(2) schedule(dynamic) nowait
    for (int token = 0; token < tokens; token += block)
        for (int output = 0; output < out; output += outputs)
            for (int first = 0; first < in; first += depth) {
                const Part part = {
                    .x = x + (size_t)token * in + first,
                    .x_step = in,
                    .panel = panels + (size_t)output * in + (size_t)first * PANEL,
                    .y = y + (size_t)token * out + output,
                    .y_step = out,
                    .tokens = least(block, tokens - token),
                    .depth = least(depth, in - first),
                };
                multiply(part, first ? 0 : bias + output, least(outputs, out - output) / PANEL,
                         (size_t)in * PANEL, has_gelu && first + depth >= in);
            }
}

/* The library's functions. */

/* Outputs of a panel, which their number has to be a multiple of. */
int panel_width(void) { return PANEL; }

/* x [tokens, in], panels [out / PANEL, in, PANEL], bias [out] to y [tokens, out]: the product,
 * or its GELU. in is a multiple of LINE. */
void linear_float32(const float *x, const float *panels, const float *bias, float *y, int tokens,
                    int in, int out, int has_gelu) {
#pragma omp parallel
    share_linear(x, panels, bias, y, tokens, in, out, has_gelu);
}
