#include "ggml-cuda-littlebit.h"
#include "littlebit-node.h"

#include "ggml-cuda/common.cuh" // of the host model in tests
#include "../cuda/launch.h"

// Sums stay below 2^31 up to here.
static constexpr int64_t LB_MAX_COLS = 1 << 18;

static constexpr int LB_PARTS = LB_NODE_MEMBERS*LB_NODE_PATHS;
static_assert(LB_PARTS <= LBK_STAGES, "a node is one launch");

static bool f32_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float);
}

static bool f16_rows(const ggml_tensor * t, int64_t n) {
    return t->type == GGML_TYPE_F16 && t->nb[0] == sizeof(ggml_fp16_t) && t->ne[0] == n;
}

bool ggml_cuda_littlebit_supports(int device, const ggml_tensor * node) {
    if (!lb_is_node(node)) {
        return false;
    }
    const lb_node n = lb_node_get(node);
    if (n.stays || n.f32 || n.ids || n.members < 1 || n.paths < 1 || n.paths > LB_NODE_PATHS ||
        !ampere_mma_available(ggml_cuda_info().devices[device].cc)) {
        return false;
    }
    for (int i = 0; i < lb_node_at(n) + (int) n.members*lb_node_each(n); ++i) {
        if (!node->src[i]) {
            return false;
        }
    }
    const ggml_tensor * x = node->src[0];
    if (!f32_rows(x) || node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) || ggml_nrows(x) != ggml_nrows(node) ||
        ggml_nrows(x) > LBK_MAX_N || (n.second && !ggml_is_contiguous(x))) {
        return false;
    }
    lb_node_part parts[LB_PARTS];
    lb_node_parts(node, parts);
    const uint32_t count = n.members*n.paths;
    for (uint32_t i = 0; i < count; ++i) {
        const lb_node_part & p = parts[i];
        if (p.cols < 1 || p.cols > LB_MAX_COLS || p.rows < 1 || p.rows > INT32_MAX || !f16_rows(p.post, p.rows) ||
            (p.pre && !f16_rows(p.pre, p.cols)) || p.tile->type != GGML_TYPE_I8 || !ggml_is_contiguous(p.tile) ||
            p.tile->ne[0] != 32 || p.tile->ne[1] != GGML_PAD(p.cols, 16)/8 || p.tile->ne[2] != GGML_PAD(p.rows, 32)/32 ||
            p.tile->ne[3] <= p.path || p.post->ne[1] <= p.path || (p.pre && p.pre->ne[1] <= p.path) || (n.second && p.from + p.cols*ggml_nrows(x) > ggml_nelements(x))) {
            return false;
        }
    }
    return parts[count - 1].to + parts[count - 1].rows*ggml_nrows(node) == ggml_nelements(node);
}

bool ggml_cuda_littlebit(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    const lb_node n = lb_node_get(node);
    const ggml_tensor * x = node->src[0];
    lb_node_part parts[LB_PARTS];
    lb_node_parts(node, parts);
    const uint32_t count = n.members*n.paths;

    // rows of x one after the other are one batch, whatever its dimensions
    const bool    flat  = ggml_is_contiguous(x);
    const int64_t batch = flat ? ggml_nrows(x) : x->ne[1];
    const int64_t ne2   = flat ? 1 : x->ne[2], ne3 = flat ? 1 : x->ne[3];
    if (batch == 0) {
        return true;
    }
    lbk_args stages[LB_PARTS] = {};
    for (uint32_t i = 0; i < count; ++i) {
        const lb_node_part & p = parts[i];
        lbk_args & a = stages[i];
        a.tile = (const uint8_t *) p.tile->data + p.path*p.tile->nb[3];
        a.post = (const uint16_t *) ((const char *) p.post->data + p.path*p.post->nb[1]);
        a.pre  = p.pre ? (const uint16_t *) ((const char *) p.pre->data + p.path*p.pre->nb[1]) : nullptr;
        a.rows = (uint32_t) p.rows;
        a.cols = (uint32_t) p.cols;
        a.n    = (uint32_t) batch;
        a.x_stride = n.second ? p.cols : x->nb[1]/sizeof(float);
        a.y_stride = a.add_stride = p.rows;
    }
    ggml_cuda_pool_alloc<uint8_t> work(ctx.pool(), lbk_group_work_bytes(stages, count) + 1); // the pool gives no empty memory
    for (int64_t i3 = 0; i3 < ne3; ++i3) {
        for (int64_t i2 = 0; i2 < ne2; ++i2) {
            for (uint32_t i = 0; i < count; ++i) {
                lbk_args & a = stages[i];
                a.x   = (const float *) ((const char *) x->data + i2*x->nb[2] + i3*x->nb[3]) + parts[i].from;
                a.y   = (float *) node->data + parts[i].to + (i3*ne2 + i2)*batch*a.y_stride;
                a.add = parts[i].add ? a.y : nullptr;
            }
            // Paths of a first half are independent of each other, those of a second half add up.
            const uint32_t chain = n.second ? n.paths : 1;
            CUDA_CHECK(lbk_run_group(stages, count/chain, chain, work.get(), ctx.stream()));
        }
    }
    return true;
}
