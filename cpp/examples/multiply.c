/*
 * Lists the matrices of a LittleBit GGUF and multiplies one of them in three ways:
 *
 *   1. lb_matrix_mul, integer activations, on two threads of the library's own
 *   2. lb_matrix_mul, float activations
 *   3. lb_stage_run, integer activations, as a runtime does that owns its threads
 *
 * 1 and 3 give the same bits; 2 differs by the rounding of the activations.
 *
 *   cc -std=c99 -I include cpp/examples/multiply.c -L target/release -llittlebit -lm
 *   multiply MODEL.gguf [MATRIX [EXPERT]]
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#include "littlebit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 3, SLICES = 2 };

/* Prints what failed and why; returns whether it failed. */
static int failed(lb_status status, const char *what) {
    if (status == LB_OK) {
        return 0;
    }
    fprintf(stderr, "multiply: %s: %s (status %u: %s)\n", what, lb_last_error_message(), (unsigned)status,
            lb_status_text(status));
    return 1;
}

static int list(const lb_model *model) {
    size_t i, count = lb_model_matrix_count(model);
    for (i = 0; i < count; i++) {
        const lb_matrix *matrix;
        lb_matrix_info info;
        info.struct_size = sizeof info;
        if (failed(lb_model_matrix(model, i, &matrix), "lb_model_matrix") ||
            failed(lb_matrix_get_info(matrix, &info), "lb_matrix_get_info")) {
            return 0;
        }
        printf("%s: %llu x %llu, rank %llu, paths %u, experts %u, %.3f bits per weight\n",
               lb_matrix_name(matrix), (unsigned long long)info.d_out, (unsigned long long)info.d_in,
               (unsigned long long)info.rank, (unsigned)info.paths, (unsigned)info.experts, info.bpw);
    }
    return 1;
}

/* Runs all slices of a stage, here one after the other; a runtime gives each to a thread of its own. */
static int run(const lb_stage *stage, const float *x, const float *add, float *y) {
    size_t size;
    void *work;
    uint32_t ith;
    int ok = 1;
    if (failed(lb_stage_work_size(stage, LB_MODE_INT, COLUMNS, &size), "lb_stage_work_size")) {
        return 0;
    }
    work = malloc(size);
    if (work == NULL) {
        fprintf(stderr, "multiply: out of memory\n");
        return 0;
    }
    for (ith = 0; ok && ith < SLICES; ith++) {
        ok = !failed(lb_stage_run(stage, LB_MODE_INT, x, stage->cols, COLUMNS, add, stage->rows, y,
                                  stage->rows, work, size, ith, SLICES),
                     "lb_stage_run");
    }
    free(work);
    return ok;
}

/* y = sum over paths of h * (U (l * (V^T (g * x)))). */
static int multiply_by_stages(const lb_matrix *matrix, uint32_t expert, const lb_matrix_info *info,
                              const float *x, float *y) {
    float *t = malloc(COLUMNS * (size_t)info->rank * sizeof *t);
    uint32_t path;
    int ok = t != NULL;
    if (!ok) {
        fprintf(stderr, "multiply: out of memory\n");
    }
    for (path = 0; ok && path < info->paths; path++) {
        lb_stage v, u;
        v.struct_size = u.struct_size = sizeof(lb_stage);
        ok = !failed(lb_matrix_stage(matrix, expert, path, 0, &v), "lb_matrix_stage") &&
             !failed(lb_matrix_stage(matrix, expert, path, 1, &u), "lb_matrix_stage") &&
             run(&v, x, NULL, t) && run(&u, t, path > 0 ? y : NULL, y);
    }
    free(t);
    return ok;
}

static void show(const char *name, const float *y, size_t d_out) {
    size_t i;
    printf("%s:", name);
    for (i = 0; i < d_out && i < 4; i++) {
        printf(" %.9g", (double)y[i]);
    }
    printf("\n");
}

