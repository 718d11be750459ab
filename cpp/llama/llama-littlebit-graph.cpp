// LittleBit in libllama: building the factorized product.
//
//   y = sum over paths of  h * (U (l * (V^T (g * x))))

#include "llama-littlebit.h"
#include "llama-littlebit-proxy.h"
#include "littlebit-node.h"

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
#undef ggml_init

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
// native: a node for the first and one for the second halves of the weights that multiply one input
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
static void compute_half(ggml_tensor * dst, int ith, int nth, void *) {
    const lb_node node = lb_node_get(dst);
    const ggml_tensor * x = dst->src[0], * ids = node.ids ? dst->src[1] : nullptr;
    const uint32_t mode = node.f32 ? LB_MODE_F32 : LB_MODE_INT;
    lb_node_part parts[LB_NODE_MEMBERS*LB_NODE_PATHS];
    lb_node_parts(dst, parts);

    for (uint32_t i = 0; i < node.members*node.paths; ++i) {
        const lb_node_part & part = parts[i];
        // n columns from `column` of the part's block in dst
        auto run = [&](int64_t expert, const float * xp, size_t xs, int64_t n, int64_t column) {
            const int64_t slice = expert*node.paths + part.path;
            lb_stage stage = {};
            stage.struct_size = sizeof(stage);
            stage.rows      = part.rows;
            stage.cols      = part.cols;
            stage.tile      = (const uint8_t *) part.tile->data + slice*part.tile->nb[3];
            stage.tile_size = part.tile->nb[3];
            stage.post      = (const uint16_t *) ((const char *) part.post->data + slice*part.post->nb[1]);
            stage.pre       = part.pre ? (const uint16_t *) ((const char *) part.pre->data + slice*part.pre->nb[1]) : nullptr;
            size_t size = 0;
            check(lb_stage_work_size(&stage, mode, n, &size));
            float * y = (float *) dst->data + part.to + column*part.rows;
            // A thread has the same rows in all paths, so it adds to what it wrote.
            check(lb_stage_run(&stage, mode, xp, xs, n, part.add ? y : nullptr, part.rows, y, part.rows, scratch(size), size,
                    ith, nth));
        };
        auto x_at = [&](int64_t i1, int64_t i2, int64_t i3) {
            return (const float *) ((const char *) x->data + i1*x->nb[1] + i2*x->nb[2] + i3*x->nb[3]);
        };
        const float * block = (const float *) x->data + part.from; // of a second half

        if (ids) {
            // each (token, slot) has its expert; x may be one row for all slots of a token
            for (int64_t tok = 0; tok < dst->ne[2]; ++tok) {
                for (int64_t slot = 0; slot < dst->ne[1]; ++slot) {
                    const int32_t expert = *(const int32_t *) ((const char *) ids->data + slot*ids->nb[0] + tok*ids->nb[1]);
                    const int64_t column = tok*dst->ne[1] + slot;
                    const float * xp = node.second ? block + column*part.cols : x_at(slot % x->ne[1], tok, 0);
                    run(expert, xp, part.cols, 1, column);
                }
            }
        } else if (node.second) {
            run(0, block, part.cols, ggml_nrows(dst), 0);
        } else if (ggml_is_contiguous(x)) {
            run(0, (const float *) x->data, part.cols, ggml_nrows(x), 0);
        } else {
            for (int64_t i3 = 0; i3 < x->ne[3]; ++i3) {
                for (int64_t i2 = 0; i2 < x->ne[2]; ++i2) {
                    run(0, x_at(0, i2, i3), x->nb[1]/sizeof(float), x->ne[1], (i3*x->ne[2] + i2)*x->ne[1]);
                }
            }
        }
    }
}

#else

bool lb_native_available() { return false; }

const char * lb_native_kernel() { return ""; }

static void compute_half(ggml_tensor * dst, int, int, void *) {
    GGML_ABORT("littlebit: node '%s' on the CPU in a build without liblittlebit", dst->name);
}

#endif

ggml_tensor * lb_node_new(ggml_context * ctx, ggml_tensor * x, ggml_tensor * ids, lb_node node) {
    ggml_tensor * src[] = { x, ids };
    const int64_t ne1 = ids ? ids->ne[0] : x->ne[1];
    const int64_t ne2 = ids ? ids->ne[1] : x->ne[2];
    const int64_t ne3 = ids ? 1          : x->ne[3];
    ggml_tensor * dst = ggml_custom_4d(ctx, GGML_TYPE_F32, 0, ne1, ne2, ne3, src, ids ? 2 : 1, compute_half, GGML_N_TASKS_MAX,
            nullptr);
    node.members = 0;
    node.ids = ids != nullptr;
    lb_node_set(dst, node);
    return dst;
}

int64_t lb_node_add(ggml_tensor * t, ggml_tensor * tile, ggml_tensor * post, ggml_tensor * pre, uint32_t slot) {
    lb_node node = lb_node_get(t);
    ggml_tensor ** src = t->src + lb_node_at(node) + node.members*lb_node_each(node);
    src[0] = tile;
    src[1] = post;
    if (!node.second) {
        src[2] = pre;
    }
    node.slots |= slot << 2*node.members;
    node.members++;
    lb_node_set(t, node);
    const int64_t before = GGML_PAD(t->ne[0], LB_NODE_ALIGN);
    t->ne[0] = before + post->ne[0]*(node.second ? 1 : node.paths);
    for (int i = 1; i < GGML_MAX_DIMS; ++i) {
        t->nb[i] = t->nb[i - 1]*t->ne[i - 1];
    }
    return before;
}

