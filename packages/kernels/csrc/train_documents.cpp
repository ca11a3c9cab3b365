// Where the document of each token begins, in packed rows.
#include "operator.h"

using namespace codellama;

// document_ids int32 [B, S] -> int32 [B, S]: the position in its row at which each token's run of equal ids begins
CODELLAMA_OPERATOR(codellama_document_starts) {
  const int64_t rows = a.side(0, 0), length = a.side(0, 1);
  const bool plausible = a.count() == 2 && a.is(0, "int32") && a.is(1, "int32") && a.is_shape(0, rows, length) &&
                         a.is_shape(1, rows, length);
  return serve(plausible, [&] {
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t* ids = a.data<int32_t>(0) + row * length;
      int32_t* starts = a.data<int32_t>(1) + row * length;
      for (int64_t i = 0; i < length; ++i) {
        starts[i] = i > 0 && ids[i] == ids[i - 1] ? starts[i - 1] : static_cast<int32_t>(i);
      }
    }
  });
}
