// Fibers change places by longjmp, which its checked form would refuse.
#undef _FORTIFY_SOURCE

#include "machine.h"

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace lbe {

dim thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t STACK = 128 << 10;

// Why a fiber waits. Collectives are told apart, so that a warp whose lanes stand at different ones is noticed.
enum class at { running, barrier, shuffle, mma, end };

struct fiber {
    jmp_buf place; // once it has started
    std::unique_ptr<char[]> stack;
    at where;
    uint32_t in[10]; // operands of a collective: d, a, b of mma; value and mask of a shuffle
    uint32_t out[4];
};

struct machine {
    std::vector<fiber> fibers; // kept from launch to launch, at least as many as a block has threads
    uint32_t threads = 0;      // of a block
    jmp_buf scheduler;
    uint32_t current = 0;
    body kernel = nullptr;
    const void * args = nullptr;
    uint8_t * shared = nullptr;
} m;

// Back to the scheduler until it lets the thread go on. setjmp saves no signal mask and makes no call of the system.
void leave() {
    if (_setjmp(m.fibers[m.current].place) == 0) {
        _longjmp(m.scheduler, 1);
    }
}

void enter() {
    for (;;) {
        m.kernel(m.args);
        m.fibers[m.current].where = at::end;
        leave();
    }
}

// Lets thread `index` run to the next place where it waits.
void resume(uint32_t index) {
    fiber & f = m.fibers[index];
    m.current = index;
    thread_index = { index, 0, 0 };
    f.where = at::running;
    if (_setjmp(m.scheduler) == 0) {
        if (f.stack) {
            _longjmp(f.place, 1);
        }
        f.stack.reset(new char[STACK]);
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp   = f.stack.get();
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, enter, 0);
        setcontext(&context);
    }
}

// Leaves the current thread until all that it waits for are there.
void wait(at where) {
    m.fibers[m.current].where = where;
    leave();
}

int8_t byte_of(uint32_t word, int i) { return (int8_t) (word >> 8*i); }

// mma.m16n8k32.row.col.s32.s8.s8.s32 as the PTX manual numbers its fragments, lane = 4*g + t:
//   A register r, byte i: row g + 8*(r % 2), k 4*t + i + 16*(r / 2)
//   B register r, byte i: k 4*t + i + 16*r, column g
//   D register r:         row g + 8*(r / 2), column 2*t + r % 2
void compute_mma(fiber * lanes) {
    int8_t a[16][32], b[32][8];
    for (int lane = 0; lane < 32; ++lane) {
        const uint32_t * in = lanes[lane].in;
        const int g = lane/4, t = lane%4;
        for (int r = 0; r < 4; ++r) {
            for (int i = 0; i < 4; ++i) {
                a[g + 8*(r%2)][4*t + i + 16*(r/2)] = byte_of(in[4 + r], i);
            }
        }
        for (int r = 0; r < 2; ++r) {
            for (int i = 0; i < 4; ++i) {
                b[4*t + i + 16*r][g] = byte_of(in[8 + r], i);
            }
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane/4, t = lane%4;
        for (int r = 0; r < 4; ++r) {
            uint32_t sum = lanes[lane].in[r];
            for (int k = 0; k < 32; ++k) {
                sum += (uint32_t) (a[g + 8*(r/2)][k]*b[k][2*t + r%2]);
            }
            lanes[lane].out[r] = sum;
        }
    }
}

void compute_shuffle(fiber * lanes) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
        lanes[lane].out[0] = lanes[(lane ^ lanes[lane].in[1])%32].in[0];
    }
}

// Lets every lane of a warp run to the next point where all must meet. False if they do not meet.
bool run_warp(uint32_t warp, order how, std::mt19937 & random) {
    uint32_t lanes[32];
    for (uint32_t i = 0; i < 32; ++i) {
        lanes[i] = how == order::backward ? 31 - i : i;
    }
    if (how == order::shuffled) {
        std::shuffle(lanes, lanes + 32, random);
    }
    for (uint32_t lane : lanes) {
        resume(32*warp + lane);
    }
    fiber * first = &m.fibers[32*warp];
    for (int lane = 1; lane < 32; ++lane) {
        if (first[lane].where != first->where) {
            return false;
        }
    }
    if (first->where == at::mma) {
        compute_mma(first);
    } else if (first->where == at::shuffle) {
        compute_shuffle(first);
    }
    return true;
}

