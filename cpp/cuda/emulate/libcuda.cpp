// The part of the NVIDIA driver's library that src/cuda calls, on the host model: built as libcuda.so, it lets
// `littlebit-convert --device cuda` run on machines without a GPU. libcublas.cpp is the other library.
//
// Environment: LITTLEBIT_HOST_MODEL_MEMORY bytes of the device (default 1 GiB), LITTLEBIT_HOST_MODEL_FAULT=NAME a kernel or function
// whose first value is wrong, LITTLEBIT_HOST_MODEL_REFUSE=NAME one that returns an error,
// =NAME:N from its Nth call on; LITTLEBIT_HOST_MODEL_OLD a device of capability 7.0; LITTLEBIT_HOST_MODEL_COUNT=FILE where to write at
// the end how often each kernel and function was called.

#define LBK_EMULATE
#include "libcuda.h"

#include <cmath>

#include "../factorize.cuh"
#include "../kernels.cuh"
#include "../plan.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>

namespace {

// CUresult
constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_IMAGE = 200, NOT_FOUND = 500,
              LAUNCH_FAILED = 719;

struct kernel {
    const char * name;
    bool plain;  // no barrier and no shuffle: may run as a loop
    bool factor; // takes lbf_args
    void (*factorize)(lbf_args);
    void (*stage)(lbk_group);
};

constexpr kernel KERNELS[] = {
    { "lbf_unit_rows", true, true, lbf_unit_rows, nullptr },
    { "lbf_pull", true, true, lbf_pull, nullptr },
    { "lbf_advance", true, true, lbf_advance, nullptr },
    { "lbf_columns", false, true, lbf_columns, nullptr },
    { "lbf_rows", true, true, lbf_rows, nullptr },
    { "lbf_direction", false, true, lbf_direction, nullptr },
    { "lbf_start", false, true, lbf_start, nullptr },
    { "lbf_inverse_length", false, true, lbf_inverse_length, nullptr },
    { "lbf_ridge", true, true, lbf_ridge, nullptr },
    { "lbf_diagonal", true, true, lbf_diagonal, nullptr },
    { "lbf_cholesky", false, true, lbf_cholesky, nullptr },
    { "lbf_scaled", true, true, lbf_scaled, nullptr },
    { "lbf_multiply", true, true, lbf_multiply, nullptr },
    { "lbf_row_dots", false, true, lbf_row_dots, nullptr },
    { "lbf_column_dots", true, true, lbf_column_dots, nullptr },
    { "lbf_descend", false, true, lbf_descend, nullptr },
    { "lbf_gather", true, true, lbf_gather, nullptr },
    { "lbf_scatter", true, true, lbf_scatter, nullptr },
    { "lbf_widen", true, true, lbf_widen, nullptr },
    { "lbf_sign_pairs", true, true, lbf_sign_pairs, nullptr },
    { "lbf_sign_tile", true, true, lbf_sign_tile, nullptr },
    { "lbk_quantize", false, false, nullptr, lbk_quantize },
    { "lbk_fused", false, false, nullptr, lbk_fused },
    { "lbk_small4", false, false, nullptr, lbk_small4 },
    { "lbk_small8", false, false, nullptr, lbk_small8 },
    { "lbk_large", false, false, nullptr, lbk_large },
    { "lbk_extent", false, false, nullptr, lbk_extent },
    { "lbk_split", false, false, nullptr, lbk_split },
    { "lbk_fused_wide", false, false, nullptr, lbk_fused_wide },
};

struct allocation {
    uint8_t * map;
    size_t    mapped, size;
};

std::mutex turn;
std::map<uint8_t *, allocation> allocations; // by their first byte
size_t allocated, peak, memory;
int thread_order = -1;
std::string fault;
thread_local bool has_context;

// How often each kernel and function was called.
struct counter {
    std::mutex turn;
    std::map<std::string, size_t> calls;
    const char * file = getenv("LITTLEBIT_HOST_MODEL_COUNT");

