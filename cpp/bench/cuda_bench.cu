// The CUDA kernels on a real GPU: bits against the CPU oracle (liblittlebit's scalar kernel), time against cuBLAS F16.
// Needs neither network nor Rust nor an installed CUDA; cuBLAS is opened at run time, and cells say so where it is missing.
//
//   cuda-bench check [few]       exit 1 if a bit differs, launched by launch.cu and by lb_cuda_stage_run, alone and in groups; few shapes
//                                for tools that take minutes for them
//   cuda-bench speed [SECONDS]   a table of layers, and one of grouped against separate launches; time per line, default 0.5
//   cuda-bench speed SECONDS OUT IN BPW N    of one layer alone, for a profiler
//
// scripts/bench-cuda builds and runs it.

#include "../cuda/launch.h"
#include "littlebit.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <string>
#include <vector>

#define CHECK(call) check_(call, #call, __LINE__)

static void check_(cudaError_t status, const char * call, int line) {
    if (status != cudaSuccess) {
        fprintf(stderr, "line %d: %s: %s\n", line, call, cudaGetErrorString(status));
        exit(2);
    }
}

static uint64_t state = 1;

static uint32_t random_bits() { // SplitMix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30)*0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27)*0x94d049bb133111ebull;
    return (uint32_t) ((z ^ z >> 31) >> 32);
}

static float random_float() { return (float) (int32_t) random_bits()/2147483648.0f; }

// f16 in +-[2^-e, 2^(1-e)): any finite values serve
static uint16_t random_half(int e) { return (uint16_t) ((random_bits() & 0x83ff) | (uint32_t) (15 - e) << 10); }

template <typename T>
struct device {
    T * p = nullptr;
    explicit device(size_t n) { CHECK(cudaMalloc((void **) &p, std::max<size_t>(n, 1)*sizeof(T))); }
    explicit device(const std::vector<T> & v) : device(v.size()) {
        CHECK(cudaMemcpy(p, v.data(), v.size()*sizeof(T), cudaMemcpyHostToDevice));
    }
    device(device && d) noexcept : p(d.p) { d.p = nullptr; }
    device(const device &) = delete;
    ~device() { cudaFree(p); }
};

template <typename T, typename F>
static std::vector<T> filled(size_t n, F f) {
    std::vector<T> v(n);
    std::generate(v.begin(), v.end(), f);
    return v;
}

static size_t tile_bytes(uint32_t rows, uint32_t cols) { return (size_t) (rows + 31)/32*32*((cols + 15)/16*2); }

//
// bits
//

