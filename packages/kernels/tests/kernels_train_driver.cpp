// Exercises the training operators under the sanitizers: `scripts/sanitize.sh` builds and runs it.
//
// No oracle is needed to find a race or a bad address. What is checked is that results are finite and repeat bit by bit,
// from two threads of the process at a time. Every array is allocated with its exact size, so that a read beyond its end
// is seen.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

using Operator = int(int, void**, int*, int64_t**, const char**, void*, void*);
extern "C" Operator codellama_linear, codellama_linear_dx, codellama_linear_dw, codellama_rms_norm,
    codellama_rms_norm_backward, codellama_swiglu, codellama_swiglu_backward, codellama_rotate,
    codellama_rotate_backward, codellama_attention, codellama_attention_backward, codellama_linear_cross_entropy,
    codellama_vocabulary_slice, codellama_vocabulary_slice_backward, codellama_document_starts, codellama_adamw,
    codellama_squared_norm, codellama_scale, codellama_shared_sum;
extern "C" const char* codellama_isa();
extern "C" int codellama_threads();
extern "C" int codellama_channel_offer(int size, uint64_t word);
extern "C" int codellama_channel_in(void* memory, int rank, int size, double seconds);

namespace {

struct Array {
  std::vector<int64_t> shape;
  bool integers;
  std::shared_ptr<float[]> memory;

  explicit Array(std::vector<int64_t> sides, bool whole = false) : shape(std::move(sides)), integers(whole) {
    memory.reset(new float[static_cast<size_t>(size())]());
  }
  int64_t size() const {
    int64_t product = 1;
    for (const int64_t side : shape) product *= side;
    return product;
  }
  float* floats() const { return memory.get(); }
  int32_t* ints() const { return reinterpret_cast<int32_t*>(memory.get()); }
};

void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

// One thread's random inputs, and every output so far.
class Run {
 public:
  explicit Run(uint32_t seed) : generator_(seed) {}

  Array random(std::vector<int64_t> shape) {
    Array array(std::move(shape));
    std::uniform_real_distribution<float> draw(-1.0f, 1.0f);
    for (int64_t i = 0; i < array.size(); ++i) array.floats()[i] = draw(generator_);
    return array;
  }
  Array random_below(std::vector<int64_t> shape, int32_t end) {
    Array array(std::move(shape), true);
    for (int64_t i = 0; i < array.size(); ++i) array.ints()[i] = static_cast<int32_t>(generator_() % end);
    return array;
  }
  static Array scalar(float value) {
    Array array({1});
    array.floats()[0] = value;
    return array;
  }

  // The operator's outputs, of these shapes.
  std::vector<Array> call(Operator function, std::vector<Array> arrays, const std::vector<std::vector<int64_t>>& shapes,
                          bool integers = false) {
    std::vector<Array> outputs;
    for (const auto& shape : shapes) outputs.emplace_back(shape, integers);
    arrays.insert(arrays.end(), outputs.begin(), outputs.end());
    std::vector<void*> data;
    std::vector<int> ndims;
    std::vector<int64_t*> sides;
    std::vector<const char*> types;
    for (Array& array : arrays) {
      data.push_back(array.floats());
      ndims.push_back(static_cast<int>(array.shape.size()));
      sides.push_back(array.shape.data());
      types.push_back(array.integers ? "int32" : "float32");
    }
    if (function(static_cast<int>(data.size()), data.data(), ndims.data(), sides.data(), types.data(), nullptr, nullptr)) {
      fail("an operator refused its arguments");
    }
    for (const Array& output : outputs) {
      for (int64_t i = 0; !integers && i < output.size(); ++i) {
        if (!std::isfinite(output.floats()[i])) fail("an output is not finite");
      }
      results_.push_back(output);
    }
    return outputs;
  }

  bool same(const Run& other) const {
    if (results_.size() != other.results_.size()) return false;
    for (size_t i = 0; i < results_.size(); ++i) {
      const size_t bytes = static_cast<size_t>(results_[i].size()) * sizeof(float);
      if (std::memcmp(results_[i].floats(), other.results_[i].floats(), bytes) != 0) return false;
    }
    return true;
  }

