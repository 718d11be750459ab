# Included by ggml/src/ggml-cuda/CMakeLists.txt when GGML_LITTLEBIT is on. The kernels are compiled with flags
# of their own: warnings are errors, and there is no -use_fast_math, which would not change them anyway (device.cuh).
add_library(littlebit-cuda OBJECT ${GGML_LITTLEBIT_DIR}/../cuda/launch.cu)
set_target_properties(littlebit-cuda PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON)
target_compile_options(littlebit-cuda PRIVATE $<$<CUDA_COMPILER_ID:NVIDIA>:-Werror=all-warnings>)
# With ggml-cuda's own flags, and warnings are errors, too.
set_source_files_properties(${GGML_LITTLEBIT_DIR}/ggml-cuda-littlebit.cu PROPERTIES
    COMPILE_OPTIONS "$<$<CUDA_COMPILER_ID:NVIDIA>:-Werror=all-warnings>")
target_sources(ggml-cuda PRIVATE ${GGML_LITTLEBIT_DIR}/ggml-cuda-littlebit.cu $<TARGET_OBJECTS:littlebit-cuda>)
target_include_directories(ggml-cuda PRIVATE ${GGML_LITTLEBIT_DIR})
target_compile_definitions(ggml-cuda PRIVATE GGML_USE_LITTLEBIT)
