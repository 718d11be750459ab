// Time of single layers by ggml's own kernels of a device and by littlebit's in the same backend, as llama.cpp runs them: F16, Q4_0,
// Q1_0, factors in the portable lowering, factors as native nodes.
//
//   ggml-layers [--device NAME] [--seconds S] [--shapes ROWSxCOLS,...] [--bpw X,...] [--batch N,...] [--pool MIB]
//
// A line has --pool MiB of weights (default 512), so that each layer comes from memory as in a model: no GPU so far has a cache of half
// of it.
// The backend is the one that ggml calls NAME (default CUDA0), so the same program runs on a GPU, on the CPU, and on the host model of a
// GPU (GGML_BACKEND_PATH). scripts/bench-cuda builds and runs it.

// Its types are meant for one file, and here they are.
#pragma GCC diagnostic ignored "-Wsubobject-linkage"
#include "ggml_bench.cpp"
#include "littlebit-node.h"

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdlib>

namespace {

// Bytes of weights of one line together, and of activations.
int64_t pool_bytes = 512 << 20;
constexpr int64_t NODES = 2ll << 30;

struct layer {
    int64_t rows, cols, batch;
};

int64_t rank_of(const layer & l, double bpw) {
    const double exact = bpw*(double) l.rows*(double) l.cols/(double) (l.rows + l.cols + 16);
    return std::max<int64_t>(32, (int64_t) (exact/32)*32);
}

// one half of one layer as a node of its own
ggml_tensor * half(ggml_context * ctx, ggml_tensor * x, bool second, ggml_tensor * tile, ggml_tensor * post, ggml_tensor * pre) {
    ggml_tensor * src[] = { x, tile, post, pre };
    ggml_tensor * t = ggml_custom_4d(ctx, GGML_TYPE_F32, post->ne[0], x->ne[1], 1, 1, src, second ? 3 : 4,
            [](ggml_tensor *, int, int, void *) { GGML_ABORT("not for the CPU"); }, 1, nullptr);
    lb_node node = {};
    node.members = node.paths = 1;
    node.second  = second;
    lb_node_set(t, node);
    return t;
}

// One path of factors as littlebit's nodes. NULL where the backend has no kernels for them.
gb_pool * native_pool(gb_engine * engine, const layer & l, int64_t rank, int copies, int products) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(engine->backend));
    if (std::strcmp(ggml_backend_reg_name(reg), "CUDA") != 0) {
        return nullptr; // others say yes to every node of the program's own
    }
    std::unique_ptr<gb_pool> pool(new gb_pool(engine->backend, 5*copies, 2*products));
    auto tiles = [&](int64_t rows, int64_t cols) {
        std::vector<ggml_tensor *> all;
        for (int i = 0; i < copies; ++i) {
            all.push_back(ggml_new_tensor_3d(pool->weights.get(), GGML_TYPE_I8, 32, GGML_PAD(cols, 16)/8, GGML_PAD(rows, 32)/32));
        }
        return all;
    };
    const std::vector<ggml_tensor *> v = tiles(rank, l.cols), u = tiles(l.rows, rank);
    const std::vector<ggml_tensor *> scales[] = {
        pool->add_weights(copies, GGML_TYPE_F16, l.cols, 1), pool->add_weights(copies, GGML_TYPE_F16, rank, 1),
        pool->add_weights(copies, GGML_TYPE_F16, l.rows, 1),
    };
    if (!pool->allocate_weights(ggml_backend_get_default_buffer_type(engine->backend))) {
        return nullptr;
    }
    ggml_context * ctx = pool->nodes.get();
    ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, l.cols, l.batch);
    for (int i = 0; i < products; ++i) {
        const int c = i % copies;
        ggml_tensor * t = half(ctx, x, false, v[c], scales[1][c], scales[0][c]);
        ggml_build_forward_expand(pool->graph, half(ctx, t, true, u[c], scales[2][c], nullptr));
    }
    random_floats random{ 1 };
    if (!pool->finish(x, random)) {
        return nullptr;
    }
    for (const std::vector<ggml_tensor *> & s : scales) {
        fill(s, random);
    }
    std::vector<uint8_t> signs(std::max(ggml_nbytes(v[0]), ggml_nbytes(u[0])));
    for (uint8_t & b : signs) {
        random.next();
        b = (uint8_t) (random.state >> 20);
    }
    for (int i = 0; i < copies; ++i) {
        ggml_backend_tensor_set(v[i], signs.data(), 0, ggml_nbytes(v[i]));
        ggml_backend_tensor_set(u[i], signs.data(), 0, ggml_nbytes(u[i]));
    }
    return pool.release();
}

// Median microseconds of a product, NaN for no pool. The first runs warm up, and ggml-cuda captures its graph in them.
double time_of(gb_pool * pool, int products, double seconds) {
    if (!pool) {
        return NAN;
    }
    std::vector<double> us;
    double spent = 0;
    for (int round = 0; round < 6 || spent < seconds*1e6; ++round) {
        const auto from = std::chrono::steady_clock::now();
        if (gb_pool_run(pool) != 0) {
            std::fprintf(stderr, "ggml-layers: a graph failed\n");
            std::exit(1);
        }
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - from;
        spent += took.count();
        if (round > 2) {
            us.push_back(took.count()/products);
        }
    }
    gb_pool_free(pool);
    std::sort(us.begin(), us.end());
    return us[us.size()/2];
}

