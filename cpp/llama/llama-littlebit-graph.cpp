// LittleBit in libllama: building the factorized product.
//
//   y = sum over paths of  h * (U (l * (V^T (g * x))))

#include "llama-littlebit.h"
#include "llama-littlebit-proxy.h"
#include "littlebit-node.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef LITTLEBIT_NATIVE
#include "littlebit.h"
#endif

// The hook's macros end here: below, ggml's functions are meant.
#undef ggml_mul_mat
#undef ggml_mul_mat_id

void lb_refuse(const char * op, const ggml_tensor * w) {
    throw std::runtime_error(std::string("littlebit: ") + op + " needs the values of '" + w->name +
            "', which is factorized; convert the model without factorizing this weight");
}

// x as contiguous rows of F32
static ggml_tensor * f32_rows(ggml_context * ctx, ggml_tensor * x) {
    if (x->type != GGML_TYPE_F32) {
        return ggml_cast(ctx, x, GGML_TYPE_F32);
    }
    return x->nb[0] == sizeof(float) ? x : ggml_cont(ctx, x);
}

//
// native: one custom node for each half
//

#ifdef LITTLEBIT_NATIVE

bool lb_native_available() { return true; }

const char * lb_native_kernel() { return lb_kernel_active(); }

static void check(lb_status status) {
    if (status != LB_OK) {
        GGML_ABORT("littlebit: %s (%s)", lb_status_text(status), lb_last_error_message());
    }
}

// scratch of one thread; grows, is never shared
static uint8_t * scratch(size_t size) {
    static thread_local std::vector<uint8_t> work;
    if (work.size() < size) {
        work.resize(size);
    }
    return work.data();
}

// a node on the CPU, rows split over the threads
static void compute_stage(ggml_tensor * dst, int ith, int nth, void *) {
    const lb_node node = lb_node_get(dst);
    const lb_node_sources src = lb_node_get_sources(dst);
    const ggml_tensor * x = src.x, * tile = src.tile, * post = src.post, * pre = src.pre, * add = src.add, * ids = src.ids;
    const uint32_t mode = node.f32 ? LB_MODE_F32 : LB_MODE_INT;

    auto run = [&](int64_t expert, const float * xp, size_t xs, int64_t n, const float * ap, size_t as, float * yp, size_t ys) {
        const int64_t slice = expert*node.paths + node.path;
        lb_stage stage = {};
        stage.struct_size = sizeof(stage);
        stage.rows      = post->ne[0];
        stage.cols      = x->ne[0];
        stage.tile      = (const uint8_t *) tile->data + slice*tile->nb[3];
        stage.tile_size = tile->nb[3];
        stage.post      = (const uint16_t *) ((const char *) post->data + slice*post->nb[1]);
        stage.pre       = pre ? (const uint16_t *) ((const char *) pre->data + slice*pre->nb[1]) : nullptr;
        size_t size = 0;
        check(lb_stage_work_size(&stage, mode, n, &size));
        check(lb_stage_run(&stage, mode, xp, xs, n, ap, as, yp, ys, scratch(size), size, ith, nth));
    };
    auto at = [](const ggml_tensor * t, int64_t i1, int64_t i2, int64_t i3) {
        return (float *) ((char *) t->data + i1*t->nb[1] + i2*t->nb[2] + i3*t->nb[3]);
    };
    auto stride = [](const ggml_tensor * t) { return t->nb[1]/sizeof(float); };

    if (ids) {
        // each (token, slot) has its expert; x may be one row for all slots of a token
        for (int64_t tok = 0; tok < dst->ne[2]; ++tok) {
            for (int64_t slot = 0; slot < dst->ne[1]; ++slot) {
                const int32_t expert = *(const int32_t *) ((const char *) ids->data + slot*ids->nb[0] + tok*ids->nb[1]);
                const float * ap = add ? at(add, slot, tok, 0) : nullptr;
                run(expert, at(x, slot % x->ne[1], tok, 0), stride(x), 1, ap, 0, at(dst, slot, tok, 0), 0);
            }
        }
        return;
    }
    if (ggml_is_contiguous(x)) {
        run(0, (const float *) x->data, stride(x), ggml_nrows(x), add ? (const float *) add->data : nullptr,
                stride(dst), (float *) dst->data, stride(dst));
        return;
    }
    for (int64_t i3 = 0; i3 < x->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < x->ne[2]; ++i2) {
            run(0, at(x, 0, i2, i3), stride(x), x->ne[1], add ? at(add, 0, i2, i3) : nullptr,
                    stride(dst), at(dst, 0, i2, i3), stride(dst));
        }
    }
}

#else

bool lb_native_available() { return false; }

const char * lb_native_kernel() { return ""; }

static void compute_stage(ggml_tensor * dst, int, int, void *) {
    GGML_ABORT("littlebit: node '%s' on the CPU in a build without liblittlebit", dst->name);
}

#endif

ggml_tensor * lb_stage_node(ggml_context * ctx, ggml_tensor * x, ggml_tensor * tile, ggml_tensor * post,
        ggml_tensor * pre, ggml_tensor * add, ggml_tensor * ids, lb_node node) {
    node.pre = pre != nullptr;
    node.add = add != nullptr;
    node.ids = ids != nullptr;
    std::vector<ggml_tensor *> src = { x, tile, post };
    for (ggml_tensor * t : { pre, add, ids }) {
        if (t) {
            src.push_back(t);
        }
    }
    const int64_t ne1 = ids ? ids->ne[0] : x->ne[1];
    const int64_t ne2 = ids ? ids->ne[1] : x->ne[2];
    const int64_t ne3 = ids ? 1          : x->ne[3];
    ggml_tensor * dst = ggml_custom_4d(ctx, GGML_TYPE_F32, post->ne[0], ne1, ne2, ne3, src.data(), (int) src.size(),
            compute_stage, GGML_N_TASKS_MAX, nullptr);
    lb_node_set(dst, node);
    return dst;
}

