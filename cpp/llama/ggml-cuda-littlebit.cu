#include "ggml-cuda-littlebit.h"
#include "littlebit-node.h"

#include "ggml-cuda/common.cuh" // of the host model in tests
#include "../cuda/launch.h"

// Sums stay below 2^31 up to here.
static constexpr int64_t LB_MAX_COLS = 1 << 18;

static bool f32_rows(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float);
}

bool ggml_cuda_littlebit_supports(int device, const ggml_tensor * node) {
    if (!lb_is_node(node)) {
        return false;
    }
    const lb_node n = lb_node_get(node);
    const lb_node_sources s = lb_node_get_sources(node);
    if (n.f32 || n.ids || !ampere_mma_available(ggml_cuda_info().devices[device].cc)) {
        return false;
    }
    if (!s.x || !s.tile || !s.post || (n.pre && !s.pre) || (n.add && !s.add)) {
        return false;
    }
    const int64_t rows = s.post->ne[0], cols = s.x->ne[0];
    if (cols < 1 || cols > LB_MAX_COLS || rows < 1 || rows > INT32_MAX || ggml_nrows(s.x) > INT32_MAX) {
        return false;
    }
    const bool scales = s.post->type == GGML_TYPE_F16 && s.post->nb[0] == sizeof(ggml_fp16_t) &&
        (!s.pre || (s.pre->type == GGML_TYPE_F16 && s.pre->nb[0] == sizeof(ggml_fp16_t) && s.pre->ne[0] == cols));
    const bool tile = s.tile->type == GGML_TYPE_I8 && ggml_is_contiguous(s.tile) && s.tile->ne[0] == 32 &&
        s.tile->ne[1] == GGML_PAD(cols, 16)/8 && s.tile->ne[2] == GGML_PAD(rows, 32)/32 && s.tile->ne[3] > n.path;
    return scales && tile && f32_rows(s.x) && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node) && node->ne[0] == rows &&
        (!s.add || (s.add->type == GGML_TYPE_F32 && ggml_is_contiguous(s.add) && ggml_are_same_shape(s.add, node)));
}

bool ggml_cuda_littlebit(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    const lb_node n = lb_node_get(node);
    const lb_node_sources s = lb_node_get_sources(node);
    const ggml_tensor * x = s.x;

    lbk_args args = {};
    args.tile = (const uint8_t *) s.tile->data + n.path*s.tile->nb[3];
    args.post = (const uint16_t *) ((const char *) s.post->data + n.path*s.post->nb[1]);
    args.pre  = s.pre ? (const uint16_t *) ((const char *) s.pre->data + n.path*s.pre->nb[1]) : nullptr;
    args.rows = (uint32_t) s.post->ne[0];
    args.cols = (uint32_t) x->ne[0];
    args.x_stride   = x->nb[1]/sizeof(float);
    args.y_stride   = node->ne[0];
    args.add_stride = node->ne[0];

    // rows of x one after the other are one batch, whatever its dimensions
    const bool    flat  = ggml_is_contiguous(x);
    const int64_t batch = flat ? ggml_nrows(x) : x->ne[1];
    const int64_t ne2   = flat ? 1 : x->ne[2], ne3 = flat ? 1 : x->ne[3];
    if (batch == 0) {
        return true;
    }
    args.n = (uint32_t) batch;
    ggml_cuda_pool_alloc<uint8_t> work(ctx.pool(), lbk_work_bytes(args.rows, args.cols, args.n) + 1); // the pool gives no empty memory
    for (int64_t i3 = 0; i3 < ne3; ++i3) {
        for (int64_t i2 = 0; i2 < ne2; ++i2) {
            const int64_t at = (i3*ne2 + i2)*batch*args.y_stride;
            args.x   = (const float *) ((const char *) x->data + i2*x->nb[2] + i3*x->nb[3]);
            args.y   = (float *) node->data + at;
            args.add = s.add ? (const float *) s.add->data + at : nullptr;
            CUDA_CHECK(lbk_run(args, work.get(), ctx.stream()));
        }
    }
    return true;
}