    void count(const char * name) {
        if (file) {
            std::lock_guard<std::mutex> guard(turn);
            ++calls[name];
        }
    }
    ~counter() {
        FILE * out = file ? fopen(file, "w") : nullptr;
        if (out) {
            for (const auto & [name, n] : calls) {
                fprintf(out, "%s %zu\n", name.c_str(), n);
            }
            fclose(out);
        }
    }
} counted;

bool is(const char * variable, const char * name) {
    const char * value = getenv(variable);
    return value && strcmp(value, name) == 0;
}

size_t total() {
    if (memory == 0) {
        const char * value = getenv("LITTLEBIT_HOST_MODEL_MEMORY");
        memory = value ? strtoull(value, nullptr, 10) : 1ull << 30;
    }
    return memory;
}

uint8_t * find(uint64_t device, size_t size) {
    uint8_t * p = (uint8_t *) (device & ~LBM_DEVICE);
    auto next = allocations.upper_bound(p);
    if (!(device & LBM_DEVICE) || next == allocations.begin()) {
        return nullptr;
    }
    const auto & [first, a] = *--next;
    return p + size <= first + a.size ? p : nullptr;
}

struct call {
    const kernel * k;
    lbf_args  args;  // of factorization
    lbk_group group; // of stages
};

void run_call(const void * p) {
    const call * c = (const call *) p;
    if (c->k->factor) {
        c->k->factorize(c->args);
    } else {
        c->k->stage(c->group);
    }
}

// a pointer of the device as the kernel sees it; faults in the kernel show what it must not touch
template <typename T>
void to_host(T *& p) { p = (T *) ((uint64_t) p & ~LBM_DEVICE); }

bool run(const call & c, uint32_t grid_x, uint32_t grid_y, uint32_t block, uint32_t shared) {
    if (!c.k->plain || thread_order >= 0) {
        const auto how = static_cast<lbe::order>(thread_order < 0 ? 1 : thread_order);
        return lbe::launch(run_call, &c, grid_x, grid_y, block, shared, how);
    }
    lbe::block_size = { block, 1, 1 };
    lbe::grid_size  = { grid_x, grid_y, 1 };
    for (uint32_t y = 0; y < grid_y; ++y) {
        for (uint32_t x = 0; x < grid_x; ++x) {
            lbe::block_index = { x, y, 0 };
            for (uint32_t t = 0; t < block; ++t) {
                lbe::thread_index = { t, 0, 0 };
                run_call(&c);
            }
        }
    }
    return true;
}

// What a broken device would leave: its first value is another one.
void spoil(const call & c) {
    const std::string name = c.k->name;
    if (name == "lbk_quantize") {
        c.group.stage[0].columns[0].step *= 1.5f;
    } else if (name == "lbk_extent") {
        c.group.stage[0].split[0] += 2 << 23; // the value, four times as large
    } else if (!c.k->factor) {
        c.group.stage[0].y[0] += 1.0f + std::fabs(c.group.stage[0].y[0]);
    } else if (name == "lbf_row_dots") {
        c.args.sums[0] += 1.0 + std::fabs(c.args.sums[0]);
    } else if (name == "lbf_inverse_length") {
        c.args.more[0] *= 1.5f;
    } else if (name == "lbf_cholesky") {
        c.args.out[0] *= 1.5f;
    } else if (name == "lbf_descend") {
        c.args.out[0] = -c.args.out[0];
    } else {
        c.args.out[0] += 1.0f + std::fabs(c.args.out[0]);
    }
}

} // namespace

#define LBM_API extern "C" __attribute__((visibility("default")))
// Every call of the driver: one at a time, refused if the environment says so, and not before a context is current.
#define LBM_CALL(name)                                                          \
    std::lock_guard<std::mutex> guard(turn);                                    \
    if (lbm_refused(name)) { return LAUNCH_FAILED; }
#define LBM_CALL_IN_CONTEXT(name)                                               \
    LBM_CALL(name)                                                              \
    if (!has_context) { return INVALID_CONTEXT; }

