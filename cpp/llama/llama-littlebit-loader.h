// LittleBit in libllama, loading side: the calls that the patched loader makes, in this order.

#pragma once

#include "ggml.h"
#include "ggml-cpp.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

struct llama_model_loader;

using lb_buft_fn     = std::function<ggml_backend_buffer_type_t(ggml_tensor * meta)>;
using lb_ctx_fn      = std::function<ggml_context *(ggml_backend_buffer_type_t buft)>;
using lb_ctxs_bufs   = std::vector<std::pair<ggml_context_ptr, std::vector<ggml_backend_buffer_ptr>>>;
using lb_named       = std::vector<std::pair<std::string, ggml_tensor *>>;

// 1. after the metadata are read: checks version and keys, sets n_elements to the logical number of weights
void lb_open(llama_model_loader & ml);

// room for proxies in a context of file tensors
int lb_n_proxies(const llama_model_loader & ml);

// 2. for each weight: true if it is factorized; *out is then its proxy (null if the tensor is skipped)
bool lb_create_tensor(llama_model_loader & ml, const std::string & name, const std::vector<int64_t> & ne,
        const lb_buft_fn & buft_for, const lb_ctx_fn & ctx_for, ggml_tensor ** out);

// 3. buffers for the tensors that are expanded at load; also in the memory-fit pass, which allocates nothing
void lb_alloc(llama_model_loader & ml, lb_ctxs_bufs & ctxs_bufs, lb_named & tensors_by_name);

// 4. before the loader's own data: fills the expanded tensors
void lb_load(llama_model_loader & ml);

// 5. after all data: gives proxies the buffer of their factors
void lb_finish(llama_model_loader & ml);
