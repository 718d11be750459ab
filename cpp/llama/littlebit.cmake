# Included at the end of llama.cpp's src/CMakeLists.txt when GGML_LITTLEBIT is on.
#   GGML_LITTLEBIT_DIR   this directory
#   GGML_LITTLEBIT_LIB   liblittlebit.a or liblittlebit.so; empty: portable lowering only
#   GGML_LITTLEBIT_TESTS builds littlebit-logits
set(GGML_LITTLEBIT_LIB "" CACHE FILEPATH "liblittlebit to link, empty for the portable lowering only")

set(LITTLEBIT_SOURCES
    ${GGML_LITTLEBIT_DIR}/llama-littlebit-loader.cpp
    ${GGML_LITTLEBIT_DIR}/llama-littlebit-graph.cpp
    ${GGML_LITTLEBIT_DIR}/llama-littlebit-check.cpp)
target_sources(llama PRIVATE ${LITTLEBIT_SOURCES})
set_source_files_properties(${LITTLEBIT_SOURCES} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_include_directories(llama PRIVATE ${GGML_LITTLEBIT_DIR})
target_compile_definitions(llama PRIVATE GGML_USE_LITTLEBIT)
if (GGML_LITTLEBIT_LIB)
    target_include_directories(llama PRIVATE ${GGML_LITTLEBIT_DIR}/../../include)
    target_compile_definitions(llama PRIVATE LITTLEBIT_NATIVE)
    find_package(Threads REQUIRED)
    # Rust's standard library needs these beside libc.
    target_link_libraries(llama PRIVATE ${GGML_LITTLEBIT_LIB} Threads::Threads ${CMAKE_DL_LIBS} m)
endif()

if (GGML_LITTLEBIT_TESTS)
    add_executable(littlebit-logits ${GGML_LITTLEBIT_DIR}/littlebit-logits.cpp)
    target_link_libraries(littlebit-logits PRIVATE llama)
    install(TARGETS littlebit-logits RUNTIME)
endif()