static bool check_stage(lb_cuda * cuda, uint32_t rows, uint32_t cols, uint32_t n, bool pre, bool add, uint32_t gap) {
    const auto tile  = filled<uint8_t>(tile_bytes(rows, cols), [] { return (uint8_t) random_bits(); });
    const auto g     = filled<uint16_t>(cols, [] { return random_half(0); });
    const auto post  = filled<uint16_t>(rows, [] { return random_half(3); });
    const size_t xs = cols + gap, ys = rows + gap;
    const auto x     = filled<float>(xs*n, [] { return random_float(); });
    const auto start = filled<float>(ys*n, [] { return random_float(); });

    lb_stage stage = {};
    stage.struct_size = sizeof(stage);
    stage.rows = rows;
    stage.cols = cols;
    stage.tile = tile.data();
    stage.tile_size = tile.size();
    stage.pre  = pre ? g.data() : nullptr;
    stage.post = post.data();
    std::vector<float> want = start;
    size_t size = 0;
    bool good = lb_stage_work_size(&stage, LB_MODE_INT, n, &size) == LB_OK;
    std::vector<uint8_t> scratch(size);
    good = good && lb_stage_run(&stage, LB_MODE_INT, x.data(), xs, n, add ? want.data() : nullptr, ys, want.data(), ys,
            scratch.data(), size, 0, 1) == LB_OK;
    if (!good) {
        fprintf(stderr, "the CPU oracle: %s\n", lb_last_error_message());
        exit(2);
    }

    device<uint8_t> d_tile(tile), work(lbk_work_bytes(rows, cols, n));
    device<uint16_t> d_g(g), d_post(post);
    device<float> d_x(x), d_y(start);
    lbk_args args = {};
    args.x = d_x.p;
    args.pre = pre ? d_g.p : nullptr;
    args.tile = d_tile.p;
    args.post = d_post.p;
    args.add = add ? d_y.p : nullptr;
    args.y = d_y.p;
    args.x_stride = xs;
    args.add_stride = args.y_stride = ys;
    args.rows = rows;
    args.cols = cols;
    args.n = n;
    stage.tile = d_tile.p;
    stage.pre  = args.pre;
    stage.post = args.post;
    bool all = true;
    for (const bool by_abi : { false, true }) {
        CHECK(cudaMemcpy(d_y.p, start.data(), start.size()*sizeof(float), cudaMemcpyHostToDevice));
        if (!by_abi) {
            CHECK(lbk_run(args, work.p, nullptr));
        } else if (lb_cuda_stage_work_size(&stage, n, &size) != LB_OK ||
                   lb_cuda_stage_run(cuda, &stage, args.x, xs, n, args.add, ys, args.y, ys, work.p, size, nullptr) != LB_OK) {
            fprintf(stderr, "lb_cuda_stage_run: %s\n", lb_last_error_message());
            exit(2);
        }
        CHECK(cudaDeviceSynchronize());
        std::vector<float> y(start.size());
        CHECK(cudaMemcpy(y.data(), d_y.p, y.size()*sizeof(float), cudaMemcpyDeviceToHost));
        const bool same = memcmp(y.data(), want.data(), y.size()*sizeof(float)) == 0;
        if (!same) {
            printf("DIFFERS: %u x %u, n = %u, pre %d, add %d, gap %u, C ABI %d\n", rows, cols, n, pre, add, gap, by_abi);
        }
        all = all && same;
    }
    return all;
}

// The halves of `members` matrices together, by launch.cu and by lb_cuda_group_run, against the same stages one by one, which
// check_stage compares with the CPU.
static bool check_group(lb_cuda * cuda, const std::vector<std::pair<uint32_t, uint32_t>> & members, uint32_t paths, uint32_t n) {
    std::vector<device<uint8_t>> tiles;
    std::vector<device<uint16_t>> scales;
    std::vector<device<float>> floats;
    std::vector<lbk_args> stages;
    std::vector<float *> results; // of members
    for (auto [rows, cols] : members) {
        const auto zeros = std::vector<float>((size_t) rows*n, 0.0f);
        results.push_back(floats.emplace_back(zeros).p);
        for (uint32_t p = 0; p < paths; ++p) {
            lbk_args a = {};
            a.tile = tiles.emplace_back(filled<uint8_t>(tile_bytes(rows, cols), [] { return (uint8_t) random_bits(); })).p;
            a.pre  = scales.emplace_back(filled<uint16_t>(cols, [] { return random_half(0); })).p;
            a.post = scales.emplace_back(filled<uint16_t>(rows, [] { return random_half(3); })).p;
            a.x    = floats.emplace_back(filled<float>((size_t) cols*n, random_float)).p;
            a.y    = results.back();
            a.add  = p > 0 ? a.y : nullptr;
            a.rows = rows; a.cols = cols; a.n = n;
            a.x_stride = cols;
            a.y_stride = a.add_stride = rows;
            stages.push_back(a);
        }
    }
    const device<uint8_t> work(lbk_group_work_bytes(stages.data(), (uint32_t) stages.size()) + 16);
    auto read = [&] {
        CHECK(cudaDeviceSynchronize());
        std::vector<std::vector<float>> all;
        for (size_t m = 0; m < members.size(); ++m) {
            std::vector<float> y((size_t) members[m].first*n);
            CHECK(cudaMemcpy(y.data(), results[m], y.size()*sizeof(float), cudaMemcpyDeviceToHost));
            CHECK(cudaMemset(results[m], 0xff, y.size()*sizeof(float)));
            all.push_back(y);
        }
        return all;
    };
    for (const lbk_args & a : stages) {
        CHECK(lbk_run(a, work.p, nullptr));
    }
    const auto want = read();
    CHECK(lbk_run_group(stages.data(), (uint32_t) members.size(), paths, work.p, nullptr));
    const auto grouped = read();
    std::vector<lb_cuda_call> calls;
    for (const lbk_args & a : stages) {
        lb_cuda_call c = {};
        c.struct_size = sizeof(c);
        c.stage.struct_size = sizeof(c.stage);
        c.stage.rows = a.rows;
        c.stage.cols = a.cols;
        c.stage.tile = a.tile;
        c.stage.tile_size = tile_bytes(a.rows, a.cols);
        c.stage.pre  = a.pre;
        c.stage.post = a.post;
        c.x = a.x;     c.x_stride = a.x_stride;
        c.add = a.add; c.add_stride = a.add_stride;
        c.y = a.y;     c.y_stride = a.y_stride;
        calls.push_back(c);
    }
    size_t size = 0;
    if (lb_cuda_group_work_size(calls.data(), calls.size(), n, &size) != LB_OK ||
        lb_cuda_group_run(cuda, calls.data(), calls.size(), n, work.p, size, nullptr) != LB_OK) {
        fprintf(stderr, "lb_cuda_group_run: %s\n", lb_last_error_message());
        exit(2);
    }
    const auto by_abi = read();
    auto same = [&](const std::vector<std::vector<float>> & got) {
        for (size_t m = 0; m < want.size(); ++m) {
            if (memcmp(got[m].data(), want[m].data(), want[m].size()*sizeof(float)) != 0) {
                return false;
            }
        }
        return true;
    };
    const bool good = same(grouped) && same(by_abi);
    if (!good) {
        printf("DIFFERS: a group of %zu, %u paths, n = %u, launch.cu %d, C ABI %d\n", members.size(), paths, n,
                !same(grouped), !same(by_abi));
    }
    return good;
}

