// LittleBit in libllama, graph side: what model code sees. Included as the last line of llama-graph.h, so that every
// weight multiplication in libllama passes through here.
//
// A factorized weight has no dense tensor. A proxy stands for it: a tensor of the logical shape whose src[] are the
// factors. Multiplying by a proxy builds the factorized product; any other use of a proxy is an error, because its
// data are not the weight's values.

#pragma once

#include "ggml.h"

constexpr int32_t LB_PROXY_MAGIC = 0x4c425058; // "LBPX", op_params[0] of a proxy

static inline bool lb_is_proxy(const ggml_tensor * t) {
    return t != nullptr && t->op == GGML_OP_NONE && t->view_src != nullptr && t->op_params[0] == LB_PROXY_MAGIC;
}

// factorized products; x is converted to contiguous rows of F32 where needed
ggml_tensor * lb_mul_mat   (ggml_context * ctx, ggml_tensor * w, ggml_tensor * x);
ggml_tensor * lb_mul_mat_id(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids);

// libllama makes a context: nodes of other ones, which may have stood in the same memory, are not to be joined any more
void lb_forget_nodes();

// throws: the model's code wants the values of a factorized weight
[[noreturn]] void lb_refuse(const char * op, const ggml_tensor * w);

static inline ggml_tensor * lb_hook_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x) {
    return lb_is_proxy(w) ? lb_mul_mat(ctx, w, x) : ggml_mul_mat(ctx, w, x);
}

static inline ggml_tensor * lb_hook_mul_mat_id(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    return lb_is_proxy(w) ? lb_mul_mat_id(ctx, w, x, ids) : ggml_mul_mat_id(ctx, w, x, ids);
}

static inline ggml_context * lb_hook_init(ggml_init_params params) {
    lb_forget_nodes();
    return ggml_init(params);
}

// passes a tensor that is no proxy
static inline ggml_tensor * lb_dense(const char * op, ggml_tensor * t) {
    if (lb_is_proxy(t)) {
        lb_refuse(op, t);
    }
    return t;
}

// A macro is not expanded again inside its own expansion, so each guard ends in ggml's function.
#define ggml_mul_mat(ctx, a, b)            lb_hook_mul_mat(ctx, a, b)
#define ggml_mul_mat_id(ctx, a, b, ids)    lb_hook_mul_mat_id(ctx, a, b, ids)
#define ggml_init(...)                     lb_hook_init(__VA_ARGS__)
#define ggml_get_rows(ctx, a, b)           ggml_get_rows(ctx, lb_dense("ggml_get_rows", a), b)
#define ggml_cast(ctx, a, type)            ggml_cast(ctx, lb_dense("ggml_cast", a), type)
#define ggml_cont(ctx, a)                  ggml_cont(ctx, lb_dense("ggml_cont", a))
#define ggml_transpose(ctx, a)             ggml_transpose(ctx, lb_dense("ggml_transpose", a))
#define ggml_permute(ctx, a, ...)          ggml_permute(ctx, lb_dense("ggml_permute", a), __VA_ARGS__)
#define ggml_reshape_1d(ctx, a, ...)       ggml_reshape_1d(ctx, lb_dense("ggml_reshape_1d", a), __VA_ARGS__)
#define ggml_reshape_2d(ctx, a, ...)       ggml_reshape_2d(ctx, lb_dense("ggml_reshape_2d", a), __VA_ARGS__)
#define ggml_reshape_3d(ctx, a, ...)       ggml_reshape_3d(ctx, lb_dense("ggml_reshape_3d", a), __VA_ARGS__)
#define ggml_reshape_4d(ctx, a, ...)       ggml_reshape_4d(ctx, lb_dense("ggml_reshape_4d", a), __VA_ARGS__)
#define ggml_view_1d(ctx, a, ...)          ggml_view_1d(ctx, lb_dense("ggml_view_1d", a), __VA_ARGS__)
#define ggml_view_2d(ctx, a, ...)          ggml_view_2d(ctx, lb_dense("ggml_view_2d", a), __VA_ARGS__)
#define ggml_view_3d(ctx, a, ...)          ggml_view_3d(ctx, lb_dense("ggml_view_3d", a), __VA_ARGS__)
#define ggml_view_4d(ctx, a, ...)          ggml_view_4d(ctx, lb_dense("ggml_view_4d", a), __VA_ARGS__)
