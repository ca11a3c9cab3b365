// The operator of all decoder layers over new tokens and their key/value caches. Shapes: pass.h.
#include "operator.h"
#include "pass.h"
#include "pool.h"

namespace codellama {
namespace {

enum Argument {
  kX,          // [T, H]
  kPositions,  // int32 [B, S]
  kCosine,     // [P, D]
  kSine,       // [P, D]
  kEps,        // [1]
  kLayers      // the layers' arguments, one layer after the other; and last the output [T, H]
};

enum LayerArgument {
  kAttentionNorm,  // [H]
  kWq,             // [N * D, H]; the matrices are float32, float16 or int8
  kWk,             // [K * D, H]
  kWv,             // [K * D, H]
  kWo,             // [H, N * D]
  kFfnNorm,        // [H]
  kW1,             // [F, H]
  kW2,             // [H, F]
  kW3,             // [F, H]
  kKeys,           // [B * K * L, D], float32 or float16, written
  kValues,         // the same
  kScales          // of the matrices, in their order, where they are int8
};

constexpr LayerArgument kMatrices[] = {kWq, kWk, kWv, kWo, kW1, kW2, kW3};
constexpr int kMatrixCount = sizeof kMatrices / sizeof *kMatrices;

// Where the arguments of each layer are.
struct Layout {
  explicit Layout(const Arguments& a)
      : quantized(a.count() > kLayers + kWq && a.is(kLayers + kWq, "int8")),
        each(quantized ? kScales + kMatrixCount : +kScales),
        layers((a.count() - 1 - kLayers) / each) {}

  int first(int layer) const { return kLayers + layer * each; }

  bool quantized;
  int each, layers;
};

PassSizes sizes_of(const Arguments& a) {
  const int first = kLayers;
  PassSizes s{};
  s.batch = a.side(kPositions, 0);
  s.length = a.side(kPositions, 1);
  s.hidden = a.side(kX, 1);
  s.width = a.side(kCosine, 1);
  s.heads = a.side(first + kWq, 0) / s.width;
  s.kv_heads = a.side(first + kWk, 0) / s.width;
  s.ffn = a.side(first + kW1, 0);
  s.cached = a.side(first + kKeys, 0) / (s.batch * s.kv_heads);
  s.cache = a.type(first + kKeys);
  s.eps = *a.data<float>(kEps);
  return s;
}

LayerWeights weights_of(const Arguments& a, const Layout& layout, int layer) {
  const int first = layout.first(layer);
  Matrix m[kMatrixCount];
  for (int i = 0; i < kMatrixCount; ++i) {
    m[i] = a.matrix(first + kMatrices[i], layout.quantized ? a.data<Half>(first + kScales + i) : nullptr);
  }
  return {a.data<float>(first + kAttentionNorm), m[0], m[1], m[2], m[3], a.data<float>(first + kFfnNorm), m[4], m[5],
          m[6], a.data<void>(first + kKeys), a.data<void>(first + kValues)};
}

bool is_plausible_layer(const Arguments& a, const Layout& layout, int layer, const PassSizes& s) {
  const int first = layout.first(layer);
  const int64_t query = s.heads * s.width, key = s.kv_heads * s.width, cache = s.batch * s.kv_heads * s.cached;
  const int64_t shapes[kMatrixCount][2] = {{query, s.hidden}, {key, s.hidden}, {key, s.hidden}, {s.hidden, query},
                                           {s.ffn, s.hidden}, {s.hidden, s.ffn}, {s.ffn, s.hidden}};
  for (int i = 0; i < kMatrixCount; ++i) {
    const int index = first + kMatrices[i];
    const auto& [rows, columns] = shapes[i];
    if (!a.is_shape(index, rows, columns)) return false;
    if (layout.quantized ? !a.is(index, "int8") || !a.are_scales(first + kScales + i, rows, columns) : !a.is_real(index)) {
      return false;
    }
  }
  for (const int index : {first + kAttentionNorm, first + kFfnNorm}) {
    if (!a.is(index, "float32") || a.elements(index) != s.hidden) return false;
  }
  for (const int index : {first + kKeys, first + kValues}) {
    if (!a.is_real(index) || a.type(index) != s.cache || !a.is_shape(index, cache, s.width)) return false;
  }
  return true;
}

bool is_plausible(const Arguments& a) {
  const Layout layout(a);
  if (layout.layers < 1 || a.count() != layout.first(layout.layers) + 1) return false;
  const int out = a.count() - 1;
  for (const int index : {+kX, +kCosine, +kSine, +kEps, out}) {
    if (!a.is(index, "float32")) return false;
  }
  const int64_t tokens = a.elements(kPositions), hidden = a.side(kX, 1), width = a.side(kCosine, 1);
  const int64_t query = a.side(kLayers + kWq, 0), key = a.side(kLayers + kWk, 0);
  if (!a.is(kPositions, "int32") || tokens < 1 || hidden < 1 || width < 2 || width % 2 || key < 1 || key % width ||
      query % key || a.side(kLayers + kW1, 0) < 1 || a.elements(kEps) != 1) {
    return false;
  }
  const PassSizes s = sizes_of(a);
  for (int layer = 0; layer < layout.layers; ++layer) {
    if (!is_plausible_layer(a, layout, layer, s)) return false;
  }
  return a.is_shape(kX, tokens, hidden) && a.is_shape(out, tokens, hidden) &&
         a.is_shape(kSine, a.side(kCosine, 0), width) && s.cached <= a.side(kCosine, 0) + 1;
}

void run(const Arguments& a, Compute compute) {
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  const Layout layout(a);
  Pass pass(pool, sizes_of(a), compute, a.data<float>(kX), a.data<int32_t>(kPositions), a.data<float>(kCosine),
            a.data<float>(kSine), a.data<float>(a.count() - 1));
  for (int layer = 0; layer < layout.layers; ++layer) pass.run(weights_of(a, layout, layer));
  pass.finish();
}

}  // namespace
}  // namespace codellama

using namespace codellama;

CODELLAMA_OPERATOR(codellama_cached_layers) {
  return serve(is_plausible(a), [&] { run(a, Compute::kFloat32); });
}

CODELLAMA_OPERATOR(codellama_cached_layers_bfloat16) {
  return serve(is_plausible(a) && bfloat16_gemm_kernels(), [&] { run(a, Compute::kBfloat16); });
}