static int check_all(bool few) {
    if (lb_kernel_force("scalar") != LB_OK) {
        return 2;
    }
    lb_cuda * cuda = nullptr;
    CHECK(cudaSetDevice(0)); // gives the thread its context
    if (lb_cuda_open(&cuda) != LB_OK) {
        fprintf(stderr, "lb_cuda_open: %s\n", lb_last_error_message());
        return 2;
    }
    int stages = 0, bad = 0;
    for (auto [rows, cols] : { std::pair<uint32_t, uint32_t>{ 1, 1 }, { 33, 17 }, { 70, 45 }, { 160, 300 }, { 576, 160 },
            { 576, 1536 }, { 1152, 4096 }, { 320, 8192 }, { 320, 8193 }, { 640, 28672 },
            { 4300, 96 }, { 8500, 64 }, { 18000, 48 }, { 34000, 33 }, { 9000, 4200 } }) { // row blocks that share a block
        for (uint32_t n : { 1, 2, 4, 5, 8, 15, 16, 17, 32, 33, 70 }) {
            if (few && ((n != 1 && n != 2 && n != 8 && n != 33) || (uint64_t) rows*cols > 1 << 19)) {
                continue;
            }
            const bool odd = (rows + n)%2;
            bad += !check_stage(cuda, rows, cols, n, odd, !odd, n%3);
            ++stages;
        }
    }
    int groups = 0, bad_groups = 0;
    for (uint32_t n : { 1, 2, 5, 8, 17, 40 }) {
        if (few && n != 1 && n != 40) {
            continue;
        }
        for (uint32_t paths : { 1, 2 }) {
            bad_groups += !check_group(cuda, { { 576, 160 }, { 192, 64 }, { 33, 32 } }, paths, n);
            bad_groups += !check_group(cuda, { { 1536, 320 }, { 1500, 96 } }, paths, n);
            bad_groups += !check_group(cuda, { { 320, 11008 }, { 64, 9000 } }, paths, n);
            bad_groups += !check_group(cuda, { { 11008, 320 }, { 4100, 4200 } }, paths, n);
            groups += 4;
        }
    }
    lb_cuda_free(cuda);
    printf("%d stages, %d differ from the scalar kernel of the CPU\n", stages, bad);
    printf("%d groups, %d differ from their stages one by one\n", groups, bad_groups);
    return bad || bad_groups ? 1 : 0;
}

