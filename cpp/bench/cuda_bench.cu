// The CUDA kernels on a real GPU: bits against the CPU oracle (liblittlebit's scalar kernel), time against cuBLAS F16.
// Needs neither network nor Rust nor an installed CUDA; cuBLAS is opened at run time and left out where it is missing.
//
//   cuda-bench check             exit 1 if a bit differs, launched by launch.cu and by lb_cuda_stage_run
//   cuda-bench speed [SECONDS]   a table of layers; time per line, default 0.5
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

static int check_all() {
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
            { 576, 1536 }, { 1152, 4096 }, { 320, 8192 }, { 320, 8193 }, { 640, 28672 } }) {
        for (uint32_t n : { 1, 2, 4, 5, 8, 15, 16, 17, 32, 33, 70 }) {
            const bool odd = (rows + n)%2;
            bad += !check_stage(cuda, rows, cols, n, odd, !odd, n%3);
            ++stages;
        }
    }
    lb_cuda_free(cuda);
    printf("%d stages, %d differ from the scalar kernel of the CPU\n", stages, bad);
    return bad ? 1 : 0;
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

    bool open(cudaStream_t stream) {
        void * lib = nullptr;
        for (const char * name : { "libcublas.so.13", "libcublas.so.12", "libcublas.so" }) {
            lib = lib ? lib : dlopen(name, RTLD_NOW);
        }
        if (!lib) {
            return false;
        }
        auto create = (int (*)(void **)) dlsym(lib, "cublasCreate_v2");
        auto set_workspace = (int (*)(void *, void *, size_t)) dlsym(lib, "cublasSetWorkspace_v2");
        set_stream = (decltype(set_stream)) dlsym(lib, "cublasSetStream_v2");
        gemm = (decltype(gemm)) dlsym(lib, "cublasGemmEx");
        return create && set_workspace && set_stream && gemm && create(&handle) == 0 && set_stream(handle, stream) == 0 &&
               set_workspace(handle, workspace.p, 32 << 20) == 0;
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

// Captures `once` into a graph; a replay of it is what is timed.
static cudaGraphExec_t captured(cudaStream_t stream, const std::function<void()> & once) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
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

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size()/2];
}

struct layer {
    device<uint8_t> v, u;
};

static void speed_of(cublas * blas, cudaStream_t stream, uint32_t d_out, uint32_t d_in, double bpw, uint32_t n, double seconds) {
    const double exact = bpw*d_out*d_in/((double) d_out + d_in + 16);
    const uint32_t rank = std::max(32u, (uint32_t) (exact/32)*32);
    const size_t v_bytes = tile_bytes(rank, d_in), u_bytes = tile_bytes(d_out, rank), dense = (size_t) d_out*d_in;
    // Copies that together exceed every cache, so that each layer comes from memory as in a model.
    const size_t pool = 256 << 20;
    const int layers  = (int) std::min<size_t>(std::max<size_t>(pool/(v_bytes + u_bytes), 2), 64);
    const int denses  = (int) std::max<size_t>(pool/(2*dense), 2);

    std::vector<layer> factors;
    const auto bytes = filled<uint8_t>(std::max(v_bytes, u_bytes), [] { return (uint8_t) random_bits(); });
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
        printf(" - | - |\n");
    }
    fflush(stdout);
    CHECK(cudaGraphExecDestroy(ours));
}

static int speed(double seconds) {
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    cublas blas;
    const bool have = blas.open(stream);
    if (!have) {
        printf("cuBLAS is not on this machine: its columns are left out.\n\n");
    }
    printf("One path, both halves, replayed from a CUDA graph over copies that exceed the caches; medians, us a layer.\n\n"
           "| layer | bpw | rank | n | us | min | max | GB/s of signs | TMAC/s | cuBLAS F16 us | times faster |\n"
           "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (auto [d_out, d_in] : { std::pair<uint32_t, uint32_t>{ 4096, 4096 }, { 11008, 4096 }, { 4096, 11008 }, { 8192, 8192 },
            { 28672, 8192 }, { 8192, 28672 } }) {
        for (double bpw : { 0.1, 0.3, 0.55, 1.0 }) {
            for (uint32_t n : { 1, 8, 64, 512 }) {
                speed_of(have ? &blas : nullptr, stream, d_out, d_in, bpw, n, seconds);
            }
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what != "check" && what != "speed") {
        fprintf(stderr, "usage: cuda-bench check | speed [SECONDS]\n");
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
    return what == "check" ? check_all() : speed(argc > 2 ? atof(argv[2]) : 0.5);
}
