// SPDX-License-Identifier: Apache-2.0
// quatrain perplexity: how well the model predicts a text, in nats per token and bits per byte.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/perplexity.h"
#include "apps/text_file.h"

namespace quatrain::apps {

double negative_log_likelihood(std::span<const float> logits, std::int32_t target) {
  float largest = logits[0];
  for (const float x : logits) largest = std::max(largest, x);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x - largest));
  return std::log(total) - (logits[static_cast<std::size_t>(target)] - largest);
}

std::vector<double> window_losses(ModelRunner& runner, std::span<const std::int32_t> input,
                                  std::span<const std::int32_t> targets, std::size_t skip) {
  QT_CHECK_EQ(input.size(), targets.size(), "targets of a window");
  const auto vocab = static_cast<std::size_t>(runner.config().vocab_size);
  const auto step = static_cast<std::size_t>(runner.options().max_logit_rows);
  std::vector<double> losses;
  for (std::size_t begin = 0; begin < input.size(); begin += step) {
    const std::size_t count = std::min(step, input.size() - begin);
    const SequenceChunk chunk{.slot = 0,
                              .position = static_cast<std::int64_t>(begin),
                              .tokens = input.subspan(begin, count),
                              .logits = begin + count <= skip ? LogitRows::kNone : LogitRows::kAll};
    const std::span<const float> logits = runner.step({&chunk, 1});
    for (std::size_t i = 0; chunk.logits == LogitRows::kAll && i < count; ++i)
      if (begin + i >= skip)
        losses.push_back(
            negative_log_likelihood(logits.subspan(i * vocab, vocab), targets[begin + i]));
  }
  return losses;
}

namespace {

constexpr std::int64_t kMostRows = 256;  // of a step, all with logits

struct PerplexityFlags {
  ModelFlags model;
  std::string file;
  std::int64_t window = 1024;
  std::int64_t stride = 0;
  std::int64_t max_windows = 0;
  bool json = false;
};

struct Totals {
  double sum = 0;
  double squares = 0;
  std::int64_t tokens = 0;

  double mean() const { return sum / static_cast<double>(tokens); }
  // Standard error of the mean over tokens, as if they were independent.
  double error() const {
    const auto n = static_cast<double>(tokens);
    return n > 1 ? std::sqrt(std::max(0.0, squares / n - mean() * mean()) / (n - 1)) : 0.0;
  }
};

void print_result(const PerplexityFlags& flags, const Totals& t, double bits_per_byte,
                  std::int64_t windows) {
  if (flags.json)
    fmt::print(
        "{{\"nats_per_token\":{:.6f},\"standard_error\":{:.6f},\"perplexity\":{:.6f},"
        "\"bits_per_byte\":{:.6f},\"tokens\":{},\"windows\":{}}}\n",
        t.mean(), t.error(), std::exp(t.mean()), bits_per_byte, t.tokens, windows);
  else
    fmt::print(
        "{:.5f} ± {:.5f} nats per token, perplexity {:.3f}, {:.4f} bits per byte over {} tokens "
        "in {} windows\n",
        t.mean(), t.error(), std::exp(t.mean()), bits_per_byte, t.tokens, windows);
}

void perplexity(PerplexityFlags& flags) {
  if (flags.stride == 0) flags.stride = flags.window;
  if (flags.stride > flags.window)
    fail("--stride {} is above --window {}: tokens would be skipped", flags.stride, flags.window);
  EngineOptions& options = flags.model.options;
  if (options.max_model_len == 0) options.max_model_len = flags.window;
  if (flags.window > options.max_model_len)
    fail("--window {} is above the context of {} tokens", flags.window, options.max_model_len);
  std::int64_t& rows = options.max_num_batched_tokens;
  options.max_logit_rows = rows = rows == 0 ? kMostRows : std::min(rows, kMostRows);
  LoadedEngine engine(flags.model);
  const Tokenizer tokenizer = load_tokenizer(flags.model.model, engine.config());
  const std::vector<std::int32_t> ids = tokenizer.encode(read_text(flags.file), AddedTokens::kText);
  const auto total = static_cast<std::int64_t>(ids.size());

  // A window is BOS and the window − 1 tokens before its targets; with a stride below the window
  // only the last `stride` targets of a window count, so that each has a long context.
  Totals totals;
  std::size_t bytes = 0;
  std::int64_t windows = 0;
  for (std::int64_t begin = 0;
       begin < total && (flags.max_windows == 0 || windows < flags.max_windows);
       begin += flags.stride) {
    const std::int64_t end = std::min(total, begin + flags.stride);
    const std::int64_t first = std::max<std::int64_t>(0, end - flags.window);
    std::vector<std::int32_t> input = {static_cast<std::int32_t>(engine.config().bos_token_id)};
    input.insert(input.end(), ids.begin() + first, ids.begin() + end - 1);
    const std::span<const std::int32_t> targets = std::span(ids).subspan(
        static_cast<std::size_t>(first), static_cast<std::size_t>(end - first));
    for (const double loss :
         window_losses(engine.runner(), input, targets, static_cast<std::size_t>(begin - first))) {
      totals.sum += loss;
      totals.squares += loss * loss;
      ++totals.tokens;
    }
    bytes += tokenizer.decode(targets.subspan(static_cast<std::size_t>(begin - first))).size();
    ++windows;
    fmt::print(stderr, "window {}: {} tokens, {:.4f} nats per token so far\n", windows,
               totals.tokens, totals.mean());
  }
  if (totals.tokens == 0) fail("{}: has no token to predict", flags.file);
  print_result(flags, totals, totals.sum / std::log(2.0) / static_cast<double>(bytes), windows);
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* verb = app.add_subcommand("perplexity", "Loss of the model on a text file");
  flags->model.add_to(*verb);
  verb->add_option("-f,--file", flags->file, "Text file; - reads stdin")->required();
  verb->add_option("-w,--window", flags->window, "Tokens that one prediction may look back on")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 20))
      ->capture_default_str();
  verb->add_option("--stride", flags->stride,
                   "New targets per window; default: the window, so that windows do not overlap")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20));
  verb->add_option("--max-windows", flags->max_windows, "Stop after this many; 0: the whole file");
  verb->add_flag("--json", flags->json, "Print one JSON object");
  verb->callback([flags] { perplexity(*flags); });
}

}  // namespace quatrain::apps
