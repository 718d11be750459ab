// LittleBit in libllama: whether a device computes native nodes rightly. Kernels that were compiled for a device are not
// yet kernels that were seen to work on it, and a wrong one would show as a model that writes nonsense. So each device
// computes some small products before the first weight is trusted to it.

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

struct member {
    int64_t rank, rows;
};

// Products of one input, as a model's blocks have them.
struct shape {
    int64_t cols, n;
    uint32_t paths;
    std::vector<member> members;
};

// One for each way in which kernels cut the work: one column of activations, narrow, wider and wide, and of more rows than have a block each;
// a few; some; many. Rows and columns that fill no tile, so that padding takes part; one or two paths; one, two or three members.
const shape SHAPES[] = {
    { 280, 1, 2, { { 32, 72 }, { 96, 33 } } }, { 9000, 1, 1, { { 64, 40 }, { 32, 72 } } }, { 280, 3, 1, { { 64, 72 } } },
    { 280, 9, 2, { { 32, 40 }, { 64, 72 }, { 32, 1 } } }, { 152, 40, 2, { { 160, 104 }, { 32, 72 } } },
    { 4200, 1, 1, { { 32, 40 }, { 64, 8 } } }, { 40, 1, 1, { { 32, 8500 } } },
};

// Activations are rounded to 14 bits, so a product is off by at most half a step in every column; twice that is allowed.
// A product with other signs would be off by the sum's own size, which is far more.
constexpr double STEP = 1.0/8188;

// Random factors of one half of one member, all paths.
struct factors {
    int64_t rows, cols;
    std::vector<int8_t>  sign; // paths x rows x cols
    std::vector<uint8_t> tile;
    std::vector<float>   pre, post; // paths x cols, paths x rows
    ggml_tensor * ttile, * tpre, * tpost;
};

// steps of a 1024th: f16 holds them, so the reference has the same values
std::vector<float> draw(std::mt19937 & rng, size_t n, float low, float high) {
    std::vector<float> v(n);
    for (float & x : v) {
        x = low + (high - low)*(float) (rng() % 1024)/1024;
    }
    return v;
}

factors random_factors(std::mt19937 & rng, ggml_context * ctx, int64_t rows, int64_t cols, uint32_t paths) {
    factors f = {};
    f.rows = rows;
    f.cols = cols;
    const int64_t bytes = GGML_PAD(cols, 16)/8, blocks = GGML_PAD(rows, 32)/32;
    f.tile.resize(32*bytes*blocks*paths);
    for (uint32_t p = 0; p < paths; ++p) {
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < cols; ++c) {
                const bool plus = rng() & 1;
                f.sign.push_back(plus ? 1 : -1);
                f.tile[((p*blocks + r/32)*bytes + c/8)*32 + r%32] |= (uint8_t) (plus << c%8);
            }
        }
    }
    f.pre   = draw(rng, cols*paths, 0.5f, 1.5f);
    f.post  = draw(rng, rows*paths, 0.5f, 1.5f);
    f.ttile = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, 32, bytes, blocks, paths);
    f.tpre  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, cols, paths);
    f.tpost = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, rows, paths);
    return f;
}

void set_f16(ggml_tensor * t, const std::vector<float> & v) {
    std::vector<ggml_fp16_t> out(v.size());
    ggml_fp32_to_fp16_row(v.data(), out.data(), (int64_t) v.size());
    ggml_backend_tensor_set(t, out.data(), 0, ggml_nbytes(t));
}

std::vector<float> values(const ggml_tensor * t) {
    std::vector<float> v(ggml_nelements(t));
    ggml_backend_tensor_get(t, v.data(), 0, ggml_nbytes(t));
    return v;
}

