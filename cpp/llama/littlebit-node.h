// A native node: one half of the factorized weights that multiply one input, as a GGML_OP_CUSTOM that also other backends than
// the CPU know by what stands at the end of its op_params. Included by libllama and by ggml-cuda.
//
//   first half:  t = l * (V^T (g * x)) for every slot and path
//   second half: y = sum over paths of h * (U t) for every member, t of the slot that the member names
//
// A slot is an input half; several members may name the same one. Sources, in this order: x (t in a second half), [ids], then
// tile, post, pre of each slot (V, l, g) or tile, post of each member (U, h). dst has a row for each column of activations, or of a
// token and its expert with ids, but its floats stand otherwise: one block [rows, columns] after the other, in the order of slots
// and their paths, or of members. Slots and members begin at multiples of LB_NODE_ALIGN floats a column, so that their blocks are
// aligned as tensors of their own would be.

#pragma once

#include "ggml.h"

#include <cstdint>

constexpr int32_t LB_NODE_MAGIC = 0x4c424e44; // "LBND"
// Words of op_params behind ggml_custom_op_params.
constexpr int LB_NODE_AT_MAGIC = GGML_MAX_OP_PARAMS/sizeof(int32_t) - 2;
constexpr int LB_NODE_AT_FLAGS = GGML_MAX_OP_PARAMS/sizeof(int32_t) - 1;

constexpr int LB_NODE_PATHS = 2;
// Members and slots; with ids there is room for one less.
constexpr int LB_NODE_MEMBERS = 3;
constexpr int64_t LB_NODE_ALIGN = 32;
static_assert(1 + 3*LB_NODE_MEMBERS <= GGML_MAX_SRC, "x and three factors a slot");

struct lb_node {
    uint32_t members : 2; // slots in a first half
    uint32_t paths   : 2;
    uint32_t second  : 1;
    uint32_t f32     : 1; // activations stay f32
    uint32_t ids     : 1;
    uint32_t slots   : 6; // of a second half: two bits a member
    uint32_t stays   : 1; // factors in the host's memory, and not to be offloaded: a device failed the check of its kernels
};

static inline void lb_node_set(ggml_tensor * t, lb_node n) {
    t->op_params[LB_NODE_AT_MAGIC] = LB_NODE_MAGIC;
    t->op_params[LB_NODE_AT_FLAGS] = n.members | n.paths << 2 | n.second << 4 | n.f32 << 5 | n.ids << 6 | n.slots << 7 | n.stays << 13;
}

static inline bool lb_is_node(const ggml_tensor * t) {
    return t->op == GGML_OP_CUSTOM && t->op_params[LB_NODE_AT_MAGIC] == LB_NODE_MAGIC;
}

static inline lb_node lb_node_get(const ggml_tensor * t) {
    const uint32_t v = t->op_params[LB_NODE_AT_FLAGS];
    return { v & 3, v >> 2 & 3, v >> 4 & 1, v >> 5 & 1, v >> 6 & 1, v >> 7 & 63, v >> 13 & 1 };
}

static inline uint32_t lb_node_slot(lb_node n, uint32_t member) { return n.slots >> 2*member & 3; }

// Where the factors of the first member stand in src, and how many each has.
static inline int lb_node_at(lb_node n)   { return 1 + n.ids; }
static inline int lb_node_each(lb_node n) { return n.second ? 2 : 3; }

// One path of one member: a stage over blocks of floats in x and dst.
struct lb_node_part {
    const ggml_tensor * tile, * post, * pre; // pre: of a first half, else null
    int64_t path, rows, cols;
    int64_t from, to; // floats before its block in x (second half) and in dst
    bool    add;      // to what the path before left in dst
};

// Path p of member m at m*paths + p of `parts`, which has room for LB_NODE_MEMBERS*LB_NODE_PATHS. The sources are there.
static inline void lb_node_parts(const ggml_tensor * t, lb_node_part * parts) {
    const lb_node n = lb_node_get(t);
    const int64_t columns = ggml_nrows(t);
    int64_t rank[4] = {}; // of slots
    int64_t width = 0;    // of dst, so far
    for (uint32_t m = 0; m < n.members; ++m) {
        ggml_tensor * const * src = t->src + lb_node_at(n) + m*lb_node_each(n);
        width = GGML_PAD(width, LB_NODE_ALIGN);
        for (uint32_t p = 0; p < n.paths; ++p) {
            lb_node_part & part = parts[m*n.paths + p];
            part.tile = src[0];
            part.post = src[1];
            part.pre  = n.second ? nullptr : src[2];
            part.path = p;
            part.rows = src[1]->ne[0];
            part.cols = n.second ? src[0]->ne[1]*8 : t->src[0]->ne[0]; // a rank fills its tile
            part.from = 0;
            part.to   = width*columns;
            part.add  = n.second && p > 0;
            width += n.second && p + 1 < n.paths ? 0 : part.rows;
        }
        rank[lb_node_slot(n, m)] = parts[m*n.paths].cols;
    }
    for (uint32_t m = 0; n.second && m < n.members; ++m) {
        int64_t at = 0;
        for (uint32_t s = 0; s < lb_node_slot(n, m); ++s) {
            at = GGML_PAD(at + n.paths*rank[s], LB_NODE_ALIGN);
        }
        for (uint32_t p = 0; p < n.paths; ++p) {
            lb_node_part & part = parts[m*n.paths + p];
            part.from = (at + p*part.cols)*columns;
        }
    }
}
