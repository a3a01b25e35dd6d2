// SPDX-License-Identifier: Apache-2.0
// quatrain logits: the numbers behind the text, for comparison with other implementations.
#include <simdjson.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/text_file.h"
#include "checkpoint/safetensors_writer.h"
#include "ops/tap_ops.h"

namespace quatrain::apps {
namespace {

constexpr std::int64_t kMostRows = 512;  // of a step where nobody says how many, all with logits

struct LogitsFlags {
  ModelFlags model;
  std::string ids;
  std::string out;
  std::vector<std::int64_t> chunks;
  bool streams = false;
  bool mtp = false;
};

std::vector<std::int32_t> read_ids(const std::string& path) {
  const simdjson::padded_string text(read_text(path));
  simdjson::dom::parser parser;
  simdjson::dom::array array;
  if (const auto error = parser.parse(text).get_array().get(array))
    fail("{}: expected a JSON array of token ids: {}", path, simdjson::error_message(error));
  std::vector<std::int32_t> ids;
  for (const simdjson::dom::element element : array) {
    std::int64_t id = 0;
    if (element.get_int64().get(id) || id < 0 || id > INT32_MAX)
      fail("{}: element {} is not a token id", path, ids.size());
    ids.push_back(static_cast<std::int32_t>(id));
  }
  if (ids.empty()) fail("{}: holds no token ids", path);
  return ids;
}

// Everything that the output file will hold, in order.
struct Results {
  struct Item {
    TensorSpec spec;
    const void* data;
  };
  std::vector<Item> items;

  template <class T>
  void add(std::string name, DType dtype, std::vector<std::int64_t> shape,
           const std::vector<T>& data) {
    items.push_back({{std::move(name), dtype, std::move(shape)}, data.data()});
  }

  void write(const std::string& path) const {
    std::vector<TensorSpec> specs;
    for (const Item& item : items) specs.push_back(item.spec);
    SafetensorsFile file(path, specs);
    for (const Item& item : items)
      file.write(item.spec.name, {static_cast<const std::byte*>(item.data),
                                  static_cast<std::size_t>(item.spec.bytes())});
    file.commit();
  }
};

struct Run {
  std::vector<float> logits;      // [T, V]
  std::vector<float> mtp_logits;  // [T − 1, V]
};

// Runs the tokens in chunks of the given lengths, the last of which repeats.
Run run_chunks(ModelRunner& runner, std::span<const std::int32_t> ids,
               std::span<const std::int64_t> chunks, bool mtp) {
  Run run;
  for (std::size_t begin = 0, c = 0; begin < ids.size(); ++c) {
    const auto wanted = static_cast<std::size_t>(chunks[std::min(c, chunks.size() - 1)]);
    const std::size_t count = std::min(wanted, ids.size() - begin);
    const SequenceChunk chunk{.slot = 0,
                              .position = static_cast<std::int64_t>(begin),
                              .tokens = ids.subspan(begin, count),
                              .logits = LogitRows::kAll};
    const auto logits = runner.step({&chunk, 1});
    run.logits.insert(run.logits.end(), logits.begin(), logits.end());
    if (mtp) {
      // The last token of all has no successor: its row runs on a stand-in and is dropped.
      std::vector<std::int32_t> next(
          ids.begin() + static_cast<std::ptrdiff_t>(begin) + 1,
          ids.begin() + static_cast<std::ptrdiff_t>(std::min(begin + count + 1, ids.size())));
      next.resize(count, 0);
      const auto rows = runner.step_mtp(0, next);
      run.mtp_logits.insert(run.mtp_logits.end(), rows.begin(), rows.end());
    }
    begin += count;
  }
  if (mtp) run.mtp_logits.resize((ids.size() - 1) * run.logits.size() / ids.size());
  return run;
}

void logits(LogitsFlags& flags) {
  const std::vector<std::int32_t> ids = read_ids(flags.ids);
  const auto total = static_cast<std::int64_t>(ids.size());
  EngineOptions& options = flags.model.options;
  const std::int64_t rows = options.max_num_batched_tokens;
  if (flags.chunks.empty()) flags.chunks = {std::min(rows == 0 ? kMostRows : rows, total)};
  options.max_num_batched_tokens = options.max_logit_rows =
      *std::max_element(flags.chunks.begin(), flags.chunks.end());
  if (options.max_model_len == 0) options.max_model_len = total;
  options.mtp = flags.mtp;

  LoadedEngine engine(flags.model);
  TapOps tap(engine.ops());
  engine.runner().observe(flags.streams ? &tap : nullptr);
  const Run run = run_chunks(engine.runner(), ids, flags.chunks, flags.mtp);

  const V4Config& config = engine.config();
  Results results;
  results.add("logits", DType::kF32, {total, config.vocab_size}, run.logits);
  if (flags.mtp)
    results.add("mtp_logits", DType::kF32, {total - 1, config.vocab_size}, run.mtp_logits);
  for (std::int64_t l = 0; flags.streams && l < config.num_layers; ++l) {
    results.add(fmt::format("streams.{}", l), DType::kF32,
                {total, config.hc_mult, config.hidden_size}, tap.streams[l]);
    results.add(fmt::format("experts.{}", l), DType::kI32, {total, config.experts_per_token},
                tap.experts[l]);
  }
  results.write(flags.out);
  fmt::print(stderr, "{}: logits of {} tokens\n", flags.out, total);
}

}  // namespace

void add_logits(CLI::App& app) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* verb =
      app.add_subcommand("logits", "Write the logits of given tokens to a safetensors file");
  flags->model.add_to(*verb);
  flags->model.add_synthetic_to(*verb);
  verb->add_option("--ids", flags->ids, "JSON array of token ids; - reads stdin")->required();
  verb->add_option("-o,--out", flags->out, "Output file")->required();
  verb->add_option("--chunks", flags->chunks,
                   "Lengths of the steps, such as 7,61,1; the last one repeats")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  verb->add_flag("--streams", flags->streams,
                 "Also streams.L [T, hc, D] after each layer and experts.L [T, k]");
  verb->add_flag("--mtp", flags->mtp, "Also mtp_logits [T - 1, V] of the MTP block");
  verb->callback([flags] { logits(*flags); });
}

}  // namespace quatrain::apps
