/* Checks of an op's gradients, given the program that it is in. */
#ifndef HDT_GRADIENT_H
#define HDT_GRADIENT_H

#include <heddle/program.h>

#include "tests/support/hdt.h"

/* `build` makes the result: a loss, or an F32 tensor, which is multiplied by a fixed seed and summed.
 * Inputs are floats, or I32: ids 0 .. 10, "targets" (some of them -1), "counts" 3, 5, ...,
 * "offsets" 1, 4, 6. */
typedef struct hdt_gradient_case {
    const char *name;
    hd_tensor (*build)(hd_program *program);
    int64_t terms; /* of the longest sum of products on the way to one gradient */
} hdt_gradient_case;

/* Forward against the fp64 reference backend; gradients of all inputs that need one and of all
 * parameters against central differences of it, element by element. */
void hdt_check_gradients(const hdt_gradient_case *one, bool exact);

/* A second run that accumulates doubles the weights' gradients. */
void hdt_check_accumulation(const hdt_gradient_case *one);

/* A plan's memory, with sharing and in-place ops, gives the bits that separate memory gives. */
void hdt_check_planned_memory(const hdt_gradient_case *one, bool exact);

/* The three above as tests over `count` cases, which must outlive the run; one table a program. */
void hdt_add_gradient_tests(TCase *tests, const hdt_gradient_case *cases, int count);

#endif
