// LittleBit in libllama: loading. The file form is schema v1 (specs/format.md of the littlebit project): for a weight
// B.weight the tensors B.lb_v, B.lb_u (sign tiles, I8) and B.lb_g, B.lb_l, B.lb_h (scales, F16).
//
// Two lowerings, chosen for each weight by the device it is placed on:
//   native   the file's tensors are used as they are: in place, also under mmap, by liblittlebit (CPU); copied to the
//            device by kernels that the backend was built with (CUDA)
//   portable signs are expanded to Q1_0 and scales to F32 at load, and run by standard ops on any backend

#include "llama-littlebit-loader.h"
#include "llama-littlebit.h"
#include "llama-littlebit-proxy.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>

static constexpr uint32_t LB_SCHEMA = 1;
static constexpr int64_t  LB_Q1_0_BLOCK = 128;

enum lb_part { LB_V, LB_U, LB_G, LB_L, LB_H, LB_N_PARTS };

static const char * const LB_SUFFIX[LB_N_PARTS] = { ".lb_v", ".lb_u", ".lb_g", ".lb_l", ".lb_h" };

using lb_weight = llama_model_loader::llama_tensor_weight;

// the five file tensors of one weight and the shape they agree on
struct lb_matrix {
    std::string       name; // B.weight
    const lb_weight * part[LB_N_PARTS] = {};
    int64_t d_in = 0, d_out = 0, rank = 0, slices = 0, experts = 0, paths = 0;

    const ggml_tensor * meta(lb_part p) const { return part[p]->tensor; }
};

// one weight to be expanded at load: tensors of each path, in the order of lb_part
struct lb_expansion {
    lb_matrix     matrix;
    ggml_tensor * path[2][LB_N_PARTS] = {};
};

struct lb_state {
    std::string lowering = "auto";
    std::map<std::string, ggml_context_ptr> contexts; // of expanded tensors, by name of the buffer type
    std::map<std::string, ggml_backend_buffer_type_t> bufts;
    std::vector<lb_expansion>  expansions;
    std::vector<ggml_tensor *> proxies;
    std::set<std::string>      counted; // file tensors that n_created includes
    size_t expanded_bytes = 0;          // of the file, so that progress and unmapping see them as done
    int n_native = 0;
    int n_portable = 0;
};

static lb_state & state_of(llama_model_loader & ml) {
    return *static_cast<lb_state *>(ml.littlebit.get());
}

static bool ends_with(const std::string & s, const char * suffix) {
    const size_t n = strlen(suffix);
    return s.size() > n && s.compare(s.size() - n, n, suffix) == 0;
}

//
// 1. open
//

void lb_open(llama_model_loader & ml) {
    const int64_t kid = gguf_find_key(ml.metadata, "littlebit.version");
    if (kid < 0) {
        return;
    }
    if (gguf_get_kv_type(ml.metadata, kid) != GGUF_TYPE_UINT32 || gguf_get_val_u32(ml.metadata, kid) != LB_SCHEMA) {
        throw std::runtime_error("littlebit: unknown version of the LittleBit schema (littlebit.version); this build runs version 1");
    }

    auto st = std::make_shared<lb_state>();
    if (const char * env = getenv("LITTLEBIT_LOWERING")) {
        st->lowering = env;
    }
    static const char * const known[] = { "auto", "native", "native-f32", "portable", "portable-f32" };
    if (std::none_of(std::begin(known), std::end(known), [&](const char * k) { return st->lowering == k; })) {
        throw std::runtime_error("littlebit: LITTLEBIT_LOWERING is '" + st->lowering +
                "'; it can be auto, native, native-f32, portable or portable-f32");
    }

    const int64_t kp = gguf_find_key(ml.metadata, "littlebit.n_params");
    if (kp >= 0 && gguf_get_kv_type(ml.metadata, kp) == GGUF_TYPE_UINT64) {
        ml.n_elements = gguf_get_val_u64(ml.metadata, kp);
    }
    ml.littlebit = st;
}

int lb_n_proxies(const llama_model_loader & ml) {
    return ml.littlebit ? ml.n_tensors : 0;
}

//
// 2. create
//

