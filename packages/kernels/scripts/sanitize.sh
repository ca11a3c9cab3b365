#!/bin/sh
# Runs the operators under AddressSanitizer + UndefinedBehaviorSanitizer and under ThreadSanitizer, on every instruction
# set that this processor has, with 1, 2 and 4 threads; and under valgrind where it is installed. Fails on the first
# finding. Needs g++ or clang++ (CXX).
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cxx=${CXX:-c++}

# build NAME FLAG...: the driver and the library's sources as one program.
build() {
  name=$1
  shift
  flags="-std=c++17 -O1 -g -ffp-contract=fast -fno-math-errno -fno-omit-frame-pointer -pthread $*"
  objects=
  sets="generic"
  case $(uname -m) in x86_64 | amd64) sets="generic avx2 avx512" ;; esac
  for set in $sets; do
    case $set in
      generic) isa= ;;
      avx2) isa="-mavx2 -mfma -mf16c" ;;
      avx512) isa="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c" ;;
    esac
    # shellcheck disable=SC2086  (lists of words)
    $cxx $flags $isa -DCODELLAMA_ISA=$set -c csrc/isa.cpp -o "$folder/$name-$set.o" &
    objects="$objects $folder/$name-$set.o"
  done
  wait
  have=
  case $sets in *avx*) have="-DCODELLAMA_HAVE_AVX2 -DCODELLAMA_HAVE_AVX512" ;; esac
  # shellcheck disable=SC2086
  $cxx $flags $have tests/kernels_driver.cpp csrc/layer.cpp csrc/head.cpp csrc/about.cpp csrc/pool.cpp csrc/cpus.cpp \
    csrc/dispatch.cpp $objects -o "$folder/$name"
}

# run NAME ARGUMENT...: the program on every instruction set and several sizes of the team.
run() {
  name=$1
  shift
  for set in generic avx2 avx512; do
    for threads in 1 2 4; do
      printf '%s: ' "$name"
      CODELLAMA_KERNELS_ISA=$set CODELLAMA_NUM_THREADS=$threads "$folder/$name" "$@"
    done
  done
}

export ASAN_OPTIONS=detect_leaks=0 # the team of threads lives as long as the process, on purpose
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
build address -fsanitize=address,undefined -fno-sanitize-recover=all
run address
export TSAN_OPTIONS=halt_on_error=1
build thread -fsanitize=thread
run thread no-fork
if command -v valgrind >/dev/null; then
  build plain
  # valgrind knows no AVX-512.
  CODELLAMA_KERNELS_ISA=avx2 CODELLAMA_NUM_THREADS=2 valgrind -q --error-exitcode=1 "$folder/plain"
else
  echo "valgrind: not installed, left out"
fi
