#!/bin/sh
# Runs the operators under AddressSanitizer + UndefinedBehaviorSanitizer and under ThreadSanitizer, on every instruction
# set that this processor has, with 1, 2 and 4 threads; and under valgrind where it is installed. Fails on the first
# finding. Needs g++ or clang++ (CXX).
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cxx=${CXX:-c++}

drivers="kernels_driver kernels_train_driver"
sets="generic"
case $(uname -m) in x86_64 | amd64) sets="generic avx2 avx512 amx" ;; esac

# isa_flags SET: what hatch_build.py compiles it with.
isa_flags() {
  case $1 in
    generic) ;;
    avx2) echo "-mavx2 -mfma -mf16c" ;;
    avx512) echo "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c" ;;
    amx) echo "$(isa_flags avx512) -mavx512bf16 -mamx-tile -mamx-bf16" ;;
  esac
}

# build NAME FLAG...: each driver and the library's sources as one program.
build() {
  name=$1
  shift
  flags="-std=c++17 -O1 -g -ffp-contract=fast -fno-math-errno -fno-omit-frame-pointer -pthread $*"
  have=
  case $sets in *avx*) have="-DCODELLAMA_HAVE_AVX2 -DCODELLAMA_HAVE_AVX512 -DCODELLAMA_HAVE_AMX" ;; esac
  mkdir "$folder/objects-$name"
  for file in csrc/*.cpp; do
    object="$folder/objects-$name/$(basename "$file" .cpp)"
    # shellcheck disable=SC2086,SC2046  (lists of words)
    case $file in
      csrc/isa.cpp | csrc/gemm_fma.cpp | csrc/train_isa.cpp)
        for set in ${sets%amx}; do
          $cxx $flags $(isa_flags $set) -DCODELLAMA_ISA=$set -c "$file" -o "$object-$set.o" &
        done
        ;;
      csrc/gemm_amx.cpp)
        case $sets in *amx) $cxx $flags $(isa_flags amx) -c "$file" -o "$object.o" & ;; esac
        ;;
      *) $cxx $flags $have -c "$file" -o "$object.o" & ;;
    esac
  done
  wait
  for driver in $drivers; do
    # shellcheck disable=SC2086
    $cxx $flags "tests/$driver.cpp" "$folder/objects-$name"/*.o -o "$folder/$name-$driver"
  done
}

# run NAME ARGUMENT...: the programs on every instruction set and several sizes of the team.
run() {
  name=$1
  shift
  for driver in $drivers; do
    for set in $sets; do
      for threads in 1 2 4; do
        printf '%s: ' "$name"
        CODELLAMA_KERNELS_ISA=$set CODELLAMA_NUM_THREADS=$threads "$folder/$name-$driver" "$@"
      done
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
  for driver in $drivers; do
    CODELLAMA_KERNELS_ISA=avx2 CODELLAMA_NUM_THREADS=2 valgrind -q --error-exitcode=1 "$folder/plain-$driver"
  done
else
  echo "valgrind: not installed, left out"
fi
