// SPDX-License-Identifier: Apache-2.0
// What CompareOps does with downloaded tensors: widens them to FP32 and measures distances.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace quatrain {

inline std::int64_t row_width(const Tensor& t) { return t.dim(t.rank() - 1); }

/// The bytes of `t` as floats; throws on a type without numbers of its own.
std::vector<float> floats_of(const std::vector<std::byte>& bytes, const Tensor& t);

/// Rows of a packed cache as `columns` floats each; they are latents or index keys by their width.
std::vector<float> unpacked(const std::vector<std::byte>& bytes, const Tensor& t,
                            std::int64_t columns);

std::vector<std::int32_t> ints_of(const std::vector<std::byte>& bytes);

/// Relative distance ‖subject − reference‖ / ‖reference‖, accumulated over parts.
class Distance {
 public:
  void add(const float* subject, const float* reference, std::int64_t count);
  /// Infinite if a value is not finite, or any differs where the reference is all zeros.
  double value() const;

 private:
  double error_ = 0, norm_ = 0;
  bool finite_ = true;
};

/// Share of the subject's ids that are not in the same row of the reference; −1 stands for none.
double ids_difference(std::vector<std::int32_t> subject, std::vector<std::int32_t> reference,
                      std::int64_t width);

/// Rows of ids, each `width` of them; −1 stands for none.
struct IdRows {
  std::vector<std::int32_t> ids;
  std::int64_t width = 0;
};

/// The same for a choice of the best by scores, of which the last places may go either way: the
/// share of the subject's ids that are not in `likely`, a few more than chosen, or of the ids in
/// `certain`, a few less, that the subject has not.
double choice_difference(IdRows subject, IdRows certain, IdRows likely);

}  // namespace quatrain