// base of the input group that `base` may take V, g and l from, or ""
static std::string input_group(const std::string & base) {
    const size_t dot = base.rfind('.');
    if (dot == std::string::npos) {
        return "";
    }
    const std::string block = base.substr(0, dot + 1);
    const std::string last  = base.substr(dot + 1);
    if (last == "attn_q" || last == "attn_k" || last == "attn_v") {
        return block + "attn_qkv";
    }
    if (last == "ffn_gate" || last == "ffn_up") {
        return block + "ffn_gate_up";
    }
    return "";
}

[[noreturn]] static void bad_factor(const std::string & tensor, const std::string & what) {
    throw std::runtime_error("littlebit: tensor '" + tensor + "' " + what);
}

static std::string shape_text(const std::vector<int64_t> & ne) {
    return llama_format_tensor_shape(ne);
}

static void check_part(const lb_matrix & m, lb_part p, ggml_type type, const std::vector<int64_t> & ne) {
    const ggml_tensor * t = m.meta(p);
    if (t->type != type) {
        bad_factor(t->name, std::string("has type ") + ggml_type_name(t->type) + ", expected " + ggml_type_name(type));
    }
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        const int64_t want = i < (int) ne.size() ? ne[i] : 1;
        if (t->ne[i] != want) {
            bad_factor(t->name, "has shape " + llama_format_tensor_shape(t) + ", expected " + shape_text(ne));
        }
    }
}

// finds and checks the factors of `name`; false if the weight is not factorized
static bool find_matrix(const llama_model_loader & ml, const std::string & name, const std::vector<int64_t> & ne, lb_matrix & m) {
    if (!ends_with(name, ".weight")) {
        return false;
    }
    const std::string base = name.substr(0, name.size() - strlen(".weight"));
    auto weight = [&](const std::string & b, lb_part p) { return ml.get_weight((b + LB_SUFFIX[p]).c_str()); };

    if (!weight(base, LB_U)) {
        // h belongs to one matrix only; a group's v, g and l may stand alone
        if (weight(base, LB_H)) {
            bad_factor(base + LB_SUFFIX[LB_U], "not found");
        }
        return false;
    }
    if (ml.get_weight(name.c_str())) {
        bad_factor(name, "is in the file beside its factors");
    }
    const std::string group = weight(base, LB_V) ? "" : input_group(base);
    m.name = name;
    for (int p = 0; p < LB_N_PARTS; ++p) {
        const bool own = p == LB_U || p == LB_H || group.empty() || !weight(group, (lb_part) p);
        m.part[p] = weight(own ? base : group, (lb_part) p);
        if (!m.part[p]) {
            bad_factor(base + LB_SUFFIX[p], "not found");
        }
    }

    m.d_in   = ne[0];
    m.d_out  = ne.size() > 1 ? ne[1] : 1;
    m.experts = ne.size() > 2 ? ne[2] : 1;
    m.rank   = m.meta(LB_L)->ne[0];
    m.slices = m.meta(LB_H)->ne[1];
    m.paths  = m.experts > 0 ? m.slices / m.experts : 0;
    if (ne.size() > 3 && ne[3] != 1) {
        bad_factor(name, "has four dimensions, which factors cannot replace");
    }
    if (m.rank <= 0 || m.rank % 32 != 0) {
        bad_factor(m.meta(LB_L)->name, "has a rank that is not a multiple of 32");
    }
    if (m.slices != m.experts*m.paths || m.paths < 1 || m.paths > 2) {
        bad_factor(m.meta(LB_H)->name, "has " + std::to_string(m.slices) + " slices for " + std::to_string(m.experts) + " experts");
    }
    const int64_t kv = GGML_PAD(m.d_in, 16);
    const int64_t mp = GGML_PAD(m.d_out, 32);
    check_part(m, LB_V, GGML_TYPE_I8,  { 32, kv/8,     m.rank/32, m.slices });
    check_part(m, LB_U, GGML_TYPE_I8,  { 32, m.rank/8, mp/32,     m.slices });
    check_part(m, LB_G, GGML_TYPE_F16, { m.d_in,  m.slices });
    check_part(m, LB_L, GGML_TYPE_F16, { m.rank,  m.slices });
    check_part(m, LB_H, GGML_TYPE_F16, { m.d_out, m.slices });
    return true;
}

