// LittleBit in libllama: whether a device computes native nodes rightly. Kernels that were compiled for a device are not
// yet kernels that were seen to work on it, and a wrong one would show as a model that writes nonsense. So each device
// computes some small nodes before the first weight is trusted to it.

#include "llama-littlebit-proxy.h"
#include "littlebit-node.h"

#include "llama-impl.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <vector>

namespace {

struct shape {
    int64_t rows, cols, n;
};

// One for each way in which kernels cut the work: one column of activations, narrow and wide; a few; some; many. Rows and
// columns that fill no tile, so that padding takes part.
const shape SHAPES[] = { { 72, 280, 1 }, { 40, 9000, 1 }, { 72, 280, 3 }, { 72, 280, 9 }, { 104, 152, 40 } };

// Activations are rounded to 14 bits, so a product is off by at most half a step in every column; twice that is allowed.
// A product with other signs would be off by the sum's own size, which is far more.
constexpr double STEP = 1.0/8188;

}

static std::vector<ggml_fp16_t> to_f16(const std::vector<float> & v) {
    std::vector<ggml_fp16_t> out(v.size());
    ggml_fp32_to_fp16_row(v.data(), out.data(), (int64_t) v.size());
    return out;
}

static bool computes(ggml_backend_t backend, const shape & s) {
    std::mt19937 rng(1);
    auto draw = [&](size_t n, float low, float high) {
        std::vector<float> v(n);
        // steps of a 1024th: f16 holds them, so the reference has the same scales
        for (float & x : v) {
            x = low + (high - low)*(float) (rng() % 1024)/1024;
        }
        return v;
    };
    const std::vector<float> x = draw(s.cols*s.n, -1, 1), pre = draw(s.cols, 0.5f, 1.5f), post = draw(s.rows, 0.5f, 1.5f);
    const int64_t bytes = GGML_PAD(s.cols, 16)/8, blocks = GGML_PAD(s.rows, 32)/32;
    std::vector<uint8_t> tile(32*bytes*blocks, 0);
    std::vector<int8_t>  sign(s.rows*s.cols);
    for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < s.cols; ++c) {
            const bool plus = rng() & 1;
            sign[r*s.cols + c] = plus ? 1 : -1;
            tile[((r/32)*bytes + c/8)*32 + r%32] |= (uint8_t) (plus << c%8);
        }
    }

    ggml_context_ptr ctx(ggml_init({ 8*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_tensor * tx    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.cols, s.n);
    ggml_tensor * ttile = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_I8, 32, bytes, blocks, 1);
    ggml_tensor * tpost = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, s.rows, 1);
    ggml_tensor * tpre  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, s.cols, 1);
    lb_node node = {};
    node.paths = 1;
    ggml_tensor * y = lb_stage_node(ctx.get(), tx, ttile, tpost, tpre, nullptr, nullptr, node);
    if (!ggml_backend_supports_op(backend, y)) {
        return false;
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, y);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        return false;
    }
    const std::vector<ggml_fp16_t> pre16 = to_f16(pre), post16 = to_f16(post);
    ggml_backend_tensor_set(tx,    x.data(),      0, ggml_nbytes(tx));
    ggml_backend_tensor_set(ttile, tile.data(),   0, ggml_nbytes(ttile));
    ggml_backend_tensor_set(tpost, post16.data(), 0, ggml_nbytes(tpost));
    ggml_backend_tensor_set(tpre,  pre16.data(),  0, ggml_nbytes(tpre));
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    std::vector<float> got(s.rows*s.n);
    ggml_backend_tensor_get(y, got.data(), 0, ggml_nbytes(y));

    for (int64_t j = 0; j < s.n; ++j) {
        double most = 0;
        for (int64_t c = 0; c < s.cols; ++c) {
            most = std::max(most, std::fabs((double) x[j*s.cols + c]*pre[c]));
        }
        for (int64_t r = 0; r < s.rows; ++r) {
            double want = 0;
            for (int64_t c = 0; c < s.cols; ++c) {
                want += (double) sign[r*s.cols + c]*x[j*s.cols + c]*pre[c];
            }
            // not finite fails, too
            if (!(std::fabs(got[j*s.rows + r] - post[r]*want) <= post[r]*most*STEP*(double) s.cols)) {
                return false;
            }
        }
    }
    return true;
}

bool lb_device_computes(ggml_backend_dev_t dev) {
    static std::mutex mutex;
    static std::map<ggml_backend_dev_t, bool> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto it = known.find(dev);
    if (it != known.end()) {
        return it->second;
    }
    ggml_backend_ptr backend(ggml_backend_dev_init(dev, nullptr));
    const bool good = backend && std::all_of(std::begin(SHAPES), std::end(SHAPES),
            [&](const shape & s) { return computes(backend.get(), s); });
    if (!good) {
        LLAMA_LOG_WARN("littlebit: %s fails the check of its kernels; weights on it take the portable lowering\n",
                ggml_backend_dev_name(dev));
    }
    return known[dev] = good;
}
