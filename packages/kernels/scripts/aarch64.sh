#!/bin/sh
# Cross-compiles the operators and their drivers for aarch64 and runs them under qemu's user emulation.
# Needs (Debian) g++-aarch64-linux-gnu and qemu-user.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for driver in kernels_driver kernels_train_driver; do
  # shellcheck disable=SC2046  (a list of words)
  aarch64-linux-gnu-g++ -std=c++17 -O3 -ffp-contract=fast -fno-math-errno -Wall -Wextra -pthread -static \
    -DCODELLAMA_ISA=generic "tests/$driver.cpp" $(ls csrc/*.cpp | grep -v amx) -o "$folder/$driver"
  for threads in 1 2 4; do
    # no-fork: qemu-user 7.2 itself fails in a forked child of a process with threads.
    CODELLAMA_NUM_THREADS=$threads qemu-aarch64 "$folder/$driver" no-fork
  done
done
