// littlebit.h for C++17: handles that free themselves, failures as exceptions. Header only.
//
//   littlebit::model model("model-LB0.55.gguf");
//   littlebit::matrix w = model.find("blk.0.attn_q");
//   std::vector<float> y = w.multiply(x);          // n columns of d_in floats -> n columns of d_out
//
// A matrix keeps its model open. Thread rules are those of specs/c-abi.md: const calls may run at once.
//
// SPDX-License-Identifier: MIT OR Apache-2.0
#ifndef LITTLEBIT_HPP
#define LITTLEBIT_HPP

#include "littlebit.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace littlebit {

// A call that failed: what() is the library's message, status() one of LB_ERROR_*.
class error : public std::runtime_error {
public:
    error(lb_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    lb_status status() const noexcept { return status_; }

private:
    lb_status status_;
};

// Throws what the last call of this thread had to say, unless it succeeded.
inline void check(lb_status status) {
    if (status != LB_OK) {
        throw error(status, lb_last_error_message());
    }
}

// Throws if the library in use has another interface than the header.
inline void check_abi() {
    if (lb_abi_version() != LB_ABI_VERSION) {
        throw error(LB_ERROR_UNSUPPORTED, "liblittlebit has ABI " + std::to_string(lb_abi_version()) +
                                              ", this program was built for " +
                                              std::to_string(LB_ABI_VERSION));
    }
}

enum class mode : std::uint32_t {
    integer = LB_MODE_INT,         // 12-bit activations, the fast way
    single_precision = LB_MODE_F32 // activations as they are, slower
};

enum class half : std::uint32_t {
    v = 0, // t = l * (V^T (g * x))
    u = 1  // y = h * (U t)
};

// Half a product for callers that own their threads: y = add + post * (S (pre * x)).
class stage {
public:
    // From memory of the caller, that must outlive the stage.
    explicit stage(const lb_stage &raw) : raw_(raw) {}
    // From a matrix; keeps its model open.
    stage(const lb_stage &raw, std::shared_ptr<lb_model> model) : raw_(raw), model_(std::move(model)) {}

    const lb_stage &raw() const noexcept { return raw_; }
    std::size_t rows() const noexcept { return static_cast<std::size_t>(raw_.rows); }
    std::size_t cols() const noexcept { return static_cast<std::size_t>(raw_.cols); }

    // Bytes of scratch memory per thread for n columns.
    std::size_t work_size(mode m, std::size_t n) const {
        std::size_t size = 0;
        check(lb_stage_work_size(&raw_, static_cast<std::uint32_t>(m), n, &size));
        return size;
    }

    // Share ith of nth of n columns that lie close together; add may be nullptr or y.
    void run(mode m, const float *x, std::size_t n, const float *add, float *y, void *work,
             std::size_t work_size, std::uint32_t ith = 0, std::uint32_t nth = 1) const {
        check(lb_stage_run(&raw_, static_cast<std::uint32_t>(m), x, cols(), n, add, rows(), y, rows(), work,
                           work_size, ith, nth));
    }

private:
    lb_stage raw_;
    std::shared_ptr<lb_model> model_;
};

// A factorized weight of a model.
class matrix {
public:
    matrix(const lb_matrix *raw, std::shared_ptr<lb_model> model) : raw_(raw), model_(std::move(model)) {}

    const lb_matrix *raw() const noexcept { return raw_; }
    std::string name() const { return lb_matrix_name(raw_); }

    lb_matrix_info info() const {
        lb_matrix_info info{};
        info.struct_size = sizeof info;
        check(lb_matrix_get_info(raw_, &info));
        return info;
    }

    // y = W x for n columns at strides in floats, on threads of the library's own.
    void multiply(const float *x, std::size_t x_stride, std::size_t n, float *y, std::size_t y_stride,
                  mode m = mode::integer, std::uint32_t threads = 1, std::uint32_t expert = 0) const {
        check(lb_matrix_mul(raw_, expert, static_cast<std::uint32_t>(m), x, x_stride, n, y, y_stride, threads));
    }

    // The same for whole columns of d_in floats, one after the other.
    std::vector<float> multiply(const std::vector<float> &x, mode m = mode::integer, std::uint32_t threads = 1,
                                std::uint32_t expert = 0) const {
        const lb_matrix_info shape = info();
        const auto d_in = static_cast<std::size_t>(shape.d_in), d_out = static_cast<std::size_t>(shape.d_out);
        if (x.size() % d_in != 0) {
            throw error(LB_ERROR_INVALID_ARGUMENT, std::to_string(x.size()) + " floats are not columns of " +
                                                       std::to_string(d_in));
        }
        const std::size_t n = x.size() / d_in;
        std::vector<float> y(n * d_out);
        multiply(x.data(), d_in, n, y.data(), d_out, m, threads, expert);
        return y;
    }

    littlebit::stage stage(std::uint32_t expert, std::uint32_t path, littlebit::half half) const {
        lb_stage raw{};
        raw.struct_size = sizeof raw;
        check(lb_matrix_stage(raw_, expert, path, static_cast<std::uint32_t>(half), &raw));
        return littlebit::stage(raw, model_);
    }

private:
    const lb_matrix *raw_;
    std::shared_ptr<lb_model> model_;
};

// An open LittleBit GGUF. Copies share it; the last one closes it.
class model {
public:
    explicit model(const std::string &path) {
        check_abi();
        // C would read the path up to the NUL and open another file.
        if (path.find('\0') != std::string::npos) {
            throw error(LB_ERROR_INVALID_ARGUMENT, "path contains a NUL character");
        }
        lb_model *raw = nullptr;
        check(lb_model_open(path.c_str(), &raw));
        raw_.reset(raw, lb_model_free);
    }

    const lb_model *raw() const noexcept { return raw_.get(); }
    std::size_t size() const noexcept { return lb_model_matrix_count(raw_.get()); }

    littlebit::matrix operator[](std::size_t index) const {
        const lb_matrix *found = nullptr;
        check(lb_model_matrix(raw_.get(), index, &found));
        return littlebit::matrix(found, raw_);
    }

    // By name, with or without ".weight".
    littlebit::matrix find(const std::string &name) const {
        const lb_matrix *found = nullptr;
        check(lb_model_find_matrix(raw_.get(), name.c_str(), &found));
        return littlebit::matrix(found, raw_);
    }

    std::vector<littlebit::matrix> matrices() const {
        std::vector<littlebit::matrix> all;
        all.reserve(size());
        for (std::size_t i = 0; i < size(); i++) {
            all.push_back((*this)[i]);
        }
        return all;
    }

private:
    std::shared_ptr<lb_model> raw_;
};

// Names of the kernels that run here, slowest first.
inline std::vector<std::string> kernels() {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < lb_kernel_count(); i++) {
        names.emplace_back(lb_kernel_name(i));
    }
    return names;
}

inline std::string active_kernel() {
    return lb_kernel_active();
}

// For the whole process; "" chooses automatically.
inline void force_kernel(const std::string &name) {
    check(lb_kernel_force(name.empty() ? nullptr : name.c_str()));
}

} // namespace littlebit

#endif // LITTLEBIT_HPP