static int multiply(const lb_matrix *matrix, uint32_t expert) {
    lb_matrix_info info;
    size_t d_in, d_out, i, t;
    float *x = NULL, *y_int = NULL, *y_f32 = NULL, *y_stages = NULL;
    int ok = 0;

    info.struct_size = sizeof info;
    if (failed(lb_matrix_get_info(matrix, &info), "lb_matrix_get_info")) {
        return 0;
    }
    d_in = (size_t)info.d_in;
    d_out = (size_t)info.d_out;
    x = malloc(COLUMNS * d_in * sizeof *x);
    y_int = malloc(COLUMNS * d_out * sizeof *y_int);
    y_f32 = malloc(COLUMNS * d_out * sizeof *y_f32);
    y_stages = malloc(COLUMNS * d_out * sizeof *y_stages);
    if (x == NULL || y_int == NULL || y_f32 == NULL || y_stages == NULL) {
        fprintf(stderr, "multiply: out of memory\n");
        goto end;
    }
    for (t = 0; t < COLUMNS; t++) {
        for (i = 0; i < d_in; i++) {
            x[t * d_in + i] = ((float)((i * 7 + t * 13) % 31) - 15.0f) / 16.0f;
        }
    }
    if (failed(lb_matrix_mul(matrix, expert, LB_MODE_INT, x, d_in, COLUMNS, y_int, d_out, 2),
               "lb_matrix_mul, integer mode") ||
        failed(lb_matrix_mul(matrix, expert, LB_MODE_F32, x, d_in, COLUMNS, y_f32, d_out, 2),
               "lb_matrix_mul, float mode") ||
        !multiply_by_stages(matrix, expert, &info, x, y_stages)) {
        goto end;
    }
    printf("%s, expert %u, kernel %s\n", lb_matrix_name(matrix), (unsigned)expert, lb_kernel_active());
    show("int", y_int, d_out);
    show("f32", y_f32, d_out);
    show("stages", y_stages, d_out);
    if (memcmp(y_int, y_stages, COLUMNS * d_out * sizeof *y_int) != 0) {
        fprintf(stderr, "multiply: the stages give another result than the whole product\n");
        goto end;
    }
    {
        double difference = 0.0, size = 0.0;
        for (i = 0; i < COLUMNS * d_out; i++) {
            double d = (double)y_int[i] - (double)y_f32[i];
            difference += d * d;
            size += (double)y_f32[i] * (double)y_f32[i];
        }
        printf("relative difference of int and f32: %.3g\n", size > 0.0 ? sqrt(difference / size) : 0.0);
    }
    ok = 1;
end:
    free(y_stages);
    free(y_f32);
    free(y_int);
    free(x);
    return ok;
}

int main(int argc, char **argv) {
    lb_model *model;
    const lb_matrix *matrix;
    unsigned long expert = 0;
    int ok;

    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: multiply MODEL.gguf [MATRIX [EXPERT]]\n");
        return 2;
    }
    if (argc > 3) {
        char *end;
        expert = strtoul(argv[3], &end, 10);
        if (*argv[3] == '\0' || *end != '\0' || expert > UINT32_MAX) {
            fprintf(stderr, "multiply: '%s' is not the number of an expert\n", argv[3]);
            return 2;
        }
    }
    if (lb_abi_version() != LB_ABI_VERSION) {
        fprintf(stderr, "multiply: built for ABI %d, the library has %u\n", LB_ABI_VERSION,
                (unsigned)lb_abi_version());
        return 1;
    }
    if (failed(lb_model_open(argv[1], &model), "lb_model_open")) {
        return 1;
    }
    ok = list(model) &&
         !failed(argc > 2 ? lb_model_find_matrix(model, argv[2], &matrix) : lb_model_matrix(model, 0, &matrix),
                 "choosing a matrix") &&
         multiply(matrix, (uint32_t)expert);
    lb_model_free(model);
    return ok ? 0 : 1;
}
