// ggml's matrix product behind a few C functions, for `cargo bench --bench layer` and for ggml_layers.cpp.
//
// A gb_pool holds copies of one weight, or of one path of factors, and one graph with all requested products, so
// that one graph computation runs many products and its own overhead is shared out, as in a model.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
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

// The CPU's buffers of this name; its usual ones without a name.
ggml_backend_buffer_type_t buffer_type_named(ggml_backend_t backend, const char * name) {
    if (!*name) {
        return ggml_backend_get_default_buffer_type(backend);
    }
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    if (!get) {
        return nullptr;
    }
    for (ggml_backend_buffer_type_t * type = get(device); type && *type; ++type) {
        if (std::strcmp(ggml_backend_buft_name(*type), name) == 0) {
            return *type;
        }
    }
    return nullptr;
}

ggml_type type_named(const char * type_name) {
    int id = 0;
    while (id < GGML_TYPE_COUNT) {
        const char * name = ggml_type_name(static_cast<ggml_type>(id));
        if (name && std::strcmp(name, type_name) == 0) {
            break;
        }
        ++id;
    }
    return static_cast<ggml_type>(id);
}

// Random values in the type of the tensors, which are all alike. The same few rows come again and again: quantizing
// takes long, and time does not depend on values.
void fill(const std::vector<ggml_tensor *> & tensors, random_floats & random) {
    const ggml_tensor * first = tensors.at(0);
    const int64_t cols = first->ne[0], rows = ggml_nrows(first), distinct = rows < 8 ? rows : 8;
    std::vector<float> values(static_cast<size_t>(distinct * cols));
    for (float & v : values) {
        v = random.next();
    }
    const std::vector<float> importance(static_cast<size_t>(cols), 1.0f);
    const size_t row_size = ggml_row_size(first->type, cols);
    std::vector<uint8_t> data(row_size * rows);
    ggml_quantize_chunk(first->type, values.data(), data.data(), 0, distinct, cols,
                        ggml_quantize_requires_imatrix(first->type) ? importance.data() : nullptr);
    for (int64_t row = distinct; row < rows; ++row) {
        std::memcpy(data.data() + row*row_size, data.data() + (row % distinct)*row_size, row_size);
    }
    for (ggml_tensor * t : tensors) {
        ggml_backend_tensor_set(t, data.data(), 0, data.size());
    }
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

    // for so many weights and graph nodes
    gb_pool(ggml_backend_t backend, int n_weights, int n_nodes) : backend(backend) {
        const size_t overhead = ggml_tensor_overhead();
        weights.reset(ggml_init({ overhead*(n_weights + 1), nullptr, true }));
        const size_t size = std::max(n_nodes, n_weights) + 8; // a graph has as much room for leaves as for nodes
        nodes.reset(ggml_init({ overhead*(n_nodes + 8) + ggml_graph_overhead_custom(size, false), nullptr, true }));
        graph = ggml_new_graph_custom(nodes.get(), size, false);
    }

    std::vector<ggml_tensor *> add_weights(int n, ggml_type type, int64_t cols, int64_t rows) {
        std::vector<ggml_tensor *> all;
        for (int i = 0; i < n; ++i) {
            all.push_back(ggml_new_tensor_2d(weights.get(), type, cols, rows));
        }
        return all;
    }

    bool allocate_weights(ggml_backend_buffer_type_t type) {
        weight_memory.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights.get(), type));
        if (weight_memory) {
            ggml_backend_buffer_set_usage(weight_memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        }
        return weight_memory != nullptr;
    }

    // Allocates the nodes and gives x values; false if an operation is not there.
    bool finish(ggml_tensor * x, random_floats & random) {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            if (!ggml_backend_supports_op(backend, ggml_graph_node(graph, i))) {
                return false;
            }
        }
        node_memory.reset(ggml_backend_alloc_ctx_tensors(nodes.get(), backend));
        if (node_memory) {
            fill({ x }, random);
        }
        return node_memory != nullptr;
    }
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

// The device of this name ("CUDA0", "CPU"), of a backend that is linked or in GGML_BACKEND_PATH; NULL if there is none.
gb_engine * gb_open_device(const char * name) {
    ggml_log_set(log_warnings, nullptr);
    ggml_backend_load_all();
    ggml_backend_dev_t device = ggml_backend_dev_by_name(name);
    ggml_backend_t backend = device ? ggml_backend_dev_init(device, nullptr) : nullptr;
    return backend ? new gb_engine{ backend, nullptr } : nullptr;
}