 private:
  std::mt19937 generator_;
  std::vector<Array> results_;
};

void products(Run& r, int64_t tokens, int64_t inputs, int64_t outputs) {
  const Array x = r.random({tokens, inputs}), weight = r.random({outputs, inputs});
  const Array y = r.call(codellama_linear, {x, weight}, {{tokens, outputs}})[0];
  r.call(codellama_linear_dx, {y, weight}, {x.shape});
  r.call(codellama_linear_dw, {y, x}, {weight.shape});
  const Array gain = r.random({inputs});
  const auto normed = r.call(codellama_rms_norm, {x, gain, Run::scalar(1e-5f)}, {x.shape, {tokens}});
  r.call(codellama_rms_norm_backward, {x, gain, normed[1], normed[0]}, {x.shape, {inputs}});
  r.call(codellama_swiglu, {x, normed[0]}, {x.shape});
  r.call(codellama_swiglu_backward, {x, normed[0], x}, {x.shape, x.shape});
  const Array labels = r.random_below({tokens}, static_cast<int32_t>(outputs));
  Array ignored({1}, true);
  ignored.ints()[0] = labels.ints()[0];
  const std::vector<Array> head = {x, weight, labels, ignored, Run::scalar(1e-4f)};
  r.call(codellama_linear_cross_entropy, head, {{1}, {1}});
  r.call(codellama_linear_cross_entropy, head, {{1}, {1}, x.shape, weight.shape});
  const auto slice = r.call(codellama_vocabulary_slice, {x, weight, labels}, {{tokens}, {tokens}, {tokens}});
  const Array factor = r.random({tokens});
  r.call(codellama_vocabulary_slice_backward, {x, weight, labels, slice[0], slice[1], factor, factor},
         {x.shape, weight.shape});
  r.call(codellama_squared_norm, {weight}, {{1}});
  r.call(codellama_scale, {weight, Run::scalar(0.5f)}, {{1}});
  Array second = r.random(weight.shape);
  for (int64_t i = 0; i < second.size(); ++i) second.floats()[i] = std::fabs(second.floats()[i]);
  r.call(codellama_adamw,
         {weight, r.random(weight.shape), second, r.random(weight.shape), Run::scalar(1e-3f), Run::scalar(1),
          Run::scalar(3), r.random({4})},
         {{1}});
}

void attention(Run& r, int64_t batch, int64_t length, int64_t kv_heads, int64_t group, int64_t width) {
  const int64_t heads = kv_heads * group;
  const Array cosine = r.random({1, length, 1, width}), sine = r.random({batch, length, 1, width});
  const Array both = r.random({1, length, 1, width});
  const Array query = r.call(codellama_rotate, {r.random({batch, length, heads, width}), cosine, both},
                             {{batch, length, heads, width}})[0];
  r.call(codellama_rotate_backward, {query, sine, sine}, {query.shape});
  const Array key = r.random({batch, length, kv_heads, width}), value = r.random(key.shape);
  const Array documents = r.random_below({batch, length}, 2);
  const Array first = r.call(codellama_document_starts, {documents}, {documents.shape}, true)[0];
  const std::vector<int64_t> flat = {batch * length, heads * width};
  const auto mixed = r.call(codellama_attention, {query, key, value, first, Run::scalar(0.3f)},
                            {flat, {batch, heads, length}});
  r.call(codellama_attention_backward,
         {query, key, value, first, Run::scalar(0.3f), mixed[0], mixed[1], r.random(flat)},
         {query.shape, key.shape, value.shape});
}

void run_all(Run& r) {
  products(r, 5, 7, 9);
  products(r, 70, 33, 65);
  products(r, 40, 300, 90);
  products(r, 800, 129, 130);  // small results of a long depth, which the team shares out: d_weight,
  products(r, 130, 129, 800);  // and the head's dx
  attention(r, 1, 1, 1, 1, 2);
  attention(r, 2, 37, 2, 3, 6);
  attention(r, 1, 300, 1, 2, 34);
}

// Three threads as the processes of a group, in one mapping: what two of them do to an address is seen as such.
void sums() {
  constexpr int kSize = 3;
  const int file = codellama_channel_offer(kSize, 1);
  struct stat about;
  if (file < 0 || fstat(file, &about) != 0) fail("no memory for the sums");
  const size_t bytes = static_cast<size_t>(about.st_size);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) fail("the memory of the sums can not be mapped");
  std::vector<Run> runs(kSize, Run(4));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kSize; ++rank) {
    const int channel = codellama_channel_in(memory, rank, kSize, 60.0);
    ranks.emplace_back([&runs, rank, channel] {
      for (const int64_t length : {1, 17, 40000, (1 << 16) + 5}) {
        const Array x = Run(static_cast<uint32_t>(rank)).random({length});
        Array labels({2}, true);
        labels.ints()[0] = channel;
        runs[static_cast<size_t>(rank)].call(codellama_shared_sum, {x, labels}, {{length}});
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  if (!runs[0].same(runs[1]) || !runs[0].same(runs[2])) fail("sums differ");
  close(file);
}

}  // namespace

int main() {
  Run first(1), second(1), third(1);
  run_all(first);
  std::thread other([&] { run_all(second); });
  run_all(third);
  other.join();
  if (!first.same(second) || !first.same(third)) fail("results do not repeat");
  sums();
  std::printf("ok: training, %s, %d threads\n", codellama_isa(), codellama_threads());
}
