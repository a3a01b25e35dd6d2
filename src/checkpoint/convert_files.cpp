// SPDX-License-Identifier: Apache-2.0
// The files beside the tensors of a converted checkpoint: configuration and tokenizer.
#include <simdjson.h>

#include <array>

#include "checkpoint/convert.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace quatrain {
namespace {

constexpr std::int64_t kMaxSideFile = 256 << 20;
constexpr std::array<std::string_view, 4> kCopied = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"};
constexpr std::string_view kProducer = R"({"name": "quatrain", "version": "0.1.0"})";

/// What the quantised parts are, as the published checkpoints say it.
struct Description {
  std::string algorithm;
  std::string layers;
  std::string ignored;
};

Description describe(const ConvertOptions& options) {
  constexpr std::string_view kNvfp4 = R"({"quant_algo": "NVFP4", "group_size": 16})";
  const bool experts = options.experts == ConvertTarget::kNvfp4;
  const bool linears = options.linears == ConvertTarget::kNvfp4;
  Description out;
  out.algorithm = experts && linears ? "NVFP4" : "MIXED_PRECISION";
  if (experts) out.layers = fmt::format("\"layers.*.ffn.experts\": {}", kNvfp4);
  if (linears)
    out.layers += fmt::format("{}\"layers.*.attn\": {}, \"layers.*.ffn.shared_experts\": {}",
                              experts ? ", " : "", kNvfp4, kNvfp4);
  out.ignored = linears ? R"("head", "*.gate", "*.compressor.*")"
                        : R"("*.attn.*", "*.ffn.shared_experts.*", "head")";
  return out;
}

std::string quantization_config(const ConvertOptions& options, bool fp8_linears) {
  const Description d = describe(options);
  // Loaders choose the FP8 path for the remaining linears by quant_method.
  const std::string_view fp8 =
      R"("quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0", "weight_block_size": [128, 128])";
  std::string out = "{";
  out += fp8_linears ? fp8 : std::string_view(R"("quant_method": "modelopt")");
  if (!d.layers.empty()) {
    out += fmt::format(R"(, "quant_algo": "{}")", d.algorithm);
    if (options.experts == ConvertTarget::kNvfp4) out += R"(, "moe_quant_algo": "NVFP4")";
    out += R"(, "group_size": 16, "kv_cache_quant_algo": null)";
    out += fmt::format(R"(, "producer": {})", kProducer);
    out +=
        R"(, "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": false}, "targets": ["Linear"]}})";
    out += fmt::format(R"(, "quantized_layers": {{{}}}, "ignore": [{}])", d.layers, d.ignored);
  }
  return out + "}";
}

std::string hf_quant_config(const ConvertOptions& options) {
  const Description d = describe(options);
  return fmt::format(
      R"({{"producer": {}, "quantization": {{"quant_algo": "{}", "kv_cache_quant_algo": null, "group_size": 16, "quantized_layers": {{{}}}, "exclude_modules": [{}]}}}})"
      "\n",
      kProducer, d.algorithm, d.layers, d.ignored);
}

/// Whether any linear of the written checkpoint is FP8: its scale tensor says so.
bool has_fp8(const Checkpoint& checkpoint) {
  for (const TensorInfo& tensor : checkpoint.tensors())
    if (tensor.dtype == DType::kF8E4M3 && tensor.name.ends_with(".weight")) return true;
  return false;
}

}  // namespace

std::string converted_config(std::string_view config, const ConvertOptions& options,
                             bool fp8_linears, std::string_view where) {
  simdjson::dom::parser parser;
  simdjson::dom::object object;
  if (const auto error = parser.parse(config.data(), config.size()).get(object))
    fail("{}: not a JSON object: {}", where, simdjson::error_message(error));
  std::string out = "{\n";
  for (const auto field : object)
    if (field.key != "quantization_config")
      out += fmt::format("  {}: {},\n", json_quote(field.key), simdjson::minify(field.value));
  return out + fmt::format("  \"quantization_config\": {}\n}}\n",
                           quantization_config(options, fp8_linears));
}

ConvertReport convert_checkpoint(const std::filesystem::path& source,
                                 const std::filesystem::path& folder, const ConvertOptions& options,
                                 const ConvertProgress& progress) {
  const std::filesystem::path config = source / "config.json";
  const std::string config_text = read_text_file(config, kMaxSideFile);
  const Checkpoint checkpoint = Checkpoint::open(source);
  std::filesystem::create_directories(folder);
  const ConvertReport report = convert_tensors(checkpoint, folder, options, progress);
  const bool fp8 = has_fp8(Checkpoint::open(folder));
  write_text_file(folder / "config.json",
                  converted_config(config_text, options, fp8, config.string()));
  if (options.experts == ConvertTarget::kNvfp4 || options.linears == ConvertTarget::kNvfp4)
    write_text_file(folder / "hf_quant_config.json", hf_quant_config(options));
  for (const std::string_view name : kCopied)
    if (std::filesystem::exists(source / name) && !std::filesystem::exists(folder / name))
      write_text_file(folder / name, read_text_file(source / name, kMaxSideFile));
  return report;
}

}  // namespace quatrain