// a descriptor that only serves to ask for a buffer type
static ggml_tensor probe(const lb_matrix & m, ggml_type type) {
    ggml_tensor t;
    memset(&t, 0, sizeof(t));
    t.type  = type;
    t.ne[0] = type == GGML_TYPE_Q1_0 ? GGML_PAD(m.d_in, LB_Q1_0_BLOCK) : m.d_in;
    t.ne[1] = m.rank;
    t.ne[2] = m.experts;
    t.ne[3] = 1;
    t.nb[0] = ggml_type_size(type);
    t.nb[1] = ggml_row_size(type, t.ne[0]);
    t.nb[2] = t.nb[1]*t.ne[1];
    t.nb[3] = t.nb[2]*t.ne[2];
    ggml_set_name(&t, m.name.c_str());
    return t;
}

static void count_parts(llama_model_loader & ml, const lb_matrix & m, size_t * bytes) {
    for (int p = 0; p < LB_N_PARTS; ++p) {
        if (state_of(ml).counted.insert(m.meta((lb_part) p)->name).second) {
            ml.n_created++;
            if (bytes) {
                *bytes += ggml_nbytes(m.meta((lb_part) p));
            }
        }
    }
}

// the proxy of m: a view of `u` with the logical shape. Its strides make it look transposed, so that a multiplication
// that misses the hook ends in ggml's assertion and not in garbage.
static ggml_tensor * make_proxy(llama_model_loader & ml, ggml_context * ctx, const lb_matrix & m, ggml_tensor * u, lb_lowering mode) {
    ggml_tensor * w = ggml_view_tensor(ctx, u);
    ggml_set_name(w, m.name.c_str());
    w->type  = GGML_TYPE_F32;
    w->ne[0] = m.d_in;
    w->ne[1] = m.d_out;
    w->ne[2] = m.experts;
    w->ne[3] = 1;
    w->nb[0] = sizeof(float);
    w->nb[1] = w->nb[2] = w->nb[3] = 0;
    w->op_params[0] = LB_PROXY_MAGIC;
    w->op_params[1] = mode;
    w->op_params[2] = (int32_t) m.paths;
    w->op_params[3] = (int32_t) m.rank;
    state_of(ml).proxies.push_back(w);
    return w;
}

static ggml_tensor * create_native(llama_model_loader & ml, const lb_matrix & m, const lb_ctx_fn & ctx_for,
        ggml_backend_buffer_type_t buft, lb_lowering mode) {
    ggml_context * ctx = ctx_for(buft);
    ggml_tensor * part[LB_N_PARTS];
    for (int p = 0; p < LB_N_PARTS; ++p) {
        const ggml_tensor * meta = m.meta((lb_part) p);
        part[p] = ggml_get_tensor(ctx, meta->name); // shared by a group
        if (!part[p]) {
            part[p] = ggml_dup_tensor(ctx, meta);
            ggml_set_name(part[p], meta->name);
        }
    }
    count_parts(ml, m, nullptr);
    ggml_tensor * w = make_proxy(ml, ctx, m, part[LB_U], mode);
    std::copy(std::begin(part), std::end(part), w->src);
    state_of(ml).n_native++;
    return w;
}

static ggml_tensor * create_portable(llama_model_loader & ml, const lb_matrix & m, ggml_backend_buffer_type_t buft, ggml_type type) {
    lb_state & st = state_of(ml);
    const std::string key = ggml_backend_buft_name(buft);
    auto it = st.contexts.find(key);
    if (it == st.contexts.end()) {
        // at most eleven tensors (two paths and a proxy) for a weight, which has at least two tensors in the file
        ggml_init_params params = { ggml_tensor_overhead()*(size_t) ml.n_tensors*6, nullptr, true };
        it = st.contexts.emplace(key, ggml_context_ptr(ggml_init(params))).first;
        st.bufts[key] = buft;
    }
    ggml_context * ctx = it->second.get();

    lb_expansion x;
    x.matrix = m;
    auto signs = [&](int64_t n_in, int64_t n_out) {
        const int64_t ne0 = type == GGML_TYPE_Q1_0 ? GGML_PAD(n_in, LB_Q1_0_BLOCK) : n_in;
        return ggml_new_tensor_3d(ctx, type, ne0, n_out, m.experts);
    };
    auto scales = [&](int64_t n) { return ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, m.experts); };
    for (int p = 0; p < m.paths; ++p) {
        ggml_tensor ** t = x.path[p];
        t[LB_V] = signs(m.d_in, m.rank);
        t[LB_U] = signs(m.rank, m.d_out);
        t[LB_G] = scales(m.d_in);
        t[LB_L] = scales(m.rank);
        t[LB_H] = scales(m.d_out);
        for (int i = 0; i < LB_N_PARTS; ++i) {
            ggml_format_name(t[i], "%s (expanded, path %d)", m.meta((lb_part) i)->name, p);
        }
    }
    count_parts(ml, m, &st.expanded_bytes);
    ggml_tensor * w = make_proxy(ml, ctx, m, x.path[0][LB_U], LB_LOWERING_PORTABLE);
    for (int p = 0; p < m.paths; ++p) {
        std::copy(std::begin(x.path[p]), std::end(x.path[p]), w->src + p*LB_N_PARTS);
    }
    st.expansions.push_back(x);
    st.n_portable++;
    return w;
}

