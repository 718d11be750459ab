// Logits of a fixed token sequence, for comparing models and builds. Uses llama.h alone, so it builds against stock
// llama.cpp too.
//
//   littlebit-logits dump -m MODEL -o FILE [--prompt N] [--decode N] [-t N] [--ubatch N] [--no-mmap] [-ngl N]
//   littlebit-logits pairs -t N [-ngl N] BOUND < LIST       lines: DENSE FACTORIZED
//   littlebit-logits devices -t N [-ngl N] [--own F] BOUND < LIST     lines: MODEL
//
// dump writes the f32 logits of every position; pairs compares two models a line and prints the normalized mean
// squared error (NMSE) of the second's logits; devices runs each model twice, on the CPU alone and with -ngl N layers on the
// devices that there are. Exit code 1 if any is above BOUND. --own F: a model above it passes with at most F times the NMSE of the
// CPU's logits against the CPU's own for the prompt token by token. These differ by the order of float sums alone, which moves what is
// rounded afterwards: less than a few times that much cannot be asked of a device.

#include "ggml-backend.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

struct options {
    int  prompt = 36;
    int  decode = 4;
    int  threads = 1;
    int  ubatch = 64; // models without causal attention need the whole prompt in one
    int  ngl = 0;
    bool mmap = true;
    bool alone = false; // no device takes part, whatever there is
    double own = 0.0;
};

// decodes tokens at positions pos.. and appends the logits of all of them
static bool decode(llama_context * ctx, const std::vector<llama_token> & tokens, int pos, int n_vocab, std::vector<float> & out) {
    llama_batch batch = llama_batch_init((int) tokens.size(), 0, 1);
    for (size_t i = 0; i < tokens.size(); ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = pos + (int) i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    batch.n_tokens = (int) tokens.size();
    bool ok = llama_decode(ctx, batch) == 0;
    for (size_t i = 0; ok && i < tokens.size(); ++i) {
        const float * logits = llama_get_logits_ith(ctx, (int) i);
        ok = logits != nullptr;
        if (ok) {
            out.insert(out.end(), logits, logits + n_vocab);
        }
    }
    llama_batch_free(batch);
    return ok;
}

// logits of all positions; empty on failure
static std::vector<float> run(const std::string & path, const options & o) {
    std::vector<float> out;
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = o.ngl;
    ggml_backend_dev_t none[] = { nullptr };
    if (o.alone) {
        mp.devices = none;
        mp.n_gpu_layers = 0;
    }
    mp.load_mode = o.mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(path.c_str(), mp);
    if (!model) {
        fprintf(stderr, "%s: cannot load\n", path.c_str());
        return out;
    }
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 256;
    cp.n_batch = 256;
    cp.n_ubatch = o.ubatch;
    cp.n_threads = cp.n_threads_batch = o.threads;
    // A cache in F16 would turn differences of one rounding into ones of 1e-3.
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.op_offload = cp.offload_kqv = !o.alone;
    llama_context * ctx = llama_init_from_model(model, cp);
    if (!ctx) {
        fprintf(stderr, "%s: cannot create a context\n", path.c_str());
        llama_model_free(model);
        return out;
    }
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    auto token = [&](int i) { return (llama_token) (((int64_t) i*7919 + 13) % n_vocab); };
    std::vector<llama_token> tokens;
    for (int i = 0; i < o.prompt; ++i) {
        tokens.push_back(token(i));
    }
    bool ok = decode(ctx, tokens, 0, n_vocab, out);
    for (int i = 0; ok && i < o.decode; ++i) {
        ok = decode(ctx, { token(o.prompt + i) }, o.prompt + i, n_vocab, out);
    }
    if (!ok) {
        fprintf(stderr, "%s: decoding failed\n", path.c_str());
        out.clear();
    }
    llama_free(ctx);
    llama_model_free(model);
    return out;
}

static double nmse(const std::vector<float> & a, const std::vector<float> & b) {
    double diff = 0.0, norm = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        diff += ((double) a[i] - b[i])*((double) a[i] - b[i]);
        norm += (double) a[i]*a[i];
    }
    return diff/norm;
}