// Whether the rows x n floats at `got` are the sum over paths `from` .. `to` of post * (S (pre * x)), x + p*step that of path p.
// `scaled`: with pre
bool agrees(const factors & f, uint32_t from, uint32_t to, int64_t n, const float * x, size_t step, bool scaled, const float * got) {
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t r = 0; r < f.rows; ++r) {
            double want = 0, bound = 0;
            for (uint32_t p = from; p < to; ++p) {
                const float * column = x + p*step + j*f.cols;
                const int8_t * sign = &f.sign[(p*f.rows + r)*f.cols];
                double sum = 0, most = 0;
                for (int64_t c = 0; c < f.cols; ++c) {
                    const double v = (double) column[c]*(scaled ? f.pre[p*f.cols + c] : 1);
                    sum += sign[c]*v;
                    most = std::max(most, std::fabs(v));
                }
                const double post = f.post[p*f.rows + r];
                want  += post*sum;
                bound += post*most*STEP*(double) f.cols;
            }
            // not finite fails, too
            if (!(std::fabs(got[j*f.rows + r] - want) <= bound)) {
                return false;
            }
        }
    }
    return true;
}

// The second halves are compared with what the device's own first halves make of them.
bool computes(ggml_backend_t backend, const shape & s) {
    std::mt19937 rng(1);
    ggml_context_ptr ctx(ggml_init({ 32*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    const std::vector<float> x = draw(rng, s.cols*s.n, -1, 1);
    ggml_tensor * tx = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.cols, s.n);
    lb_node node = {};
    node.paths = s.paths;
    ggml_tensor * first = lb_node_new(ctx.get(), tx, nullptr, node);
    node.second = 1;
    ggml_tensor * second = lb_node_new(ctx.get(), first, nullptr, node);
    std::vector<factors> halves[2];
    for (const member & m : s.members) {
        const uint32_t slot = (uint32_t) halves[0].size();
        const factors & v = halves[0].emplace_back(random_factors(rng, ctx.get(), m.rank, s.cols, s.paths));
        const factors & u = halves[1].emplace_back(random_factors(rng, ctx.get(), m.rows, m.rank, s.paths));
        lb_node_add(first,  v.ttile, v.tpost, v.tpre, slot);
        lb_node_add(second, u.ttile, u.tpost, nullptr, slot);
    }
    if (!ggml_backend_supports_op(backend, first) || !ggml_backend_supports_op(backend, second)) {
        return false;
    }
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, second);
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        return false;
    }
    ggml_backend_tensor_set(tx, x.data(), 0, ggml_nbytes(tx));
    for (const std::vector<factors> & half : halves) {
        for (const factors & f : half) {
            ggml_backend_tensor_set(f.ttile, f.tile.data(), 0, ggml_nbytes(f.ttile));
            set_f16(f.tpre,  f.pre);
            set_f16(f.tpost, f.post);
        }
    }
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    const std::vector<float> t = values(first), y = values(second);
    size_t at = 0, to = 0; // of a member's blocks; ranks are aligned
    for (size_t m = 0; m < s.members.size(); ++m) {
        const factors & v = halves[0][m], & u = halves[1][m];
        const size_t block = v.rows*s.n;
        for (uint32_t p = 0; p < s.paths; ++p) {
            if (!agrees(v, p, p + 1, s.n, x.data(), 0, true, &t[at + p*block])) {
                return false;
            }
        }
        if (!agrees(u, 0, s.paths, s.n, &t[at], block, false, &y[to])) {
            return false;
        }
        at += s.paths*block;
        to += GGML_PAD(u.rows, LB_NODE_ALIGN)*s.n;
    }
    return true;
}

} // namespace

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
        LLAMA_LOG_WARN("littlebit: %s fails the check of its kernels; weights on it take the portable lowering, prompts of weights on the CPU "
                "are computed there\n", ggml_backend_dev_name(dev));
    }
    return known[dev] = good;
}

bool lb_devices_compute() {
    bool all = true;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        all = (!lb_native_on(dev, 32, 32) || lb_device_computes(dev)) && all;
    }
    return all;
}
