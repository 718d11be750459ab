// LittleBit in ggml-cuda: native nodes (littlebit-node.h) on the device. Included by the patched ggml-cuda.cu.

#pragma once

struct ggml_backend_cuda_context;
struct ggml_tensor;

// whether the node is one of ours and in a form that the kernels take
bool ggml_cuda_littlebit_supports(int device, const ggml_tensor * node);

// launches it; true, as ggml_cuda_compute_forward wants
bool ggml_cuda_littlebit(ggml_backend_cuda_context & ctx, ggml_tensor * node);
