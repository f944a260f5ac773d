/* Small ops of tests' own, and text that the library writes. */
#ifndef HDT_PROGRAM_H
#define HDT_PROGRAM_H

#include <heddle/op.h>

#include "tests/support/hdt.h"

/* A program for training, its name "p". Owned by the caller. */
hd_program *hdt_program(void);

/* An F32 input of one dim. */
hd_tensor hdt_vector(hd_program *program, const char *name, int64_t count);

/* 2 x, in place where it may be. Backward: the same. Costs 3 FLOPs and 5 bytes. */
hd_tensor hdt_double(hd_program *program, hd_tensor x);
extern const hd_op_kind hdt_op_double;

/* x w, elementwise; w may be a parameter. Its gradients are two ops, "mul_data", "mul_weight". */
hd_tensor hdt_mul(hd_program *program, hd_tensor x, hd_tensor w);

/* x and -x, of which the second is hd_op_result(program, 1). Backward: g0 - g1, either may be
 * invalid. */
hd_tensor hdt_both_signs(hd_program *program, hd_tensor x);

/* x, through `bytes` of workspace. No backward. */
hd_tensor hdt_through(hd_program *program, hd_tensor x, size_t bytes);

/* A parameter of one dim. */
hd_tensor hdt_weight(hd_program *program, const char *name, int64_t count);

/* A finished program for training of some 30 ops on vectors of several sizes, with scopes, some of them
 * recomputed, a backward from the input "seed", and gradients of the input "x": a function of
 * `seed`. Owned by the caller. */
hd_program *hdt_random_program(uint64_t seed);

/* Ops of that name in a program. */
int hdt_count_ops(const hd_program *program, const char *name);

/* Of hd_write_fn; the first one's user is an hdt_text, where text beyond the room is dropped. */
typedef struct hdt_text {
    size_t used;
    char text[1 << 16];
} hdt_text;
bool hdt_collect(void *user, const char *text);
bool hdt_drop(void *user, const char *text);

#endif
