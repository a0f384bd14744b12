#!/bin/sh
# Copy Triton's server and its Python backend from FROM to TO, with the shared libraries that they load. Left out are those
# that the base image has for itself (glibc, GCC, Python and what its modules load), and the driver's, from the host.
set -eu
from=$1 to=$2
mkdir -p "$to/bin" "$to/lib" "$to/backends"
cp "$from/bin/tritonserver" "$to/bin/"
cp -RL "$from/backends/python" "$to/backends/"
find "$from" -maxdepth 1 -iname '*license*' -exec cp {} "$to/" ';'
LD_LIBRARY_PATH="$from/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    ldd "$from/bin/tritonserver" "$from/backends/python/libtriton_python.so" \
    "$from/backends/python/triton_python_backend_stub" >"$to/libraries.txt"
while read -r name _ path _; do
    case $name in
    *: | linux-vdso.* | /* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.* | libutil.so.*) ;;
    libstdc++.so.* | libgcc_s.so.* | libcuda.so.* | libnvidia-ml.so.*) ;;
    libpython3.* | libssl.so.* | libcrypto.so.* | libz.so.* | liblzma.so.* | libbz2.so.* | libffi.so.*) ;;
    *)
        [ "$path" != not ] || { echo "$name is not found" >&2; exit 1; }
        cp -L "$path" "$to/lib/$name"
        ;;
    esac
done <"$to/libraries.txt"