bool run_block(uint32_t warps, order how, std::mt19937 & random) {
    std::vector<uint32_t> turn(warps);
    for (;;) {
        // one stretch: every warp to the block's next barrier or to its end
        for (uint32_t w = 0; w < warps; ++w) {
            turn[w] = how == order::backward ? warps - 1 - w : w;
        }
        if (how == order::shuffled) {
            std::shuffle(turn.begin(), turn.end(), random);
        }
        for (uint32_t w : turn) {
            do {
                if (!run_warp(w, how, random)) {
                    return false;
                }
            } while (m.fibers[32*w].where != at::barrier && m.fibers[32*w].where != at::end);
        }
        const at where = m.fibers[0].where;
        const auto last = m.fibers.begin() + m.threads;
        if (std::any_of(m.fibers.begin(), last, [&](const fiber & f) { return f.where != where; })) {
            return false;
        }
        if (where == at::end) {
            return true;
        }
    }
}

} // namespace

pages map_pages(size_t size) {
    const size_t page = 4096, inner = (size + page - 1)/page*page, whole = inner + page;
    void * map = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return { nullptr, 0, 0 };
    }
    mprotect((uint8_t *) map + inner, page, PROT_NONE);
    return { (uint8_t *) map, inner, whole };
}

bool launch(body kernel, const void * args, uint32_t grid_x, uint32_t grid_y, uint32_t block, uint32_t shared, order how) {
    if (block == 0 || block%32 != 0 || shared > 48 << 10) {
        return false;
    }
    const pages memory = map_pages(shared);
    if (!memory.map) {
        return false;
    }
    // shared memory ends where the page ends; its start stays aligned to 16 because its size is
    m.shared = memory.end() - shared;
    m.kernel = kernel;
    m.args   = args;
    m.threads = block;
    if (m.fibers.size() < block) {
        m.fibers = std::vector<fiber>(block);
    }
    block_size = { block, 1, 1 };
    grid_size  = { grid_x, grid_y, 1 };
    std::mt19937 random(7);
    std::vector<uint32_t> blocks(grid_x*grid_y);
    for (uint32_t i = 0; i < blocks.size(); ++i) {
        blocks[i] = how == order::backward ? (uint32_t) blocks.size() - 1 - i : i;
    }
    if (how == order::shuffled) {
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    bool good = true;
    for (uint32_t i = 0; i < blocks.size() && good; ++i) {
        memset(m.shared, 0xa5, shared);
        block_index = { blocks[i]%grid_x, blocks[i]/grid_x, 0 };
        good = run_block(block/32, how, random);
    }
    munmap(memory.map, memory.whole);
    if (!good) {
        m.fibers.clear(); // some stand in the middle of the kernel
    }
    return good;
}

uint8_t * shared_memory() { return m.shared; }

void barrier() { wait(at::barrier); }

uint32_t shuffle_xor(uint32_t v, int mask) {
    fiber & f = m.fibers[m.current];
    f.in[0] = v;
    f.in[1] = (uint32_t) mask;
    wait(at::shuffle);
    return f.out[0];
}

void mma(int d[4], const uint32_t a[4], const uint32_t b[2]) {
    fiber & f = m.fibers[m.current];
    memcpy(f.in, d, 16);
    memcpy(f.in + 4, a, 16);
    memcpy(f.in + 8, b, 8);
    wait(at::mma);
    memcpy(d, f.out, 16);
}

float half(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    float v;
    if (exponent == 31) {
        v = mantissa ? NAN : INFINITY;
    } else if (exponent == 0) {
        v = std::ldexp((float) mantissa, -24);
    } else {
        v = std::ldexp((float) (1024 + mantissa), exponent - 25);
    }
    return h >> 15 ? -v : v;
}

} // namespace lbe