bool lb_create_tensor(llama_model_loader & ml, const std::string & name, const std::vector<int64_t> & ne,
        const lb_buft_fn & buft_for, const lb_ctx_fn & ctx_for, ggml_tensor ** out) {
    lb_matrix m;
    if (!ml.littlebit || !find_matrix(ml, name, ne, m)) {
        return false;
    }
    lb_state & st = state_of(ml);
    const ggml_type type = st.lowering == "portable-f32" ? GGML_TYPE_F32 : GGML_TYPE_Q1_0;

    ggml_tensor t_probe = probe(m, type);
    const int    created = ml.n_created;
    const size_t size    = ml.size_data;
    ggml_backend_buffer_type_t buft = buft_for(&t_probe);
    if (buft == nullptr) {
        // skipped: undo the account of the probe and count the file's tensors instead
        ml.n_created = created;
        ml.size_data = size;
        size_t bytes = 0;
        count_parts(ml, m, &bytes);
        ml.size_data -= bytes;
        *out = nullptr;
        return true;
    }

    // pinned host memory belongs to a GPU, but what lies there is computed by the CPU
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    const bool on_cpu = dev == nullptr || ggml_backend_buft_is_host(buft) ||
                        ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU ||
                        ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_ACCEL;
    if (dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        throw std::runtime_error("littlebit: split mode 'tensor' is not supported for LittleBit files; use -sm layer");
    }
    // Never a repacking buffer type (vectors cannot live there), nor one that is split over devices (nor can proxies):
    // under -sm row factors stay whole.
    ggml_backend_buffer_type_t plain = on_cpu ? ggml_backend_cpu_buffer_type() : ggml_backend_dev_buffer_type(dev);
    const bool forced_portable = st.lowering.rfind("portable", 0) == 0;
    const bool forced_native   = st.lowering.rfind("native", 0) == 0;
    const bool f32 = st.lowering == "native-f32";
    // devices other than the CPU have no kernels for stacks of experts and for f32 activations
    const bool can_native = on_cpu ? lb_native_available() :
            !f32 && m.experts == 1 && ne.size() < 3 && lb_native_on(dev, m.rank, m.d_in) && lb_native_on(dev, m.d_out, m.rank) &&
            lb_device_computes(dev);
    if (can_native && !forced_portable) {
        *out = create_native(ml, m, ctx_for, plain, f32 ? LB_LOWERING_NATIVE_F32 : LB_LOWERING_NATIVE);
        // f32 and experts no device takes
        (*out)->op_params[4] = on_cpu && !f32 && m.experts == 1 && !lb_devices_compute();
        return true;
    }
    if (forced_native) {
        throw std::runtime_error("littlebit: LITTLEBIT_LOWERING is '" + st.lowering + "', but '" + name + "' is placed on " +
                (on_cpu ? "the CPU and this build has no liblittlebit" : std::string(ggml_backend_dev_name(dev)) +
                 ", which has no such kernel for it"));
    }
    *out = create_portable(ml, m, plain, type);
    return true;
}

//
// 3. allocate
//