void gb_close(gb_engine * engine) {
    ggml_backend_free(engine->backend);
    if (engine->threads) {
        ggml_threadpool_free(engine->threads);
    }
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
gb_pool * gb_pool_new(gb_engine * engine, const char * type_name, const char * buffers, int64_t rows, int64_t cols,
                      int64_t batch, int copies, int products, uint64_t seed) {
    const ggml_type type = type_named(type_name);
    ggml_backend_buffer_type_t buffer_type = buffer_type_named(engine->backend, buffers);
    if (type == GGML_TYPE_COUNT || !buffer_type || cols % ggml_blck_size(type) != 0) {
        return nullptr;
    }
    std::unique_ptr<gb_pool> pool(new gb_pool(engine->backend, copies, products));
    const std::vector<ggml_tensor *> weights = pool->add_weights(copies, type, cols, rows);
    if (!pool->allocate_weights(buffer_type)) {
        return nullptr;
    }
    ggml_context * ctx = pool->nodes.get();
    ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, batch);
    for (int i = 0; i < products; ++i) {
        ggml_build_forward_expand(pool->graph, ggml_mul_mat(ctx, weights[i % copies], x));
    }
    random_floats random{ seed | 1 };
    if (!pool->finish(x, random)) {
        return nullptr;
    }
    fill(weights, random);
    return pool.release();
}

// The same of one path of factors: what llama.cpp's portable lowering does with them. Signs are Q1_0, whose rows are
// padded to whole blocks.
gb_pool * gb_factors_new(gb_engine * engine, int64_t rows, int64_t cols, int64_t rank, int64_t batch, int copies,
                         int products, uint64_t seed) {
    const ggml_type type = type_named("q1_0");
    if (type == GGML_TYPE_COUNT) {
        return nullptr;
    }
    const int64_t block = ggml_blck_size(type);
    auto padded = [block](int64_t n) { return (n + block - 1)/block*block; };
    std::unique_ptr<gb_pool> pool(new gb_pool(engine->backend, 5*copies, 7*products));
    const std::vector<ggml_tensor *> weights[] = {
        pool->add_weights(copies, type, padded(cols), rank), pool->add_weights(copies, type, padded(rank), rows),
        pool->add_weights(copies, GGML_TYPE_F32, cols, 1),   pool->add_weights(copies, GGML_TYPE_F32, rank, 1),
        pool->add_weights(copies, GGML_TYPE_F32, rows, 1),
    };
    if (!pool->allocate_weights(ggml_backend_get_default_buffer_type(engine->backend))) {
        return nullptr;
    }
    ggml_context * ctx = pool->nodes.get();
    ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, cols, batch);
    auto signs = [&](ggml_tensor * m, ggml_tensor * v) {
        if (m->ne[0] > v->ne[0]) {
            v = ggml_pad(ctx, v, static_cast<int>(m->ne[0] - v->ne[0]), 0, 0, 0);
        }
        return ggml_mul_mat(ctx, m, v);
    };
    for (int i = 0; i < products; ++i) {
        const int c = i % copies;
        ggml_tensor * t = ggml_mul(ctx, x, weights[2][c]);
        t = ggml_mul(ctx, signs(weights[0][c], t), weights[3][c]);
        t = ggml_mul(ctx, signs(weights[1][c], t), weights[4][c]);
        ggml_build_forward_expand(pool->graph, t);
    }
    random_floats random{ seed | 1 };
    if (!pool->finish(x, random)) {
        return nullptr;
    }
    for (const std::vector<ggml_tensor *> & w : weights) {
        fill(w, random);
    }
    return pool.release();
}

// A chain of `nodes` operations that do nothing, on all threads: what a node costs by itself.
gb_pool * gb_nodes_new(gb_engine * engine, int nodes) {
    std::unique_ptr<gb_pool> pool(new gb_pool(engine->backend, 0, nodes));
    ggml_context * ctx = pool->nodes.get();
    ggml_tensor * x = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 32);
    ggml_tensor * t = x;
    for (int i = 0; i < nodes; ++i) {
        t = ggml_map_custom1_inplace(ctx, t, [](ggml_tensor *, const ggml_tensor *, int, int, void *) {},
                                     GGML_N_TASKS_MAX, nullptr);
    }
    ggml_build_forward_expand(pool->graph, t);
    random_floats random{ 1 };
    return pool->finish(x, random) ? pool.release() : nullptr;
}

// Runs all products once; 0 if ggml succeeded.
int gb_pool_run(gb_pool * pool) {
    return ggml_backend_graph_compute(pool->backend, pool->graph) == GGML_STATUS_SUCCESS ? 0 : 1;
}

void gb_pool_free(gb_pool * pool) {
    delete pool;
}

} // extern "C"