// l * (V^T (g * x)). The matrices of an input group have one V, g and l, named after the group, and read the same x:
// their first half is computed once.
static ggml_tensor * input_half(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, const lb_node & node) {
    ggml_tensor * V = w->src[0], * g = w->src[2], * l = w->src[3];
    const bool grouped = strncmp(V->name, w->name, strlen(w->name) - strlen("weight")) != 0;
    std::string name = std::string(grouped ? V->name : w->name) + " (V" + std::to_string(node.path) + ")";
    name.resize(std::min<size_t>(name.size(), GGML_MAX_NAME - 1)); // as ggml cuts it
    if (grouped && !ids) {
        ggml_tensor * t = ggml_get_tensor(ctx, name.c_str());
        if (t && lb_is_node(t) && t->src[0] == x && t->src[1] == V && lb_node_get(t).path == node.path) {
            return t;
        }
    }
    ggml_tensor * t = lb_stage_node(ctx, x, V, l, g, nullptr, ids, node);
    ggml_set_name(t, name.c_str());
    return t;
}

static ggml_tensor * native(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    ggml_tensor * U = w->src[1], * h = w->src[4];
    lb_node node = {};
    node.paths = w->op_params[2];
    node.f32   = w->op_params[1] == LB_LOWERING_NATIVE_F32;
    ggml_tensor * y = nullptr;
    for (int p = 0; p < w->op_params[2]; ++p) {
        node.path = p;
        ggml_tensor * t = input_half(ctx, w, x, ids, node);
        y = lb_stage_node(ctx, t, U, h, nullptr, y, ids, node);
        ggml_format_name(y, "%s (U%d)", w->name, p);
    }
    return y;
}

bool lb_native_on(ggml_backend_dev_t dev, int64_t rows, int64_t cols) {
    // Not every backend answers for itself: RPC says yes to everything, and would send a pointer to compute_stage.
    if (strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "CUDA") != 0) {
        return false;
    }
    ggml_context * ctx = ggml_init({ 8*ggml_tensor_overhead(), nullptr, true });
    ggml_tensor * x    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, 1);
    ggml_tensor * tile = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, 32, GGML_PAD(cols, 16)/8, GGML_PAD(rows, 32)/32, 1);
    ggml_tensor * post = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, rows, 1);
    lb_node node = {};
    node.paths = 1;
    const bool supported = ggml_backend_dev_supports_op(dev, lb_stage_node(ctx, x, tile, post, nullptr, nullptr, nullptr, node));
    ggml_free(ctx);
    return supported && lb_device_computes(dev);
}

//
// portable: standard ops on expanded factors
//

// signs (m x): block types need zeros up to their row length
static ggml_tensor * signs(ggml_context * ctx, ggml_tensor * m, ggml_tensor * x, ggml_tensor * ids) {
    if (m->ne[0] > x->ne[0]) {
        x = ggml_pad(ctx, x, (int) (m->ne[0] - x->ne[0]), 0, 0, 0);
    }
    return ids ? ggml_mul_mat_id(ctx, m, x, ids) : ggml_mul_mat(ctx, m, x);
}

// scales of the chosen experts, [n, n_used, n_tokens], or the one row there is
static ggml_tensor * scales(ggml_context * ctx, ggml_tensor * s, ggml_tensor * ids) {
    if (!ids) {
        return s;
    }
    ggml_tensor * flat = ggml_reshape_1d(ctx, ggml_cont(ctx, ids), ids->ne[0]*ids->ne[1]);
    return ggml_reshape_3d(ctx, ggml_get_rows(ctx, s, flat), s->ne[0], ids->ne[0], ids->ne[1]);
}

static ggml_tensor * portable(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    if (ids && x->ne[1] != ids->ne[0]) {
        // experts have input scales of their own, so each slot needs its copy of x
        x = ggml_repeat_4d(ctx, x, x->ne[0], ids->ne[0], ids->ne[1], 1);
    }
    ggml_tensor * y = nullptr;
    for (int p = 0; p < w->op_params[2]; ++p) {
        ggml_tensor ** f = w->src + 5*p;
        ggml_tensor * t = ggml_mul(ctx, x, scales(ctx, f[2], ids));
        t = ggml_mul(ctx, signs(ctx, f[0], t, ids), scales(ctx, f[3], ids));
        t = ggml_mul(ctx, signs(ctx, f[1], t, ids), scales(ctx, f[4], ids));
        y = y ? ggml_add(ctx, y, t) : t;
    }
    return y;
}

//
// entry points
//

static ggml_tensor * product(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    GGML_ASSERT(w->ne[0] == x->ne[0]);
    x = f32_rows(ctx, x);
    return w->op_params[1] == LB_LOWERING_PORTABLE ? portable(ctx, w, x, ids) : native(ctx, w, x, ids);
}

ggml_tensor * lb_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x) {
    if (w->ne[2] != 1) {
        lb_refuse("ggml_mul_mat of a stack", w);
    }
    return product(ctx, w, x, nullptr);
}

ggml_tensor * lb_mul_mat_id(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    return product(ctx, w, x, ids);
}
