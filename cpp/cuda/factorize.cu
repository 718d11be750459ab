// The kernels of the compressor as a module of their own.
#include "factorize.cuh"