void lb_alloc(llama_model_loader & ml, lb_ctxs_bufs & ctxs_bufs, lb_named & tensors_by_name) {
    if (!ml.littlebit) {
        return;
    }
    lb_state & st = state_of(ml);
    for (auto & [key, ctx] : st.contexts) {
        ggml_backend_buffer_type_t buft = st.bufts.at(key);
        ggml_backend_buffer_t buf;
        if (ml.no_alloc) {
            buf = ggml_backend_buft_alloc_buffer(buft, 0);
            for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
                t->buffer = buf;
            }
        } else {
            buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
        }
        if (!buf) {
            throw std::runtime_error("littlebit: unable to allocate " + key + " buffer for expanded factors");
        }
        ggml_backend_buffer_set_usage(buf, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
            tensors_by_name.emplace_back(t->name, t);
        }
        std::vector<ggml_backend_buffer_ptr> bufs;
        bufs.emplace_back(buf);
        ctxs_bufs.emplace_back(std::move(ctx), std::move(bufs));
    }
    st.contexts.clear();

    float bpw = 0.0f;
    const int64_t kid = gguf_find_key(ml.metadata, "littlebit.bpw");
    if (kid >= 0 && gguf_get_kv_type(ml.metadata, kid) == GGUF_TYPE_FLOAT32) {
        bpw = gguf_get_val_f32(ml.metadata, kid);
    }
    LLAMA_LOG_INFO("littlebit: schema %u, %.3f bpw, %d factorized matrices (%d native, %d portable), lowering %s%s%s\n",
            LB_SCHEMA, bpw, st.n_native + st.n_portable, st.n_native, st.n_portable, st.lowering.c_str(),
            st.n_native && lb_native_available() ? ", kernel " : "", st.n_native ? lb_native_kernel() : "");
}

//
// 4. load
//

// rows of a sign tile (n_out x n_in) as Q1_0 blocks with d = 1, or as F32
static void expand_signs(const uint8_t * tile, int64_t n_out, int64_t n_in, ggml_type type, uint8_t * dst) {
    const int64_t n_bytes = GGML_PAD(n_in, 16)/8;
    auto byte = [&](int64_t row, int64_t i) { return tile[((row/32)*n_bytes + i)*32 + row%32]; };
    if (type == GGML_TYPE_F32) {
        float * y = (float *) dst;
        for (int64_t row = 0; row < n_out; ++row) {
            for (int64_t col = 0; col < n_in; ++col) {
                *y++ = (byte(row, col/8) >> (col%8)) & 1 ? 1.0f : -1.0f;
            }
        }
        return;
    }
    const ggml_fp16_t one = ggml_fp32_to_fp16(1.0f);
    const int64_t n_blocks = (n_in + LB_Q1_0_BLOCK - 1)/LB_Q1_0_BLOCK;
    for (int64_t row = 0; row < n_out; ++row) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            memcpy(dst, &one, sizeof(one));
            dst += sizeof(one);
            for (int64_t i = b*16; i < (b + 1)*16; ++i) {
                *dst++ = i < n_bytes ? byte(row, i) : 0; // activations are zero beyond n_in
            }
        }
    }
}

void lb_load(llama_model_loader & ml) {
    if (!ml.littlebit) {
        return;
    }
    lb_state & st = state_of(ml);
    std::vector<uint8_t> file, data;
    for (const auto & x : st.expansions) {
        const lb_matrix & m = x.matrix;
        for (int i = 0; i < LB_N_PARTS; ++i) {
            const ggml_tensor * meta = m.meta((lb_part) i);
            file.resize(ggml_nbytes(meta));
            const uint8_t * src = (const uint8_t *) ml.load_data_range(*m.part[i], 0, file.size(), file.data());
            const size_t slice = file.size()/m.slices;
            for (int p = 0; p < m.paths; ++p) {
                ggml_tensor * t = x.path[p][i];
                data.resize(ggml_nbytes(t));
                const size_t expert = data.size()/m.experts;
                for (int64_t e = 0; e < m.experts; ++e) {
                    const uint8_t * from = src + (e*m.paths + p)*slice;
                    uint8_t * to = data.data() + e*expert;
                    switch (i) {
                        case LB_V: expand_signs(from, m.rank,  m.d_in, t->type, to); break;
                        case LB_U: expand_signs(from, m.d_out, m.rank, t->type, to); break;
                        default:   ggml_fp16_to_fp32_row((const ggml_fp16_t *) from, (float *) to, t->ne[0]); break;
                    }
                }
                ggml_backend_tensor_set(t, data.data(), 0, data.size());
            }
        }
    }
    ml.size_done += st.expanded_bytes;
}

//
// 5. finish
//

void lb_finish(llama_model_loader & ml) {
    if (!ml.littlebit) {
        return;
    }
    for (ggml_tensor * w : state_of(ml).proxies) {
        // mapped tensors get their place only when they are loaded, after views were set up
        w->buffer = w->view_src->buffer;
        w->data   = w->view_src->data;
    }
}