static int usage() {
    fprintf(stderr, "usage: littlebit-logits dump -m MODEL -o FILE [--prompt N] [--decode N] [-t N] [--ubatch N] [--no-mmap] [-ngl N]\n"
                    "       littlebit-logits pairs|devices [-t N] [-ngl N] [--no-mmap] [--own F] BOUND < LIST\n");
    return 2;
}

int main(int argc, char ** argv) {
    options o;
    std::string model, output, bound;
    if (argc < 2) {
        return usage();
    }
    const std::string mode = argv[1];
    ggml_backend_load_all(); // those of GGML_BACKEND_PATH, too
    for (int i = 2; i < argc; ++i) {
        const std::string arg = argv[i];
        auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
        if      (arg == "-m")        { model = value(); }
        else if (arg == "-o")        { output = value(); }
        else if (arg == "--prompt")  { o.prompt = atoi(value().c_str()); }
        else if (arg == "--decode")  { o.decode = atoi(value().c_str()); }
        else if (arg == "--ubatch")  { o.ubatch = atoi(value().c_str()); }
        else if (arg == "-t")        { o.threads = atoi(value().c_str()); }
        else if (arg == "-ngl")      { o.ngl = atoi(value().c_str()); }
        else if (arg == "--no-mmap") { o.mmap = false; }
        else if (arg == "--own")     { o.own = atof(value().c_str()); }
        else if (bound.empty() && arg[0] != '-') { bound = arg; }
        else { return usage(); }
    }
    if (mode == "dump" && !model.empty() && !output.empty()) {
        const std::vector<float> logits = run(model, o);
        if (logits.empty()) {
            return 1;
        }
        FILE * f = fopen(output.c_str(), "wb");
        const bool ok = f && fwrite(logits.data(), sizeof(float), logits.size(), f) == logits.size();
        if (!f || fclose(f) != 0 || !ok) {
            fprintf(stderr, "%s: cannot write\n", output.c_str());
            return 1;
        }
        return 0;
    }
    if ((mode == "pairs" || mode == "devices") && !bound.empty()) {
        llama_log_set([](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR || (level == GGML_LOG_LEVEL_WARN && strncmp(text, "littlebit", 9) == 0)) {
                fputs(text, stderr);
            }
        }, nullptr);
        const double limit = atof(bound.c_str());
        int failed = 0, passed = 0;
        const bool pairs = mode == "pairs";
        options first = o;
        first.alone = !pairs;
        std::string dense, factors;
        while (std::cin >> dense && (!pairs || std::cin >> factors)) {
            factors = pairs ? factors : dense;
            const std::vector<float> a = run(dense, first), b = run(factors, o);
            const double e = a.empty() || a.size() != b.size() ? NAN : nmse(a, b);
            bool ok = e <= limit; // false for NaN
            std::string own;
            if (!ok && !pairs && o.own > 0.0 && !a.empty()) {
                options slow = first;
                slow.ubatch = 1;
                const std::vector<float> c = run(dense, slow);
                const double mine = a.size() != c.size() ? 0.0 : nmse(a, c);
                ok = e <= o.own*mine;
                char text[64];
                snprintf(text, sizeof text, ", the CPU's own %.2e", mine);
                own = text;
            }
            printf("%s %-48s NMSE %.2e%s\n", ok ? "ok  " : "FAIL", factors.substr(factors.rfind('/') + 1).c_str(), e, own.c_str());
            fflush(stdout);
            (ok ? passed : failed)++;
        }
        printf("%d passed, %d failed\n", passed, failed);
        return failed == 0 && passed > 0 ? 0 : 1;
    }
    return usage();
}