//
// time
//

// The few calls of cuBLAS that are needed, with its types as the integers that they are.
struct cublas {
    void * handle = nullptr;
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int, const void *,
            void *, int, int, int, int) = nullptr;
    int (*set_stream)(void *, cudaStream_t) = nullptr;
    device<uint8_t> workspace{ 32 << 20 };
    std::string missing; // why it cannot be had

    bool open(cudaStream_t stream) {
        void * lib = nullptr;
        for (const char * name : { "libcublas.so.13", "libcublas.so.12", "libcublas.so" }) {
            lib = lib ? lib : dlopen(name, RTLD_NOW);
        }
        if (!lib) {
            missing = "not found (libcublas.so.13, .so.12)";
            return false;
        }
        auto create = (int (*)(void **)) dlsym(lib, "cublasCreate_v2");
        auto set_workspace = (int (*)(void *, void *, size_t)) dlsym(lib, "cublasSetWorkspace_v2");
        set_stream = (decltype(set_stream)) dlsym(lib, "cublasSetStream_v2");
        gemm = (decltype(gemm)) dlsym(lib, "cublasGemmEx");
        const bool good = create && set_workspace && set_stream && gemm && create(&handle) == 0 && set_stream(handle, stream) == 0 &&
               set_workspace(handle, workspace.p, 32 << 20) == 0;
        missing = good ? "" : "does not start";
        return good;
    }

    // y (rows x n, f16) = W (rows x cols, f16, row-major) x (cols x n, f16), summed in f32
    void mul(const uint16_t * w, const uint16_t * x, uint16_t * y, int rows, int cols, int n) {
        const float one = 1, zero = 0;
        const int half = 2 /* CUDA_R_16F */, compute = 68 /* CUBLAS_COMPUTE_32F */, transposed = 1, plain = 0;
        if (gemm(handle, transposed, plain, rows, n, cols, &one, w, half, cols, x, half, cols, &zero, y, half, rows, compute, -1)) {
            fprintf(stderr, "cublasGemmEx failed\n");
            exit(2);
        }
    }
};

// Captures `once` into a graph; a replay of it is what is timed. It runs before that: a kernel that is not loaded yet, or a product
// for which cuBLAS has not chosen one, may do what a capture forbids.
static cudaGraphExec_t captured(cudaStream_t stream, const std::function<void()> & once) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    once();
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    once();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphDestroy(graph));
    return exec;
}

static float replay(cudaGraphExec_t exec, cudaStream_t stream) {
    static cudaEvent_t from = nullptr, to = nullptr;
    if (!from) {
        CHECK(cudaEventCreate(&from));
        CHECK(cudaEventCreate(&to));
    }
    CHECK(cudaEventRecord(from, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(to, stream));
    CHECK(cudaEventSynchronize(to));
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, from, to));
    return ms*1000;
}

// Of one layer; each is two to four nodes of a graph.
constexpr size_t MAX_COPIES = 8192;

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size()/2];
}

// How many copies of `bytes` a replay walks over, so that each layer comes from memory as in a model: at least 256 MiB and four times
// the L2 cache.
static int copies_of(size_t bytes) {
    static size_t pool = 0;
    if (pool == 0) {
        cudaDeviceProp p;
        CHECK(cudaGetDeviceProperties(&p, 0));
        pool = std::max<size_t>(256 << 20, 4*(size_t) p.l2CacheSize);
    }
    const size_t copies = std::max<size_t>((pool + bytes - 1)/bytes, 2);
    if (copies > MAX_COPIES) {
        fprintf(stderr, "a layer of %zu bytes needs %zu copies to exceed the caches, there is room for %zu\n", bytes, copies, MAX_COPIES);
        exit(2);
    }
    return (int) copies;
}

