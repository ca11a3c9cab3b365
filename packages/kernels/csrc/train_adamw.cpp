// The optimizer's update in place, and the squared norm of a gradient.
#include <cmath>
#include <vector>

#include "operator.h"
#include "pool.h"
#include "train.h"

namespace codellama {
namespace {

constexpr int64_t kFloats = 16384;  // taken at a time; the order of sums follows from it alone

}  // namespace
}  // namespace codellama

using namespace codellama;

// parameter, first, second: written; gradient, all of one size; learning_rate, scale, step [1];
// constants [4]: beta1, beta2, eps, weight decay -> step [1], for what must come after the update
CODELLAMA_OPERATOR(codellama_adamw) {
  const int64_t size = a.elements(0);
  bool plausible = are_float32(a, 9) && a.elements(7) == 4;
  for (int index = 1; plausible && index < 4; ++index) plausible = a.elements(index) == size;
  for (const int index : {4, 5, 6, 8}) plausible = plausible && a.elements(index) == 1;
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    const float* constants = a.data<float>(7);
    const float step = *a.data<float>(6);
    AdamwScalars s{};
    s.rate = *a.data<float>(4);
    s.scale = *a.data<float>(5);
    s.beta1 = constants[0];
    s.beta2 = constants[1];
    s.eps = constants[2];
    s.decay = constants[3];
    s.correction1 = static_cast<float>(1.0 - std::pow(static_cast<double>(s.beta1), step));
    s.correction2 = static_cast<float>(1.0 - std::pow(static_cast<double>(s.beta2), step));
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    pool.run([&](Member& member) {
      member.share(0, size, kFloats, [&](int64_t begin, int64_t end) {
        k.adamw(a.data<float>(0) + begin, a.data<float>(1) + begin, a.data<float>(2) + begin, a.data<float>(3) + begin,
                end - begin, s);
      });
    });
    *a.data<float>(8) = step;
  });
}

// gradient -> sum of squares [1]
CODELLAMA_OPERATOR(codellama_squared_norm) {
  const int64_t size = a.elements(0);
  return serve(are_float32(a, 2) && a.elements(1) == 1, [&] {
    const TrainKernels& k = train_kernels();
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    std::vector<float> parts(static_cast<size_t>((size + kFloats - 1) / kFloats));
    pool.run([&](Member& member) {
      member.share(0, size, kFloats, [&](int64_t begin, int64_t end) {
        const float* from = a.data<float>(0) + begin;
        parts[static_cast<size_t>(begin / kFloats)] = k.dot(from, from, end - begin);
      });
    });
    double total = 0;
    for (const float part : parts) total += part;
    *a.data<float>(1) = static_cast<float>(total);
  });
}