int clamped(int64_t n) { return (int) std::min<int64_t>(std::max<int64_t>(n, 2), 8192); }

// Copies of a layer of so many bytes of weights, and products in a graph: fewer where activations alone fill the caches.
std::pair<int, int> counts(int64_t bytes, const layer & l, int64_t floats) {
    const int copies = clamped((pool_bytes + bytes - 1)/bytes);
    return { copies, std::min(copies, clamped(NODES/(4*floats*l.batch))) };
}

double time_of_type(gb_engine * engine, const layer & l, const char * name, double seconds) {
    const ggml_type type = type_named(name);
    if (type == GGML_TYPE_COUNT || l.cols % ggml_blck_size(type) != 0) {
        return NAN;
    }
    const auto [copies, products] = counts((int64_t) ggml_row_size(type, l.cols)*l.rows, l, l.rows);
    return time_of(gb_pool_new(engine, name, "", l.rows, l.cols, l.batch, copies, products, 1), products, seconds);
}

void cell(double us) {
    if (std::isnan(us)) {
        std::printf(" - |");
    } else {
        std::printf(" %.2f |", us);
    }
}

std::vector<std::string> split(const std::string & list) {
    std::vector<std::string> all(1);
    for (char c : list) {
        if (c == ',') {
            all.emplace_back();
        } else {
            all.back() += c;
        }
    }
    return all;
}

} // namespace

int main(int argc, char ** argv) {
    std::string device = "CUDA0", seconds = "0.3", shapes = "4096x4096,11008x4096,4096x11008,8192x8192,28672x8192,8192x28672",
                bpws = "0.1,0.3,0.55,1.0", batches = "1,8,64,512", pool = "512";
    for (int i = 1; i < argc; i += 2) {
        const std::string flag = argv[i];
        std::string * value = flag == "--device" ? &device : flag == "--seconds" ? &seconds : flag == "--shapes" ? &shapes :
                              flag == "--bpw" ? &bpws : flag == "--batch" ? &batches : flag == "--pool" ? &pool : nullptr;
        if (!value || i + 1 == argc) {
            std::fprintf(stderr, "usage: ggml-layers [--device NAME] [--seconds S] [--shapes ROWSxCOLS,...] [--bpw X,...] [--batch N,...]"
                    " [--pool MIB]\n");
            return 2;
        }
        *value = argv[i + 1];
    }
    gb_engine * engine = gb_open_device(device.c_str());
    if (!engine) {
        std::fprintf(stderr, "ggml-layers: ggml has no device called %s\n", device.c_str());
        return 3;
    }
    const double s = std::atof(seconds.c_str());
    pool_bytes = (int64_t) std::atoi(pool.c_str()) << 20;
    std::printf("%s (%s): layers in ggml's graphs over copies that exceed the caches; medians, us a layer. LittleBit: one path, one node a\n"
            "half, as llama.cpp runs it; - where the backend does not have the combination.\n\n"
            "| layer | n | F16 | Q4_0 | Q1_0 | bpw | rank | portable | LittleBit | over F16 | over Q4_0 | over Q1_0 | over portable |\n"
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n", device.c_str(),
            ggml_backend_dev_description(ggml_backend_get_device(engine->backend)));
    for (const std::string & shape : split(shapes)) {
        for (const std::string & batch : split(batches)) {
            layer l = {};
            if (std::sscanf(shape.c_str(), "%" SCNd64 "x%" SCNd64, &l.rows, &l.cols) != 2 || (l.batch = std::atoi(batch.c_str())) < 1 ||
                l.rows < 1 || l.cols < 1) {
                std::fprintf(stderr, "ggml-layers: '%s' with batch '%s' is no layer\n", shape.c_str(), batch.c_str());
                return 2;
            }
            double dense[3];
            const char * const types[] = { "f16", "q4_0", "q1_0" };
            for (int i = 0; i < 3; ++i) {
                dense[i] = time_of_type(engine, l, types[i], s);
            }
            for (const std::string & bpw : split(bpws)) {
                const int64_t rank = rank_of(l, std::atof(bpw.c_str()));
                const auto [copies, products] = counts(rank*(l.rows + l.cols)/8, l, 2*l.cols + 4*rank + 2*l.rows);
                const double portable = time_of(gb_factors_new(engine, l.rows, l.cols, rank, l.batch, copies, products, 1), products, s);
                const double native = time_of(native_pool(engine, l, rank, copies, products), products, s);
                std::printf("| %s | %s |", shape.c_str(), batch.c_str());
                for (double us : dense) {
                    cell(us);
                }
                std::printf(" %s | %lld |", bpw.c_str(), (long long) rank);
                cell(portable);
                cell(native);
                for (double us : { dense[0], dense[1], dense[2], portable }) {
                    cell(us/native);
                }
                std::printf("\n");
                std::fflush(stdout);
            }
        }
    }
    gb_close(engine);
}
