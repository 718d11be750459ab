// A ggml backend called "CUDA" without a GPU, loaded by GGML_BACKEND_PATH into any program of the patched llama.cpp. Its
// memory is apart from the host's, as a device's is. LittleBit's nodes go through ggml-cuda-littlebit.cu and launch.cu to
// the kernels on the host model; every other node goes to the CPU backend. With it the choice of lowerings, the
// placement of weights (-ngl, two devices with LITTLEBIT_HOST_MODEL_DEVICES=2) and the glue to ggml-cuda run in CI
// (scripts/conformance). With LITTLEBIT_HOST_MODEL_FAULT it computes one value of every node wrongly.

#define LBK_EMULATE
#include "../../llama/ggml-cuda-littlebit.cu"
#include "../launch.cu"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

//
// launches
//

struct call {
    void (*kernel)(lbk_group);
    const lbk_group * group;
};

static void run_call(const void * p) {
    const call * c = (const call *) p;
    c->kernel(*c->group);
}

constexpr int MAX_DEVICES = 2;

static int n_nodes[MAX_DEVICES];
static int n_launches[MAX_DEVICES];
static int launches; // of all devices

static int index_of(ggml_backend_dev_t dev) { return *(const int *) dev->context; }

cudaError_t cudaLaunchKernel(const void * kernel, dim3 grid, dim3 block, void ** params, size_t shared, cudaStream_t) {
    const call c = { (void (*)(lbk_group)) kernel, (const lbk_group *) params[0] };
    ++launches;
    const bool good = grid.z == 1 && lbe::launch(run_call, &c, grid.x, grid.y, block.x, (uint32_t) shared, lbe::order::backward);
    return good ? cudaSuccess : cudaErrorLaunchFailure;
}

//
// memory
//

static const char * device_name(ggml_backend_dev_t dev) { return index_of(dev) == 0 ? "CUDA0" : "CUDA1"; }
static const char * buft_name(ggml_backend_buffer_type_t buft) { return device_name(buft->device); }
static size_t buft_alignment(ggml_backend_buffer_type_t) { return 128; }
static void buffer_free(ggml_backend_buffer_t b) { free(b->context); }
static void * buffer_base(ggml_backend_buffer_t b) { return b->context; }
static void buffer_clear(ggml_backend_buffer_t b, uint8_t value) { memset(b->context, value, b->size); }

static void memset_tensor(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset((char *) t->data + offset, value, size);
}

static void set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

static void get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

static ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i iface = {};
    iface.free_buffer   = buffer_free;
    iface.get_base      = buffer_base;
    iface.memset_tensor = memset_tensor;
    iface.set_tensor    = set_tensor;
    iface.get_tensor    = get_tensor;
    iface.clear         = buffer_clear;
    return ggml_backend_buffer_init(buft, iface, aligned_alloc(128, GGML_PAD(size + 1, 128)), size);
}

//
// computing
//

static ggml_backend_t cpu() {
    static ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    return backend;
}

static const char * backend_name(ggml_backend_t backend) { return device_name(backend->device); }

static void backend_free(ggml_backend_t backend) {
    const int device = index_of(backend->device);
    fprintf(stderr, "emulated CUDA: %d LittleBit nodes on %s, %d launches\n", n_nodes[device], backend_name(backend),
            n_launches[device]);
    n_nodes[device] = n_launches[device] = 0;
    delete backend;
}

static ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    ggml_backend_cuda_context context;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_CUSTOM) {
            const int before = launches;
            ggml_cuda_littlebit(context, node);
            n_launches[index_of(backend->device)] += launches - before;
            if (getenv("LITTLEBIT_HOST_MODEL_FAULT")) {
                *(float *) node->data = 1 - *(const float *) node->data;
            }
            ++n_nodes[index_of(backend->device)];
            continue;
        }
        ggml_cgraph one = ggml_graph_view(graph, i, i + 1);
        const ggml_status status = ggml_backend_graph_compute(cpu(), &one);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

//
// device
//

static ggml_backend_dev_t the_device(size_t index);

static ggml_backend_buffer_type_t device_buft(ggml_backend_dev_t dev) {
    static ggml_backend_buffer_type bufts[MAX_DEVICES];
    ggml_backend_buffer_type * buft = &bufts[index_of(dev)];
    *buft = { { buft_name, buft_alloc, buft_alignment, nullptr, nullptr, nullptr }, dev, nullptr };
    return buft;
}

static const char * device_description(ggml_backend_dev_t) { return "host model"; }
static enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

// Layers are shared out by free memory: of two blocks the second device, with the output, gets one.
static void device_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    *free = *total = (size_t) (index_of(dev) == 0 ? 4 : 12) << 30;
}

static void device_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name = device_name(dev);
    props->description = device_description(dev);
    props->type = device_type(dev);
    device_memory(dev, &props->memory_free, &props->memory_total);
}

static ggml_backend_t device_init(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 'l', 'i', 't', 't', 'l', 'e', 'b', 'i', 't', '-', 'h', 'o', 's', 't', 'm', 'o' };
    ggml_backend_i iface = {};
    iface.get_name      = backend_name;
    iface.free          = backend_free;
    iface.graph_compute = graph_compute;
    return new ggml_backend{ &guid, iface, dev, nullptr };
}

static bool device_supports(ggml_backend_dev_t dev, const ggml_tensor * op) {
    // As ggml-cuda: what lies on another device is copied first.
    for (const ggml_tensor * src : op->src) {
        if (src && src->buffer && src->buffer->buft == device_buft(the_device(1 - index_of(dev)))) {
            return false;
        }
    }
    if (op->op == GGML_OP_CUSTOM) {
        return ggml_cuda_littlebit_supports(0, op);
    }
    return ggml_backend_dev_supports_op(ggml_backend_get_device(cpu()), op);
}

// Prompts of weights in the host's memory are worth a copy of them, as in ggml-cuda.
static bool device_offload(ggml_backend_dev_t, const ggml_tensor * op) {
    return op->op != GGML_OP_GET_ROWS && ggml_nrows(op) >= 32;
}

static bool device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) { return buft == device_buft(dev); }

static const char * reg_name(ggml_backend_reg_t) { return "CUDA"; }
static ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t index) { return the_device(index); }

static size_t reg_count(ggml_backend_reg_t) {
    const char * n = getenv("LITTLEBIT_HOST_MODEL_DEVICES");
    return n && strcmp(n, "2") == 0 ? 2 : 1;
}

static ggml_backend_reg_t the_reg() {
    static ggml_backend_reg reg = { GGML_BACKEND_API_VERSION, { reg_name, reg_count, reg_device, nullptr }, nullptr };
    return &reg;
}

static ggml_backend_dev_t the_device(size_t index) {
    static int indices[MAX_DEVICES] = { 0, 1 };
    static ggml_backend_device devices[MAX_DEVICES];
    ggml_backend_device & d = devices[index];
    if (!d.reg) {
        d.iface.get_name        = device_name;
        d.iface.get_description = device_description;
        d.iface.get_memory      = device_memory;
        d.iface.get_type        = device_type;
        d.iface.get_props       = device_props;
        d.iface.init_backend    = device_init;
        d.iface.get_buffer_type = device_buft;
        d.iface.supports_op     = device_supports;
        d.iface.supports_buft   = device_supports_buft;
        d.iface.offload_op      = device_offload;
        d.context = &indices[index];
        d.reg     = the_reg();
    }
    return &d;
}

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) { return the_reg(); }
