// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/convert.h"

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "checkpoint/linear_format.h"
#include "checkpoint/safetensors_writer.h"
#include "core/error.h"

namespace quatrain {
namespace {

/// Linears converted together, because they share a scale, or one tensor that is copied.
struct Unit {
  std::vector<LinearSource> linears{};
  const TensorInfo* copy = nullptr;
  bool expert = false;
};

/// Orders names as a reader would: runs of digits compare as numbers, so that layer 10 follows 9.
bool natural_less(std::string_view a, std::string_view b) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto number = [&](std::string_view s, std::size_t i) {
    std::size_t end = i;
    while (end < s.size() && digit(s[end])) ++end;
    return s.substr(i, end - i);
  };
  std::size_t i = 0;
  for (; i < a.size() && i < b.size(); ++i) {
    if (digit(a[i]) && digit(b[i])) {
      const std::string_view x = number(a, i), y = number(b, i);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
      i += x.size() - 1;
    } else if (a[i] != b[i]) {
      return a[i] < b[i];
    }
  }
  return a.size() < b.size();
}

bool is_expert(std::string_view base) { return base.find(".ffn.experts.") != base.npos; }

/// Whether the official release stores this linear in FP8.
bool is_fp8_linear(std::string_view base) {
  constexpr std::array<std::string_view, 12> kSuffixes = {".attn.wq_a",
                                                          ".attn.wq_b",
                                                          ".attn.wkv",
                                                          ".attn.wo_a",
                                                          ".attn.wo_b",
                                                          ".attn.indexer.wq_b",
                                                          ".shared_experts.w1",
                                                          ".shared_experts.w2",
                                                          ".shared_experts.w3",
                                                          ".e_proj",
                                                          ".h_proj",
                                                          ".main_proj"};
  return std::any_of(kSuffixes.begin(), kSuffixes.end(),
                     [&](std::string_view suffix) { return base.ends_with(suffix); });
}

ConvertTarget target_of(std::string_view base, const ConvertOptions& options) {
  if (is_expert(base)) return options.experts;
  return is_fp8_linear(base) ? options.linears : ConvertTarget::kKeep;
}

WeightFormat format_of(ConvertTarget target) {
  return target == ConvertTarget::kNvfp4 ? WeightFormat::kNvfp4 : WeightFormat::kFp8Block;
}

/// "layers.0.ffn.experts.3.w1" from the name of its weight tensor, else nothing.
std::optional<std::string> base_of(std::string_view name) {
  for (const std::string_view suffix : {".weight", ".weight_packed"})
    if (name.ends_with(suffix)) return std::string(name.substr(0, name.size() - suffix.size()));
  return std::nullopt;
}

class Converter {
 public:
  Converter(const Checkpoint& checkpoint, const ConvertOptions& options,
            const ConvertProgress& progress)
      : checkpoint_(checkpoint), options_(options), progress_(progress) {
    plan();
  }

  ConvertReport run(const std::filesystem::path& folder) {
    ShardedWriter writer(folder, specs(), options_.max_shard_bytes);
    writer_ = &writer;
    for (const Unit& unit : units_) {
      const std::int64_t bytes = unit.copy ? copy(*unit.copy) : convert(unit);
      if (progress_)
        progress_(unit.copy ? unit.copy->name : unit.linears.front().name, bytes,
                  report_.bytes_before);
    }
    writer.finish();
    report_.bytes_after = writer.total_bytes();
    report_.shards = writer.shards();
    return report_;
  }