LBM_API void * lbm_host(uint64_t device, size_t size) {
    std::lock_guard<std::mutex> guard(turn);
    return find(device, size);
}
LBM_API bool lbm_faulty(const char * name) { return fault == name || is("LITTLEBIT_HOST_MODEL_FAULT", name); }
LBM_API bool lbm_refused(const char * name) {
    static unsigned long calls;
    counted.count(name);
    const char * value = getenv("LITTLEBIT_HOST_MODEL_REFUSE");
    const size_t n = strlen(name);
    if (!value || strncmp(value, name, n) != 0) {
        return false;
    }
    return value[n] == 0 || (value[n] == ':' && ++calls >= strtoul(value + n + 1, nullptr, 10));
}
LBM_API void lbm_order(int order) { thread_order = order; }
LBM_API size_t lbm_peak(void) {
    std::lock_guard<std::mutex> guard(turn);
    const size_t most = peak;
    peak = allocated;
    return most;
}
LBM_API void lbm_memory(size_t bytes) { memory = bytes; }
LBM_API void lbm_fault(const char * name) { fault = name ? name : ""; }

LBM_API int cuInit(unsigned) { LBM_CALL("cuInit") return SUCCESS; }
LBM_API int cuGetErrorString(int, const char ** text) {
    *text = "refused by the host model";
    return SUCCESS;
}
LBM_API int cuDeviceGetCount(int * count) { LBM_CALL("cuDeviceGetCount") *count = 1; return SUCCESS; }
LBM_API int cuDeviceGet(int * device, int ordinal) { LBM_CALL("cuDeviceGet") *device = ordinal; return SUCCESS; }
LBM_API int cuDeviceGetName(char * name, int size, int) {
    LBM_CALL("cuDeviceGetName")
    snprintf(name, (size_t) size, "host model");
    return SUCCESS;
}
LBM_API int cuDeviceGetAttribute(int * value, int attribute, int) {
    LBM_CALL("cuDeviceGetAttribute")
    *value = attribute == 75 ? (getenv("LITTLEBIT_HOST_MODEL_OLD") ? 7 : 9) : 0; // compute capability, the major part
    return SUCCESS;
}
LBM_API int cuDevicePrimaryCtxRetain(void ** context, int) {
    LBM_CALL("cuDevicePrimaryCtxRetain")
    *context = &allocations;
    return SUCCESS;
}
LBM_API int cuDevicePrimaryCtxRelease_v2(int) { LBM_CALL("cuDevicePrimaryCtxRelease") return SUCCESS; }
LBM_API int cuCtxSetCurrent(void * context) {
    LBM_CALL("cuCtxSetCurrent")
    has_context = context == &allocations;
    return has_context || !context ? SUCCESS : INVALID_CONTEXT;
}
LBM_API int cuCtxGetCurrent(void ** context) { *context = has_context ? &allocations : nullptr; return SUCCESS; }
LBM_API int cuCtxGetDevice(int * device) { *device = 0; return has_context ? SUCCESS : INVALID_CONTEXT; }
LBM_API int cuCtxPushCurrent_v2(void *) { has_context = true; return SUCCESS; }
LBM_API int cuCtxPopCurrent_v2(void **) { has_context = false; return SUCCESS; }
LBM_API int cuCtxSynchronize(void) { LBM_CALL_IN_CONTEXT("cuCtxSynchronize") return SUCCESS; }

