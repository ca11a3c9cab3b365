// Exercises the operators under the sanitizers: `scripts/sanitize.sh` builds and runs it.
//
// No oracle is needed to find a race or a bad address. What is checked is that a prompt taken in at once leaves the
// same outputs and caches as its tokens one by one and, where the processor has products in bfloat16, about the same
// outputs with them; from two threads of the process at a time, and in a forked child.
// Every array is allocated with its exact size, so that a read beyond its end is seen.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

using Operator = int(int, void**, int*, int64_t**, const char**, void*, void*);
extern "C" Operator codellama_cached_layers, codellama_cached_layers_bfloat16, codellama_cached_head;
extern "C" const char* codellama_isa();
extern "C" int codellama_threads(), codellama_bfloat16();

namespace {

struct Array {
  std::vector<int64_t> shape;
  const char* type;
  std::shared_ptr<char[]> bytes;

  Array(std::vector<int64_t> sides, const char* dtype) : shape(std::move(sides)), type(dtype) {
    const std::string name(type);
    bytes.reset(new char[static_cast<size_t>(size()) * (name == "int8" ? 1 : name == "float16" ? 2 : 4)]());
  }
  int64_t size() const {
    int64_t product = 1;
    for (const int64_t side : shape) product *= side;
    return product;
  }
  float* floats() const { return reinterpret_cast<float*>(bytes.get()); }
  int32_t* ints() const { return reinterpret_cast<int32_t*>(bytes.get()); }
};

Array random(std::mt19937& generator, std::vector<int64_t> shape, const char* type = "float32") {
  Array array(std::move(shape), type);
  const float scale = array.shape.size() > 1 ? 1.0f / std::sqrt(static_cast<float>(array.shape[1])) : 1.0f;
  std::uniform_real_distribution<float> draw(-scale, scale);
  for (int64_t i = 0; i < array.size(); ++i) {
    if (std::string(type) == "float32") {
      array.floats()[i] = draw(generator);
    } else if (std::string(type) == "int8") {
      array.bytes.get()[i] = static_cast<char>(generator());
    } else {  // sign, and an exponent below that of 0.5
      const uint32_t bits = static_cast<uint32_t>(generator());
      reinterpret_cast<uint16_t*>(array.bytes.get())[i] = static_cast<uint16_t>((bits & 0x83ffu) | (bits >> 16 & 7u) << 11);
    }
  }
  return array;
}

// Of an int8 matrix: small ones, so that a weight is about 0.1.
Array scales(const Array& matrix) {
  Array array({matrix.shape[0], (matrix.shape[1] + 63) / 64}, "float16");
  for (int64_t i = 0; i < array.size(); ++i) reinterpret_cast<uint16_t*>(array.bytes.get())[i] = 0x1400;  // 2^-10
  return array;
}

void call(Operator* function, std::vector<Array> arrays) {
  std::vector<void*> data;
  std::vector<int> ndims;
  std::vector<int64_t*> shapes;
  std::vector<const char*> types;
  for (Array& array : arrays) {
    data.push_back(array.bytes.get());
    ndims.push_back(static_cast<int>(array.shape.size()));
    shapes.push_back(array.shape.data());
    types.push_back(array.type);
  }
  if (function(static_cast<int>(data.size()), data.data(), ndims.data(), shapes.data(), types.data(), nullptr, nullptr)) {
    std::fprintf(stderr, "an operator refused its arguments\n");
    std::exit(1);
  }
}

void compare(const Array& a, int64_t begin, const Array& b, float tolerance, const char* what) {
  for (int64_t i = 0; i < b.size(); ++i) {
    if (!(std::fabs(a.floats()[begin + i] - b.floats()[i]) < tolerance)) {
      std::fprintf(stderr, "%s differ at %lld: %g and %g\n", what, static_cast<long long>(i), a.floats()[begin + i],
                   b.floats()[i]);
      std::exit(1);
    }
  }
}

constexpr float kTolerance = 1e-3f;
constexpr float kRoundedTolerance = 0.1f;  // outputs reach several units; operands of 8 significant bits

struct Case {
  int64_t heads, kv_heads, width, hidden, ffn, length, start;
  const char *weight, *cache;
};

void check(const Case& c) {
  std::mt19937 generator(static_cast<uint32_t>(c.length * 1000 + c.width));
  const int64_t cached = c.start + c.length + 1, query = c.heads * c.width, key = c.kv_heads * c.width;
  const Array x = random(generator, {c.length, c.hidden});
  const Array cosine = random(generator, {cached - 1, c.width}), sine = random(generator, {cached - 1, c.width});
  const std::vector<Array> weights = {random(generator, {c.hidden}),
                                      random(generator, {query, c.hidden}, c.weight),
                                      random(generator, {key, c.hidden}, c.weight),
                                      random(generator, {key, c.hidden}, c.weight),
                                      random(generator, {c.hidden, query}, c.weight),
                                      random(generator, {c.hidden}),
                                      random(generator, {c.ffn, c.hidden}, c.weight),
                                      random(generator, {c.hidden, c.ffn}, c.weight),
                                      random(generator, {c.ffn, c.hidden}, c.weight)};
  Array eps({1}, "float32");
  eps.floats()[0] = 1e-5f;
  const auto run = [&](const Array& tokens, int64_t first, const Array& keys, const Array& values,
                       Operator* function = codellama_cached_layers) {
    Array positions({1, tokens.shape[0]}, "int32"), out(tokens.shape, "float32");
    for (int64_t i = 0; i < tokens.shape[0]; ++i) positions.ints()[i] = static_cast<int32_t>(c.start + first + i);
    std::vector<Array> arguments = {tokens, positions, cosine, sine, eps};
    arguments.insert(arguments.end(), weights.begin(), weights.end());
    arguments.push_back(keys);
    arguments.push_back(values);
    for (const Array& weight : weights) {
      if (std::string(weight.type) == "int8") arguments.push_back(scales(weight));
    }
    arguments.push_back(out);
    call(function, arguments);
    return out;
  };
  const auto caches = [&] { return Array({c.kv_heads * cached, c.width}, c.cache); };
  const Array keys = caches(), values = caches(), keys_by_one = caches(), values_by_one = caches();
  const Array whole = run(x, 0, keys, values);
  for (int64_t token = 0; token < c.length; ++token) {
    Array one({1, c.hidden}, "float32");
    for (int64_t i = 0; i < c.hidden; ++i) one.floats()[i] = x.floats()[token * c.hidden + i];
    compare(whole, token * c.hidden, run(one, token, keys_by_one, values_by_one), kTolerance, "outputs");
  }
  if (std::string(c.cache) == "float32") compare(keys, 0, keys_by_one, kTolerance, "keys");
  if (codellama_bfloat16()) {
    const Array rounded = run(x, 0, caches(), caches(), codellama_cached_layers_bfloat16);
    compare(rounded, 0, whole, kRoundedTolerance, "outputs in bfloat16");
  }

  const int64_t vocabulary = 1003;
  Array last({2}, "int32"), greedy({2}, "int32"), logits({2, vocabulary}, "float32");
  last.ints()[1] = static_cast<int32_t>(c.length - 1);
  const Array head = random(generator, {vocabulary, c.hidden}, c.weight);
  std::vector<Array> arguments = {whole, last, random(generator, {c.hidden}), head, eps};
  if (std::string(c.weight) == "int8") arguments.push_back(scales(head));
  arguments.push_back(greedy);
  arguments.push_back(logits);
  call(codellama_cached_head, arguments);
}

const Case kCases[] = {
    {4, 2, 6, 17, 33, 5, 0, "float32", "float32"},    {6, 2, 16, 48, 80, 40, 250, "float32", "float32"},
    {3, 3, 10, 21, 19, 37, 3, "float16", "float16"},  {9, 3, 64, 100, 60, 20, 520, "float16", "float32"},
    {8, 1, 18, 64, 300, 100, 0, "float32", "float16"},  {4, 2, 16, 70, 130, 30, 240, "int8", "float16"},
};

void check_all() {
  for (const Case& c : kCases) check(c);
}

}  // namespace

int main(int count, char**) {
  check_all();
  std::thread first(check_all), second(check_all);
  first.join();
  second.join();
  if (count == 1) {  // ThreadSanitizer does not follow forks of a process with threads: an argument leaves them out
    const pid_t child = fork();
    if (child == 0) {
      check(kCases[0]);
      _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status) {
      std::fprintf(stderr, "the forked child failed with status %d\n", status);
      return 1;
    }
  }
  std::printf("ok: %s, %d threads\n", codellama_isa(), codellama_threads());
}
