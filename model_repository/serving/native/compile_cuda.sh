#!/bin/sh
# Compile int8_kv_attention.so for GPUs, beside its source or to OUT. Needs nvcc of CUDA 13. Arguments go to nvcc.
# SM 8.0 is A100, and A10 and L4 run it; 9.0 is H100 and H200; 12.0 is RTX PRO and 50; others compile the PTX when they load it.
set -eu
cd "$(dirname "$0")"
exec nvcc -std=c++20 -O3 -shared -cudart shared -Xcompiler -fPIC,-fvisibility=hidden -Werror all-warnings \
    -Xptxas -warn-spills -gencode 'arch=compute_80,code=[sm_80,compute_80]' \
    -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_120,code=sm_120 \
    "$@" -o "${OUT:-int8_kv_attention.so}" int8_kv_attention.cu