 private:
  void plan() {
    std::vector<const TensorInfo*> tensors;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      tensors.push_back(&tensor);
      report_.bytes_before += tensor.bytes;
    }
    std::sort(tensors.begin(), tensors.end(), [](const TensorInfo* a, const TensorInfo* b) {
      return natural_less(a->name, b->name);
    });
    std::unordered_set<const TensorInfo*> used;
    for (const TensorInfo* tensor : tensors) {
      if (const auto base = base_of(tensor->name); base && !used.contains(tensor))
        plan_linear(*base, used);
    }
    for (const TensorInfo* tensor : tensors)
      if (!used.contains(tensor)) units_.push_back({.copy = tensor});
    std::stable_sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) {
      return natural_less(a.copy ? a.copy->name : a.linears.front().name,
                          b.copy ? b.copy->name : b.linears.front().name);
    });
  }

  /// Adds the unit of `base` if it is to be converted; w3 joins the unit of w1.
  void plan_linear(const std::string& base, std::unordered_set<const TensorInfo*>& used) {
    Unit unit{.expert = is_expert(base)};
    add_linear(base, unit, used);
    if (unit.linears.empty()) return;
    if (base.ends_with(".w1")) {
      const std::string up = base.substr(0, base.size() - 1) + "3";
      if (checkpoint_.has_linear(up)) add_linear(up, unit, used);
    }
    units_.push_back(std::move(unit));
  }

  void add_linear(const std::string& base, Unit& unit,
                  std::unordered_set<const TensorInfo*>& used) {
    const ConvertTarget target = target_of(base, options_);
    if (target == ConvertTarget::kKeep) return;
    const LinearShape shape = stored_shape(checkpoint_, base);
    LinearSource source = checkpoint_.linear(base, shape.rows, shape.cols);
    if (source.format == format_of(target)) return;
    if (target == ConvertTarget::kNvfp4 && source.cols % kNvfp4Block != 0)
      fail("{}: NVFP4 needs columns in multiples of {}, found {}",
           checkpoint_.where(*source.weight), kNvfp4Block, source.cols);
    used.insert(source.tensors.begin(), source.tensors.end());
    unit.linears.push_back(std::move(source));
  }

  std::vector<TensorSpec> specs() const {
    std::vector<TensorSpec> out;
    for (const Unit& unit : units_) {
      if (unit.copy) out.push_back({unit.copy->name, unit.copy->dtype, unit.copy->shape});
      for (const LinearSource& linear : unit.linears) {
        const std::int64_t rows = linear.rows, cols = linear.cols;
        if (target_of(linear.name, options_) == ConvertTarget::kNvfp4) {
          out.push_back({linear.name + ".weight", DType::kU8, {rows, cols / 2}});
          out.push_back(
              {linear.name + ".weight_scale", DType::kF8E4M3, {rows, cols / kNvfp4Block}});
          out.push_back({linear.name + ".weight_scale_2", DType::kF32, {}});
        } else {
          out.push_back({linear.name + ".weight", DType::kF8E4M3, {rows, cols}});
          out.push_back({linear.name + ".scale",
                         DType::kF8E8M0,
                         {(rows + kFp8Block - 1) / kFp8Block, (cols + kFp8Block - 1) / kFp8Block}});
        }
      }
    }
    return out;
  }

  std::int64_t copy(const TensorInfo& tensor) {
    std::vector<std::byte> data(static_cast<std::size_t>(tensor.bytes));
    checkpoint_.read(tensor, data);
    writer_->write(tensor.name, data);
    ++report_.copied_tensors;
    return tensor.bytes;
  }

  std::int64_t convert(const Unit& unit) {
    std::vector<LoadedLinear> sources;
    std::int64_t bytes = 0;
    for (const LinearSource& linear : unit.linears) {
      sources.push_back(checkpoint_.load(linear));
      for (const TensorInfo* tensor : linear.tensors) bytes += tensor->bytes;
    }
    const bool nvfp4 = target_of(unit.linears.front().name, options_) == ConvertTarget::kNvfp4;
    const bool cast = nvfp4 && options_.cast_mxfp4 &&
                      std::all_of(sources.begin(), sources.end(), [](const LoadedLinear& source) {
                        return source.matrix.format == WeightFormat::kMxfp4;
                      });
    int k_max = -127;
    float amax = 0.0f;
    for (const LoadedLinear& source : sources) {
      if (cast)
        k_max = std::max(k_max, max_exponent(source.matrix));
      else if (nvfp4)
        amax = std::max(amax, max_magnitude(source.matrix));
    }
    for (const LoadedLinear& source : sources) {
      LoadedLinear out = cast    ? cast_linear(source.matrix, k_max)
                         : nvfp4 ? quantize_nvfp4(source.matrix, nvfp4_global_scale(amax))
                                 : quantize_fp8_block(source.matrix);
      (unit.expert ? report_.experts_error : report_.linears_error) +=
          squared_error(out.matrix, source.matrix);
      write(source.name, out);
      ++report_.converted_linears;
    }
    return bytes;
  }

  LoadedLinear cast_linear(const QuantMatrix& source, int k_max) {
    CastResult result = cast_mxfp4_to_nvfp4(source, k_max);
    report_.cast_blocks += result.blocks;
    report_.inexact_blocks += result.inexact_blocks;
    return std::move(result.linear);
  }

  void write(const std::string& name, LoadedLinear& linear) {
    writer_->write(name + ".weight", linear.values());
    if (linear.matrix.format == WeightFormat::kNvfp4) {
      writer_->write(name + ".weight_scale", linear.scales());
      writer_->write(name + ".weight_scale_2",
                     std::as_bytes(std::span(&linear.matrix.global_scale, 1)));
    } else {
      writer_->write(name + ".scale", linear.scales());
    }
  }

  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  const ConvertProgress& progress_;
  std::vector<Unit> units_;
  ShardedWriter* writer_ = nullptr;
  ConvertReport report_;
};

}  // namespace

ConvertReport convert_tensors(const Checkpoint& checkpoint, const std::filesystem::path& folder,
                              const ConvertOptions& options, const ConvertProgress& progress) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
      fail("{}: already holds a checkpoint ({})", folder.string(), name);
  }
  return Converter(checkpoint, options, progress).run(folder);
}

}  // namespace quatrain