// The nodes for the products of one input. Models build the products of q, k and v, or of gate and up, one after the other and
// take them into a graph later, so each finds the nodes of the one before and joins them: fewer nodes, and on a GPU fewer launches.
struct siblings {
    ggml_context * ctx = nullptr;
    ggml_tensor  * given, * ids; // what the model multiplies, and the same as rows of F32
    ggml_tensor  * x;
    ggml_tensor  * first, * second;
};

static thread_local siblings current;

void lb_forget_nodes() { current = {}; }

static ggml_backend_buffer_type_t place(const ggml_tensor * t) {
    return t->buffer ? ggml_backend_buffer_get_type(t->buffer) : nullptr;
}

// the slot that holds w's input half, -1 if there is none
static int slot_of(const siblings & s, const ggml_tensor * w) {
    const lb_node n = lb_node_get(s.first);
    for (int i = 0; i < (int) n.members; ++i) {
        if (s.first->src[lb_node_at(n) + i*lb_node_each(n)] == w->src[0]) {
            return i;
        }
    }
    return -1;
}

static bool may_join(const siblings & s, const ggml_context * ctx, const ggml_tensor * w, const ggml_tensor * x,
        const ggml_tensor * ids, const lb_node & node) {
    if (s.ctx != ctx || s.given != x || s.ids != ids) {
        return false;
    }
    // A graph that holds a node counts on its size.
    if ((s.first->flags | s.second->flags) & GGML_TENSOR_FLAG_COMPUTE) {
        return false;
    }
    const lb_node first = lb_node_get(s.first), second = lb_node_get(s.second);
    const uint32_t room = ids ? LB_NODE_MEMBERS - 1 : LB_NODE_MEMBERS;
    return first.paths == node.paths && first.f32 == node.f32 && first.stays == node.stays && second.members < room &&
        (first.members < room || slot_of(s, w) >= 0) && place(s.first->src[lb_node_at(first)]) == place(w->src[0]) &&
        place(s.second->src[lb_node_at(second)]) == place(w->src[1]);
}

// The result is a block of the second node.
static ggml_tensor * native(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids) {
    ggml_tensor * V = w->src[0], * U = w->src[1], * g = w->src[2], * l = w->src[3], * h = w->src[4];
    lb_node node = {};
    node.paths = w->op_params[2];
    node.f32   = w->op_params[1] == LB_LOWERING_NATIVE_F32;
    node.stays = w->op_params[4] != 0;
    // Outside of blocks no other product has the input, and results may be outputs of the graph, which a view cannot be.
    const bool alone = strstr(w->name, "blk.") == nullptr;
    if (alone || !may_join(current, ctx, w, x, ids, node)) {
        current.ctx   = ctx;
        current.given = x;
        current.ids   = ids;
        current.x     = f32_rows(ctx, x);
        current.first = lb_node_new(ctx, current.x, ids, node);
        ggml_format_name(current.first, "%s (V)", w->name);
        node.second = 1;
        current.second = lb_node_new(ctx, current.first, ids, node);
        ggml_format_name(current.second, "%s (U)", w->name);
    }
    // The matrices of an input group have one V, g and l.
    int slot = slot_of(current, w);
    if (slot < 0) {
        slot = (int) lb_node_get(current.first).members;
        lb_node_add(current.first, V, l, g, 0);
    }
    ggml_tensor * y = current.second;
    const int64_t before = lb_node_add(y, U, h, nullptr, slot);
    if (alone) {
        lb_forget_nodes(); // nothing joins it
        return y;
    }
    const int64_t rows = h->ne[0];
    const size_t row = rows*sizeof(float);
    ggml_tensor * result = ggml_view_4d(ctx, y, rows, y->ne[1], y->ne[2], y->ne[3], row, row*y->ne[1], row*y->ne[1]*y->ne[2],
            before*ggml_nrows(y)*sizeof(float));
    ggml_set_name(result, w->name);
    return result;
}

bool lb_native_on(ggml_backend_dev_t dev, int64_t rows, int64_t cols) {
    // Not every backend answers for itself: RPC says yes to everything, and would send a pointer to compute_half.
    if (strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "CUDA") != 0) {
        return false;
    }
    ggml_context * ctx = ggml_init({ 8*ggml_tensor_overhead(), nullptr, true });
    ggml_tensor * x    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, 1);
    ggml_tensor * tile = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, 32, GGML_PAD(cols, 16)/8, GGML_PAD(rows, 32)/32, 1);
    ggml_tensor * post = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, rows, 1);
    ggml_tensor * pre  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, cols, 1);
    lb_node node = {};
    node.paths = 1;
    ggml_tensor * half = lb_node_new(ctx, x, nullptr, node);
    lb_node_add(half, tile, post, pre, 0);
    const bool supported = ggml_backend_dev_supports_op(dev, half);
    ggml_free(ctx);
    return supported;
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
    return w->op_params[1] == LB_LOWERING_PORTABLE ? portable(ctx, w, f32_rows(ctx, x), ids) : native(ctx, w, x, ids);
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
