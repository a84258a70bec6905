#!/bin/sh
# Take out of an installed environment what this project never loads; docs/container.md says what each part weighs.
# usage: slim.sh ENVIRONMENT [yes: keep what torch.compile needs]
set -eu
cd "$1"/lib/python3*/site-packages
# Packages' own tests, static libraries, and two libraries that no other links or opens: NVRTC's second build and
# cuSOLVER for several GPUs.
find . -type d -name tests -prune -exec rm -rf {} +
find . -name '*.a' -delete
rm -f nvidia/*/lib/*.alt.so* nvidia/*/lib/libcusolverMg.so*
# Without a compiler, neither the C++ headers nor triton can do anything.
if [ "${2:-}" != yes ]; then
    rm -rf torch/include nvidia/*/include triton triton-*.dist-info
fi
