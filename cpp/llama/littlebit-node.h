// A native node: half of one path of a factorized weight, as a GGML_OP_CUSTOM that also other backends than the CPU know
// by what stands at the end of its op_params. Included by libllama and by ggml-cuda.
//
//   dst = add + post * (S (pre * x)), S slice (expert, path) of the tile
//   sources, in this order: x, tile, post, [pre], [add], [ids]

#pragma once

#include "ggml.h"

#include <cstdint>

constexpr int32_t LB_NODE_MAGIC = 0x4c424e44; // "LBND"
// Words of op_params behind ggml_custom_op_params.
constexpr int LB_NODE_AT_MAGIC = GGML_MAX_OP_PARAMS/sizeof(int32_t) - 2;
constexpr int LB_NODE_AT_FLAGS = GGML_MAX_OP_PARAMS/sizeof(int32_t) - 1;

struct lb_node {
    uint32_t paths : 2;
    uint32_t path  : 1;
    uint32_t f32   : 1; // activations stay f32
    uint32_t pre   : 1; // optional sources that are there
    uint32_t add   : 1;
    uint32_t ids   : 1;
};

static inline void lb_node_set(ggml_tensor * t, lb_node n) {
    t->op_params[LB_NODE_AT_MAGIC] = LB_NODE_MAGIC;
    t->op_params[LB_NODE_AT_FLAGS] = n.paths | n.path << 2 | n.f32 << 3 | n.pre << 4 | n.add << 5 | n.ids << 6;
}

static inline bool lb_is_node(const ggml_tensor * t) {
    return t->op == GGML_OP_CUSTOM && t->op_params[LB_NODE_AT_MAGIC] == LB_NODE_MAGIC;
}

static inline lb_node lb_node_get(const ggml_tensor * t) {
    const uint32_t v = t->op_params[LB_NODE_AT_FLAGS];
    return { v & 3, v >> 2 & 1, v >> 3 & 1, v >> 4 & 1, v >> 5 & 1, v >> 6 & 1 };
}

struct lb_node_sources {
    const ggml_tensor * x, * tile, * post, * pre, * add, * ids; // the last three may be null
};

static inline lb_node_sources lb_node_get_sources(const ggml_tensor * t) {
    const lb_node n = lb_node_get(t);
    lb_node_sources s = { t->src[0], t->src[1], t->src[2], nullptr, nullptr, nullptr };
    int i = 3;
    s.pre = n.pre ? t->src[i++] : nullptr;
    s.add = n.add ? t->src[i++] : nullptr;
    s.ids = n.ids ? t->src[i++] : nullptr;
    return s;
}