// Random bytes, some of them and then the same again: the numbers are slower to make than to use, and times do not depend on them.
static std::vector<uint8_t> signs_of(size_t n) {
    static const auto some = filled<uint8_t>((4 << 20) + 1, [] { return (uint8_t) random_bits(); });
    std::vector<uint8_t> v(n);
    for (size_t at = 0; at < n; at += some.size()) {
        memcpy(v.data() + at, some.data(), std::min(some.size(), n - at));
    }
    return v;
}

struct layer {
    device<uint8_t> v, u;
};

static void speed_of(cublas * blas, cudaStream_t stream, uint32_t d_out, uint32_t d_in, double bpw, uint32_t n, double seconds) {
    const double exact = bpw*d_out*d_in/((double) d_out + d_in + 16);
    const uint32_t rank = std::max(32u, (uint32_t) (exact/32)*32);
    const size_t v_bytes = tile_bytes(rank, d_in), u_bytes = tile_bytes(d_out, rank), dense = (size_t) d_out*d_in;
    const int layers = copies_of(v_bytes + u_bytes), denses = copies_of(2*dense);

    std::vector<layer> factors;
    const auto bytes = signs_of(std::max(v_bytes, u_bytes));
    for (int i = 0; i < layers; ++i) {
        factors.push_back({ device<uint8_t>(v_bytes), device<uint8_t>(u_bytes) });
        CHECK(cudaMemcpy(factors[i].v.p, bytes.data(), v_bytes, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(factors[i].u.p, bytes.data(), u_bytes, cudaMemcpyHostToDevice));
    }
    const auto scale = [](size_t k) { return device<uint16_t>(filled<uint16_t>(k, [] { return random_half(2); })); };
    const device<uint16_t> g = scale(d_in), l = scale(rank), h = scale(d_out);
    const device<float> x(filled<float>((size_t) d_in*n, random_float)), t((size_t) rank*n), y((size_t) d_out*n);
    const device<uint8_t> work(std::max(lbk_work_bytes(rank, d_in, n), lbk_work_bytes(d_out, rank, n)));
    const cudaGraphExec_t ours = captured(stream, [&] {
        for (const layer & f : factors) {
            lbk_args a = {};
            a.n = n;
            a.x = x.p; a.pre = g.p; a.tile = f.v.p; a.post = l.p; a.y = t.p;
            a.rows = rank; a.cols = d_in; a.x_stride = d_in; a.y_stride = rank;
            CHECK(lbk_run(a, work.p, stream));
            a.x = t.p; a.pre = nullptr; a.tile = f.u.p; a.post = h.p; a.y = y.p;
            a.rows = d_out; a.cols = rank; a.x_stride = rank; a.y_stride = d_out;
            CHECK(lbk_run(a, work.p, stream));
        }
    });

    const device<uint16_t> w(blas ? dense*denses : 1), x16(filled<uint16_t>((size_t) d_in*n, [] { return random_half(1); })),
        y16((size_t) d_out*n);
    cudaGraphExec_t theirs = nullptr;
    if (blas) {
        CHECK(cudaMemset(w.p, 0x2c, dense*denses*sizeof(uint16_t)));
        theirs = captured(stream, [&] {
            for (int i = 0; i < denses; ++i) {
                blas->mul(w.p + i*dense, x16.p, y16.p, d_out, d_in, n);
            }
        });
    }

    std::vector<double> a, b;
    double spent = 0;
    for (int round = 0; round < 3 || spent < seconds*1e6; ++round) { // interleaved
        const double mine = replay(ours, stream), other = theirs ? replay(theirs, stream) : 0;
        spent += mine + other;
        if (round > 1) { // the first rounds warm up
            a.push_back(mine/layers);
            b.push_back(other/denses);
        }
    }
    const double us = median(a), macs = (double) rank*(d_in + d_out)*n;
    const double gbs = (v_bytes + u_bytes)/us*1e-3;
    printf("| %u x %u | %.2f | %u | %u | %.2f | %.2f | %.2f | %.0f | %.2f |", d_out, d_in, bpw, rank, n, us,
            *std::min_element(a.begin(), a.end()), *std::max_element(a.begin(), a.end()), gbs, macs/us*1e-6);
    if (theirs) {
        printf(" %.2f | %.2f |\n", median(b), median(b)/us);
        CHECK(cudaGraphExecDestroy(theirs));
    } else {
        printf(" no cuBLAS | not measured |\n");
    }
    fflush(stdout);
    CHECK(cudaGraphExecDestroy(ours));
}

// What a block multiplies by one input.
struct block_input {
    const char * name;
    uint32_t d_in;
    std::vector<uint32_t> d_out;
};

// Both halves of the matrices that share an input, decoded: as single stages, and as two groups.
static void speed_of_group(cudaStream_t stream, const block_input & b, double bpw, uint32_t paths, uint32_t n, double seconds) {
    const uint32_t members = (uint32_t) b.d_out.size();
    std::vector<uint32_t> ranks;
    size_t copy = 0; // bytes of a layer's signs
    for (uint32_t d_out : b.d_out) {
        const double exact = bpw/paths*d_out*b.d_in/((double) d_out + b.d_in + 16);
        ranks.push_back(std::max(32u, (uint32_t) (exact/32)*32));
        copy += paths*(tile_bytes(ranks.back(), b.d_in) + tile_bytes(d_out, ranks.back()));
    }
    const int layers = copies_of(copy);
    const device<uint8_t> signs(signs_of(copy*layers));
    const device<float> x(filled<float>((size_t) b.d_in*n, random_float));
    std::vector<device<uint16_t>> scales;
    std::vector<device<float>> results;
    std::vector<std::vector<lbk_args>> first(layers), second(layers);
    size_t at = 0;
    for (uint32_t m = 0; m < members; ++m) {
        const uint32_t d_out = b.d_out[m], rank = ranks[m];
        const auto scale = [&](size_t k) { return scales.emplace_back(filled<uint16_t>(k, [] { return random_half(2); })).p; };
        const uint16_t * g = scale(b.d_in), * l = scale(rank), * h = scale(d_out);
        float * y = results.emplace_back((size_t) d_out*n).p;
        for (uint32_t p = 0; p < paths; ++p) {
            float * t = results.emplace_back((size_t) rank*n).p;
            for (int i = 0; i < layers; ++i) {
                lbk_args a = {};
                a.n = n;
                a.x = x.p; a.pre = g; a.tile = signs.p + at; a.post = l; a.y = t;
                a.rows = rank; a.cols = b.d_in; a.x_stride = b.d_in; a.y_stride = rank;
                at += tile_bytes(rank, b.d_in);
                first[i].push_back(a);
                a.x = t; a.pre = nullptr; a.tile = signs.p + at; a.post = h; a.y = y; a.add = p > 0 ? y : nullptr;
                a.rows = d_out; a.cols = rank; a.x_stride = rank; a.y_stride = a.add_stride = d_out;
                at += tile_bytes(d_out, rank);
                second[i].push_back(a);
            }
        }
    }
    const uint32_t count = members*paths;
    const device<uint8_t> work(std::max(lbk_group_work_bytes(first[0].data(), count), lbk_group_work_bytes(second[0].data(), count)) + 16);
    const cudaGraphExec_t separate = captured(stream, [&] {
        for (int i = 0; i < layers; ++i) {
            for (uint32_t s = 0; s < count; ++s) { // as nodes of their own: first half, second half, next path
                CHECK(lbk_run(first[i][s], work.p, stream));
                CHECK(lbk_run(second[i][s], work.p, stream));
            }
        }
    });
    const cudaGraphExec_t grouped = captured(stream, [&] {
        for (int i = 0; i < layers; ++i) {
            CHECK(lbk_run_group(first[i].data(), count, 1, work.p, stream));
            CHECK(lbk_run_group(second[i].data(), members, paths, work.p, stream));
        }
    });
    std::vector<double> apart, together;
    double spent = 0;
    for (int round = 0; round < 3 || spent < seconds*1e6; ++round) { // interleaved
        const double a = replay(separate, stream), t = replay(grouped, stream);
        spent += a + t;
        if (round > 1) {
            apart.push_back(a/layers);
            together.push_back(t/layers);
        }
    }
    printf("| %s | %.2f | %u | %u | %.2f | %.2f | %.2f |\n", b.name, bpw, paths, n, median(apart), median(together),
            median(apart)/median(together));
    fflush(stdout);
    CHECK(cudaGraphExecDestroy(separate));
    CHECK(cudaGraphExecDestroy(grouped));
}

struct one_layer {
    uint32_t d_out, d_in;
    double bpw;
    uint32_t n;
};

static int speed(double seconds, const one_layer * only) {
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    cublas blas;
    const bool have = blas.open(stream);
    if (!have) {
        printf("cuBLAS %s: the comparison with F16 is not measured.\n\n", blas.missing.c_str());
    }
    printf("One path, both halves, replayed from a CUDA graph over copies that exceed the caches; medians, us a layer.\n\n"
           "| layer | bpw | rank | n | us | min | max | GB/s of signs | TMAC/s | cuBLAS F16 us | times faster |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|\n");
    if (only) {
        speed_of(have ? &blas : nullptr, stream, only->d_out, only->d_in, only->bpw, only->n, seconds);
        return 0;
    }
    for (auto [d_out, d_in] : { std::pair<uint32_t, uint32_t>{ 4096, 4096 }, { 11008, 4096 }, { 4096, 11008 }, { 8192, 8192 },
            { 28672, 8192 }, { 8192, 28672 } }) {
        for (double bpw : { 0.1, 0.3, 0.55, 1.0 }) {
            for (uint32_t n : { 1, 8, 64, 512 }) {
                speed_of(have ? &blas : nullptr, stream, d_out, d_in, bpw, n, seconds);
            }
        }
    }
    printf("\nMatrices of one input, both halves, replayed from a CUDA graph: every stage by itself, and all first and then all\n"
           "second halves together; medians, us a block.\n\n"
           "| matrices | bpw | paths | n | separate us | grouped us | times faster |\n|---|---|---|---|---|---|---|\n");
    const block_input inputs[] = {
        { "q, k, v of 2048 (2048, 512, 512)", 2048, { 2048, 512, 512 } },
        { "q, k, v of 4096 (3 x 4096)", 4096, { 4096, 4096, 4096 } },
        { "q, k, v of 4096 (4096, 1024, 1024)", 4096, { 4096, 1024, 1024 } },
        { "gate, up of 4096 (2 x 11008)", 4096, { 11008, 11008 } },
        { "q, k, v of 8192 (8192, 1024, 1024)", 8192, { 8192, 1024, 1024 } },
        { "gate, up of 8192 (2 x 28672)", 8192, { 28672, 28672 } },
        { "one of 4096 (4096)", 4096, { 4096 } },
    };
    for (const block_input & b : inputs) {
        for (double bpw : { 0.1, 0.55, 1.0 }) {
            for (uint32_t paths : { 1, 2 }) {
                for (uint32_t n : { 1, 8 }) {
                    speed_of_group(stream, b, bpw, paths, n, seconds);
                }
            }
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    one_layer only = {};
    if (argc == 7) {
        only = { (uint32_t) atoi(argv[3]), (uint32_t) atoi(argv[4]), atof(argv[5]), (uint32_t) atoi(argv[6]) };
    }
    const bool one = argc == 7 && only.d_out > 0 && only.d_in > 0 && only.bpw > 0 && only.n > 0 && only.n <= LBK_MAX_N;
    const bool few = what == "check" && argc == 3 && strcmp(argv[2], "few") == 0;
    if ((what != "check" && what != "speed") || (what == "check" ? argc > 2 && !few : argc > 3 && !one)) {
        fprintf(stderr, "usage: cuda-bench check [few] | speed [SECONDS [OUT IN BPW N]]\n");
        return 2;
    }
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        fprintf(stderr, "cuda-bench: no CUDA device: %s\n", cudaGetErrorString(status));
        return 3;
    }
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    printf("%s, compute capability %d.%d, %d multiprocessors, %.0f MB of L2\n", p.name, p.major, p.minor,
            p.multiProcessorCount, p.l2CacheSize/1e6);
    return what == "check" ? check_all(few) : speed(argc > 2 ? atof(argv[2]) : 0.5, one ? &only : nullptr);
}
