// What the host model's libcuda (libcuda.cpp) has for its libcublas and for tests.
//
// Device pointers carry a bit that no address of a process has: host code that follows one faults. An allocation ends at a closed
// page and starts as NaN.

#pragma once

#include <cstddef>
#include <cstdint>

constexpr uint64_t LBM_DEVICE = 1ull << 62;

extern "C" {

// the host's address of device memory; null if not all `size` bytes lie in one allocation
void * lbm_host(uint64_t device, size_t size);
// whether `name` (of a kernel or function) is the one that LITTLEBIT_HOST_MODEL_FAULT or lbm_fault makes compute wrongly
bool lbm_faulty(const char * name);
// called at every call of `name`: whether it is the one that LITTLEBIT_HOST_MODEL_REFUSE makes fail
bool lbm_refused(const char * name);

// For tests: the order of threads (machine.h; -1 runs kernels without barriers as plain loops, the default), the largest number of
// allocated bytes since the last call, memory of the device, a function that computes wrongly (null: none).
void   lbm_order(int order);
size_t lbm_peak(void);
void   lbm_memory(size_t bytes);
void   lbm_fault(const char * name);

}
