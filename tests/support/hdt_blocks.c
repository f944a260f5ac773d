/* Programs of blocks with weights. */
#include "tests/support/hdt_blocks.h"

#include <heddle/nn.h>

static hd_program *begin_program(const char *name)
{
    hd_program *p;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = name}, &p));
    return p;
}

static hd_tensor weight(hd_program *p, const char *name, int64_t count)
{
    return hd_parameter(
        p, &(hd_parameter_options){
               .name = name, .rank = 1, .dims = {count}, .init = HD_INIT_NORMAL, .std = 1});
}

/* x w tied b, through some workspace; odd blocks have a weight more. "tied" is every block's. */
static hd_tensor block(hd_program *p, hd_tensor x, int number)
{
    hd_scope_begin(p, "h.%d", number);
    x = hdt_mul(p, x, weight(p, "w", HDT_BLOCK_COUNT));
    x = hdt_through(p, x, 300);
    x = hdt_mul(p, x, weight(p, "/tied", HDT_BLOCK_COUNT));
    if (number % 2) x = hdt_mul(p, x, weight(p, "more", HDT_BLOCK_COUNT));
    x = hdt_mul(p, x, weight(p, "b", HDT_BLOCK_COUNT));
    hd_scope_end(p);
    return x;
}

hd_program *hdt_blocks_program(const char *name, const int *order, int count)
{
    hd_program *p = begin_program(name);
    hd_scope_begin(p, "model"); /* has scopes inside: no block, nor what it reads */
    hd_tensor x =
        hdt_mul(p, hdt_vector(p, "x", HDT_BLOCK_COUNT), weight(p, "first", HDT_BLOCK_COUNT));
    for (int b = 0; b < count; b++)
        x = block(p, hdt_double(p, x), order[b]);
    x = hdt_mul(p, x, weight(p, "last", HDT_BLOCK_COUNT));
    hd_scope_end(p);
    hd_output(p, x, "y");
    hdt_assert_ok(hd_program_finish(p));
    return p;
}

static hd_tensor matrix(hd_program *p, hd_tensor x, const char *name, const hdt_matrices *of,
                        bool bias)
{
    return hd_linear(
        p, x, &(hd_linear_options){.name = name, .outputs = of->width, .bias = bias, .std = 0.1});
}

hd_program *hdt_matrices_program(const hdt_matrices *of)
{
    hd_program *p = begin_program("matrices");
    hd_tensor x = hd_input(p, "x", HD_DTYPE_F32, 2, (int64_t[]){of->rows, of->width});
    for (int b = of->first; b < of->first + of->count; b++) {
        hd_scope_begin(p, "block.%d", b);
        x = matrix(p, x, "w", of, of->biases && b % 2 == 1);
        hd_scope_end(p);
    }
    if (of->last) x = matrix(p, x, "last", of, false);
    hd_output(p, x, "y");
    hdt_assert_ok(hd_program_finish(p));
    return p;
}