LBM_API int cuMemGetInfo_v2(size_t * free, size_t * all) {
    LBM_CALL_IN_CONTEXT("cuMemGetInfo")
    *all  = total();
    *free = total() > allocated ? total() - allocated : 0;
    return SUCCESS;
}
LBM_API int cuMemAlloc_v2(uint64_t * device, size_t size) {
    LBM_CALL_IN_CONTEXT("cuMemAlloc")
    if (size == 0) {
        return INVALID_VALUE;
    }
    if (allocated + size > total()) {
        return OUT_OF_MEMORY;
    }
    const lbe::pages memory = lbe::map_pages(size);
    if (!memory.map) {
        return OUT_OF_MEMORY;
    }
    memset(memory.map, 0xff, memory.inner);
    uint8_t * first = memory.end() - (size + 15)/16*16;
    allocations[first] = { memory.map, memory.whole, size };
    allocated += size;
    peak = allocated > peak ? allocated : peak;
    *device = (uint64_t) first | LBM_DEVICE;
    return SUCCESS;
}
LBM_API int cuMemFree_v2(uint64_t device) {
    LBM_CALL_IN_CONTEXT("cuMemFree")
    auto at = allocations.find((uint8_t *) (device & ~LBM_DEVICE));
    if (at == allocations.end()) {
        return INVALID_VALUE;
    }
    allocated -= at->second.size;
    munmap(at->second.map, at->second.mapped);
    allocations.erase(at);
    return SUCCESS;
}
LBM_API int cuMemcpyHtoD_v2(uint64_t to, const void * from, size_t size) {
    LBM_CALL_IN_CONTEXT("cuMemcpyHtoD")
    uint8_t * p = find(to, size);
    return p ? (memcpy(p, from, size), SUCCESS) : INVALID_VALUE;
}
LBM_API int cuMemcpyDtoH_v2(void * to, uint64_t from, size_t size) {
    LBM_CALL_IN_CONTEXT("cuMemcpyDtoH")
    const uint8_t * p = find(from, size);
    return p ? (memcpy(to, p, size), SUCCESS) : INVALID_VALUE;
}
LBM_API int cuMemsetD32_v2(uint64_t to, unsigned value, size_t count) {
    LBM_CALL_IN_CONTEXT("cuMemsetD32")
    uint32_t * p = (uint32_t *) find(to, 4*count);
    for (size_t i = 0; p && i < count; ++i) {
        p[i] = value;
    }
    return p ? SUCCESS : INVALID_VALUE;
}

LBM_API int cuModuleLoadData(void ** module, const void * image) {
    LBM_CALL_IN_CONTEXT("cuModuleLoadData")
    const uint8_t fatbin[] = { 0x50, 0xed, 0x55, 0xba };
    if (memcmp(image, fatbin, sizeof fatbin) != 0) {
        return INVALID_IMAGE;
    }
    *module = &fault;
    return SUCCESS;
}
LBM_API int cuModuleUnload(void *) { return SUCCESS; }
LBM_API int cuModuleGetFunction(void ** function, void *, const char * name) {
    LBM_CALL_IN_CONTEXT("cuModuleGetFunction")
    for (const kernel & k : KERNELS) {
        if (strcmp(k.name, name) == 0) {
            *function = (void *) &k;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
LBM_API int cuLaunchKernel(void * function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block, unsigned block_y,
        unsigned block_z, unsigned shared, void *, void ** params, void **) {
    LBM_CALL_IN_CONTEXT("cuLaunchKernel")
    call c = { (const kernel *) function, {}, {} };
    if (grid_z != 1 || block_y != 1 || block_z != 1 || grid_x == 0 || grid_y == 0 || grid_y > 65535) {
        return INVALID_VALUE;
    }
    if (lbm_refused(c.k->name)) {
        return LAUNCH_FAILED;
    }
    if (c.k->factor) {
        memcpy(&c.args, params[0], sizeof c.args);
        to_host(c.args.out); to_host(c.args.more); to_host(c.args.x); to_host(c.args.y);
        to_host(c.args.a); to_host(c.args.b); to_host(c.args.sums); to_host(c.args.count);
    } else {
        memcpy(&c.group, params[0], sizeof c.group);
        for (lbk_args & s : c.group.stage) {
            to_host(s.x); to_host(s.pre); to_host(s.tile); to_host(s.post); to_host(s.add);
            to_host(s.y); to_host(s.columns); to_host(s.planes); to_host(s.split);
        }
    }
    if (!run(c, grid_x, grid_y, block, shared)) {
        fprintf(stderr, "host model: threads of %s do not meet\n", c.k->name);
        return LAUNCH_FAILED;
    }
    if (lbm_faulty(c.k->name)) {
        spoil(c);
    }
    return SUCCESS;
}
