// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint_check.h"

#include <cmath>
#include <unordered_set>
#include <vector>

#include "core/error.h"
#include "model/weight_table.h"

namespace quatrain {
namespace {

class Checker {
 public:
  Checker(const ModelSource& source, const std::function<void(std::int64_t)>* progress)
      : source_(source), checkpoint_(source.checkpoint), progress_(progress) {}

  CheckpointCheck run() {
    for_each_weight(source_.config, has_mtp(), [&](const WeightEntry& entry) {
      if (entry.is_linear())
        linear(entry);
      else
        plain(entry);
    });
    refuse_unused();
    out_.tensors = std::ssize(checkpoint_.tensors());
    out_.files = std::ssize(checkpoint_.files());
    return out_;
  }

 private:
  // Blocks for speculation may be left out; other drafters' tensors are nobody's business here.
  bool has_mtp() const {
    return source_.config.num_mtp_layers > 0 && checkpoint_.find("mtp.0.enorm.weight") != nullptr;
  }

  void seen(const TensorInfo& tensor) {
    if (used_.insert(&tensor).second && progress_ != nullptr) (*progress_)(tensor.bytes);
  }

  void linear(const WeightEntry& entry) {
    const LinearSource source = checkpoint_.linear(entry.name, entry.shape[0], entry.shape[1]);
    if (progress_ != nullptr) check_values(source);
    for (const TensorInfo* tensor : source.tensors) seen(*tensor);
    const LinearScalars scalars = checkpoint_.scalars(source);
    if (entry.kind == WeightKind::kExpert) expert(entry, scalars);
  }

  // w1, w3, w2 of an expert come in this order.
  void expert(const WeightEntry& entry, const LinearScalars& scalars) {
    ++out_.expert_linears;
    if (entry.name.ends_with(".w1")) gate_ = scalars;
    if (entry.name.ends_with(".w3") && scalars != gate_) ++out_.unequal_pairs;
  }

  void plain(const WeightEntry& entry) {
    const TensorInfo* tensor = checkpoint_.find(entry.name);
    if (tensor == nullptr)
      fail("{}: tensor '{}' is missing", checkpoint_.path().string(), entry.name);
    if (tensor->shape != entry.shape)
      fail("{}: expected shape [{}], found [{}]", checkpoint_.where(*tensor),
           fmt::join(entry.shape, ", "), fmt::join(tensor->shape, ", "));
    if (progress_ != nullptr) read_plain(entry, *tensor);
    seen(*tensor);
  }

  void read_plain(const WeightEntry& entry, const TensorInfo& tensor) {
    if (entry.kind == WeightKind::kHashTable) {
      for (const std::int64_t id : checkpoint_.read_ints(entry.name, entry.shape))
        if (id < 0 || id >= source_.config.num_experts)
          fail("{}: expert {} is outside [0, {})", checkpoint_.where(tensor), id,
               source_.config.num_experts);
      return;
    }
    const std::vector<float> values = checkpoint_.read_f32(entry.name, entry.shape);
    refuse_non_finite(values.data(), std::ssize(values), tensor);
  }

  // Scales are checked by load(); decoding a row finds NaN among E4M3 and wider values.
  void check_values(const LinearSource& source) {
    const LoadedLinear loaded = checkpoint_.load(source);
    const QuantMatrix& m = loaded.matrix;
    if (m.format == WeightFormat::kNvfp4 || m.format == WeightFormat::kMxfp4) return;
    std::vector<float> row(static_cast<std::size_t>(m.cols));
    for (std::int64_t r = 0; r < m.rows; ++r) {
      decode_row(m, r, row.data());
      refuse_non_finite(row.data(), m.cols, *source.weight);
    }
  }

  void refuse_non_finite(const float* values, std::int64_t count, const TensorInfo& tensor) {
    for (std::int64_t i = 0; i < count; ++i)
      if (!std::isfinite(values[i])) fail("{}: holds {}", checkpoint_.where(tensor), values[i]);
  }

  void refuse_unused() {
    for (const TensorInfo& tensor : checkpoint_.tensors())
      if (!used_.contains(&tensor) && !tensor.name.starts_with("mtp."))
        fail("{} is not part of the architecture that config.json describes",
             checkpoint_.where(tensor));
  }

  const ModelSource& source_;
  const Checkpoint& checkpoint_;
  const std::function<void(std::int64_t)>* progress_;
  LinearScalars gate_;  // of the last w1
  std::unordered_set<const TensorInfo*> used_;
  CheckpointCheck out_;
};

}  // namespace

CheckpointCheck check_checkpoint_headers(const ModelSource& source) {
  return Checker(source, nullptr).run();
}

CheckpointCheck check_checkpoint_data(const ModelSource& source,
                                      const std::function<void(std::int64_t)>& progress) {
  return Checker(source, &progress).run();
}

}  // namespace quatrain
