// The kernels as a module of their own, for fatbin and PTX.
#include "kernels.cuh"
