// ggml's matrix product behind a few C functions, for `cargo bench --bench layer`.
//
// A gb_pool holds copies of one weight and one graph with a chain-free MUL_MAT node per requested product, so
// that one graph computation runs many products and its own overhead is shared out, as in a model.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

struct free_context { void operator()(ggml_context * c) const { ggml_free(c); } };
struct free_buffer  { void operator()(ggml_backend_buffer_t b) const { ggml_backend_buffer_free(b); } };
using context_ptr = std::unique_ptr<ggml_context, free_context>;
using buffer_ptr  = std::unique_ptr<ggml_backend_buffer, free_buffer>;

// Uniform in [-1, 1), xorshift64*.
struct random_floats {
    uint64_t state;
    float next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<float>(static_cast<int64_t>(state * 2685821657736338717ull) >> 40) / 8388608.0f;
    }
};

// Repacking reports every tensor.
void log_warnings(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) {
        std::fputs(text, stderr);
    }
}

ggml_backend_buffer_type_t repack_buffer_type(ggml_backend_t backend) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    if (!get) {
        return nullptr;
    }
    for (ggml_backend_buffer_type_t * type = get(device); type && *type; ++type) {
        if (std::strcmp(ggml_backend_buft_name(*type), "CPU_REPACK") == 0) {
            return *type;
        }
    }
    return nullptr;
}

} // namespace

struct gb_engine {
    ggml_backend_t    backend;
    ggml_threadpool_t threads;
};

struct gb_pool {
    ggml_backend_t backend;
    context_ptr    weights, nodes;
    buffer_ptr     weight_memory, node_memory;
    ggml_cgraph *  graph;
};

extern "C" {

gb_engine * gb_open(int n_threads) {
    ggml_log_set(log_warnings, nullptr);
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    gb_engine * engine = new gb_engine{ ggml_backend_cpu_init(), ggml_threadpool_new(&params) };
    ggml_backend_cpu_set_n_threads(engine->backend, n_threads);
    ggml_backend_cpu_set_threadpool(engine->backend, engine->threads);
    return engine;
}

void gb_close(gb_engine * engine) {
    ggml_backend_free(engine->backend);
    ggml_threadpool_free(engine->threads);
    delete engine;
}

// What this build of ggml was compiled to use, "AVX2=1 FMA=1 ..."; valid for the life of the process.
const char * gb_features(const gb_engine * engine) {
    static std::string text;
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(engine->backend));
    auto get = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
    text.clear();
    for (ggml_backend_feature * f = get ? get(reg) : nullptr; f && f->name; ++f) {
        text += (text.empty() ? "" : " ") + std::string(f->name) + "=" + f->value;
    }
    return text.c_str();
}

// `copies` copies of a random rows x cols weight of the type named `type` and `products` products with
// `batch` columns, which walk over the copies. NULL if ggml does not have this combination.
gb_pool * gb_pool_new(gb_engine * engine, const char * type_name, int repack, int64_t rows, int64_t cols,
                      int64_t batch, int copies, int products, uint64_t seed) {
    int id = 0;
    while (id < GGML_TYPE_COUNT) {
        const char * name = ggml_type_name(static_cast<ggml_type>(id));
        if (name && std::strcmp(name, type_name) == 0) {
            break;
        }
        ++id;
    }
    ggml_backend_buffer_type_t buffer_type =
        repack ? repack_buffer_type(engine->backend) : ggml_backend_get_default_buffer_type(engine->backend);
    if (id == GGML_TYPE_COUNT || !buffer_type) {
        return nullptr;
    }
    const ggml_type type = static_cast<ggml_type>(id);
    if (cols % ggml_blck_size(type) != 0) {
        return nullptr;
    }

    std::unique_ptr<gb_pool> pool(new gb_pool{ engine->backend, {}, {}, {}, {}, nullptr });
    const size_t overhead = ggml_tensor_overhead();
    pool->weights.reset(ggml_init({ overhead * (copies + 1), nullptr, true }));
    const size_t graph_bytes = ggml_graph_overhead_custom(products + 8, false);
    pool->nodes.reset(ggml_init({ overhead * (products + 8) + graph_bytes, nullptr, true }));

    std::vector<ggml_tensor *> weights;
    for (int i = 0; i < copies; ++i) {
        weights.push_back(ggml_new_tensor_2d(pool->weights.get(), type, cols, rows));
    }
    pool->weight_memory.reset(ggml_backend_alloc_ctx_tensors_from_buft(pool->weights.get(), buffer_type));
    if (!pool->weight_memory) {
        return nullptr;
    }
    ggml_backend_buffer_set_usage(pool->weight_memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

    ggml_tensor * x = ggml_new_tensor_2d(pool->nodes.get(), GGML_TYPE_F32, cols, batch);
    pool->graph = ggml_new_graph_custom(pool->nodes.get(), products + 8, false);
    for (int i = 0; i < products; ++i) {
        ggml_tensor * y = ggml_mul_mat(pool->nodes.get(), weights[i % copies], x);
        if (!ggml_backend_supports_op(engine->backend, y)) {
            return nullptr;
        }
        ggml_build_forward_expand(pool->graph, y);
    }
    pool->node_memory.reset(ggml_backend_alloc_ctx_tensors(pool->nodes.get(), engine->backend));
    if (!pool->node_memory) {
        return nullptr;
    }

    random_floats random{ seed | 1 };
    std::vector<float> values(static_cast<size_t>(rows * cols));
    for (float & v : values) {
        v = random.next();
    }
    std::vector<uint8_t> data(ggml_row_size(type, cols) * rows);
    ggml_quantize_chunk(type, values.data(), data.data(), 0, rows, cols, nullptr);
    for (ggml_tensor * w : weights) {
        ggml_backend_tensor_set(w, data.data(), 0, data.size());
    }
    std::vector<float> activations(static_cast<size_t>(cols * batch));
    for (float & v : activations) {
        v = random.next();
    }
    ggml_backend_tensor_set(x, activations.data(), 0, activations.size() * sizeof(float));
    return pool.release();
}

// Runs all products once; 0 if ggml succeeded.
int gb_pool_run(gb_pool * pool) {
    return ggml_backend_graph_compute(pool->backend, pool->graph) == GGML_STATUS_SUCCESS ? 0 : 1;
}

void gb_pool_free(gb_pool * pool) {
    delete pool;
}

} // extern "C"
