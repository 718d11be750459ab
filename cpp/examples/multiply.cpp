// multiply.c in C++17: lists the matrices of a LittleBit GGUF and multiplies one of them in three ways,
// the last one with a thread of our own for every slice of a stage.
//
//   c++ -std=c++17 -I include -I cpp cpp/examples/multiply.cpp -L target/release -llittlebit -pthread
//   multiply MODEL.gguf [MATRIX [EXPERT]]
//
// SPDX-License-Identifier: MIT OR Apache-2.0
#include "littlebit.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

using littlebit::half;
using littlebit::mode;

namespace {

constexpr std::size_t columns = 3;
constexpr std::uint32_t slices = 2;

void list(const littlebit::model &model) {
    for (const littlebit::matrix &matrix : model.matrices()) {
        const lb_matrix_info info = matrix.info();
        std::printf("%s: %llu x %llu, rank %llu, paths %u, experts %u, %.3f bits per weight\n",
                    matrix.name().c_str(), static_cast<unsigned long long>(info.d_out),
                    static_cast<unsigned long long>(info.d_in), static_cast<unsigned long long>(info.rank),
                    static_cast<unsigned>(info.paths), static_cast<unsigned>(info.experts), info.bpw);
    }
}

// Every slice of a stage on a thread of its own. Returning is the barrier that the next half needs.
void run(const littlebit::stage &stage, const std::vector<float> &x, const float *add, std::vector<float> &y) {
    const std::size_t size = stage.work_size(mode::integer, columns);
    std::vector<std::vector<unsigned char>> work(slices, std::vector<unsigned char>(size));
    std::vector<std::exception_ptr> failures(slices);
    std::vector<std::thread> threads;
    for (std::uint32_t ith = 0; ith < slices; ith++) {
        threads.emplace_back([&, ith] {
            try {
                stage.run(mode::integer, x.data(), columns, add, y.data(), work[ith].data(), size, ith, slices);
            } catch (...) {
                failures[ith] = std::current_exception();
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    for (const std::exception_ptr &failure : failures) {
        if (failure) {
            std::rethrow_exception(failure);
        }
    }
}

std::vector<float> multiply_by_stages(const littlebit::matrix &matrix, std::uint32_t expert,
                                      const std::vector<float> &x) {
    const lb_matrix_info info = matrix.info();
    std::vector<float> t(columns * info.rank), y(columns * info.d_out);
    for (std::uint32_t path = 0; path < info.paths; path++) {
        run(matrix.stage(expert, path, half::v), x, nullptr, t);
        run(matrix.stage(expert, path, half::u), t, path > 0 ? y.data() : nullptr, y);
    }
    return y;
}

void show(const char *name, const std::vector<float> &y) {
    std::printf("%s:", name);
    for (std::size_t i = 0; i < y.size() / columns && i < 4; i++) {
        std::printf(" %.9g", static_cast<double>(y[i]));
    }
    std::printf("\n");
}

void multiply(const littlebit::matrix &matrix, std::uint32_t expert) {
    const std::size_t d_in = matrix.info().d_in;
    std::vector<float> x(columns * d_in);
    for (std::size_t t = 0; t < columns; t++) {
        for (std::size_t i = 0; i < d_in; i++) {
            x[t * d_in + i] = (static_cast<float>((i * 7 + t * 13) % 31) - 15.0f) / 16.0f;
        }
    }
    const std::vector<float> y_int = matrix.multiply(x, mode::integer, 2, expert);
    const std::vector<float> y_f32 = matrix.multiply(x, mode::single_precision, 2, expert);
    const std::vector<float> y_stages = multiply_by_stages(matrix, expert, x);
    std::printf("%s, expert %u, kernel %s\n", matrix.name().c_str(), static_cast<unsigned>(expert),
                littlebit::active_kernel().c_str());
    show("int", y_int);
    show("f32", y_f32);
    show("stages", y_stages);
    if (y_int != y_stages) {
        throw std::runtime_error("the stages give another result than the whole product");
    }
    double difference = 0.0, size = 0.0;
    for (std::size_t i = 0; i < y_int.size(); i++) {
        const double d = static_cast<double>(y_int[i]) - static_cast<double>(y_f32[i]);
        difference += d * d;
        size += static_cast<double>(y_f32[i]) * static_cast<double>(y_f32[i]);
    }
    std::printf("relative difference of int and f32: %.3g\n", size > 0.0 ? std::sqrt(difference / size) : 0.0);
}

std::uint32_t expert_number(const char *text) {
    std::uint32_t number = 0;
    const char *end = text + std::strlen(text);
    const auto [stop, fault] = std::from_chars(text, end, number);
    if (fault != std::errc() || stop != end) {
        throw std::runtime_error("'" + std::string(text) + "' is not the number of an expert");
    }
    return number;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: multiply MODEL.gguf [MATRIX [EXPERT]]\n");
        return 2;
    }
    try {
        const littlebit::model model(argv[1]);
        list(model);
        const littlebit::matrix matrix = argc > 2 ? model.find(argv[2]) : model[0];
        multiply(matrix, argc > 3 ? expert_number(argv[3]) : 0);
    } catch (const littlebit::error &e) {
        std::fprintf(stderr, "multiply: %s (status %u: %s)\n", e.what(), static_cast<unsigned>(e.status()),
                     lb_status_text(e.status()));
        return 1;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "multiply: %s\n", e.what());
        return 1;
    }
    return 0;
}
