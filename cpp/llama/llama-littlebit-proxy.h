// What the loading side and the graph side of LittleBit in libllama agree on.

#pragma once

#include "ggml-backend.h"
#include "littlebit-node.h"

// op_params[1] of a proxy. op_params[2] is the number of paths, op_params[3] the rank, op_params[4] whether its products stay on the
// CPU whatever their batch.
//   native:   src[0..4] = V, U, g, l, h as in the file, slices (expert, path) in the last dimension
//   portable: src[0..4] = V, U, g, l, h of path 0, src[5..9] of path 1, experts in the last dimension
enum lb_lowering {
    LB_LOWERING_PORTABLE   = 0,
    LB_LOWERING_NATIVE     = 1, // exact integers on 14-bit activations
    LB_LOWERING_NATIVE_F32 = 2, // f32 activations
};

// whether native nodes run on the CPU: this build is linked to liblittlebit; and the name of the kernel it uses on this machine
bool         lb_native_available();
const char * lb_native_kernel();

// whether `dev`, which is not the CPU, has kernels for native nodes of this shape, with activations as integers and without experts
bool lb_native_on(ggml_backend_dev_t dev, int64_t rows, int64_t cols);

// whether `dev` computes some small native nodes rightly; looked at once, with a warning if not
bool lb_device_computes(ggml_backend_dev_t dev);

// Whether all devices that have such kernels compute rightly. ggml copies weights from the host's memory to any of them for large
// batches, and asks for nothing but supports_op.
bool lb_devices_compute();

// A native node (littlebit-node.h) over x, which is contiguous rows of F32, or the first half in a second one; without members yet.
// ids may be null.
ggml_tensor * lb_node_new(ggml_context * ctx, ggml_tensor * x, ggml_tensor * ids, lb_node node);

// One more slot (V, l, g) or member (U, h, no pre; `slot` is its input half) of a node that no graph holds yet. Returns how many
// floats of a column of dst are before it.
int64_t lb_node_add(ggml_tensor * t, ggml_tensor * tile, ggml_tensor * post, ggml_tensor * pre, uint32_t slot);
