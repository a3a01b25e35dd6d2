// SPDX-License-Identifier: Apache-2.0
#include "apps/step_bench.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "core/random.h"

namespace quatrain::apps {
namespace {

constexpr std::uint64_t kSeed = 20260424;

// Each sequence reads the made-up tokens from a place of its own, so that sequences differ: equal
// ones would choose equal experts.
constexpr std::int64_t kShift = 31;

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string kind_of_layer(const V4Config& config, std::int64_t layer) {
  if (layer < 0) return "model";
  const std::int64_t ratio = config.ratio(layer);
  return ratio == 0 ? "window" : ratio == 4 ? "CSA" : "HCA";
}

// Lines by kind of layer, in the order in which kinds and operations first appear in a step.
std::vector<BreakdownLine> group(const V4Config& config, const std::vector<TimedOp>& operations,
                                 const std::vector<std::vector<double>>& samples) {
  // An operation that stands in both halves of a layer is told apart by its half.
  std::map<std::string, std::set<std::string>> parts;
  for (const TimedOp& op : operations)
    if (op.layer >= 0) parts[op.name].insert(op.part);
  std::vector<BreakdownLine> lines;
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const TimedOp& op = operations[i];
    const std::string where = kind_of_layer(config, op.layer);
    const bool in_both = op.layer >= 0 && parts[op.name].size() > 1;
    const std::string& detail = op.weight.empty() && in_both ? op.part : op.weight;
    const std::string name = detail.empty() ? op.name : fmt::format("{} {}", op.name, detail);
    auto line = std::ranges::find_if(
        lines, [&](const BreakdownLine& l) { return l.where == where && l.operation == name; });
    if (line == lines.end()) {
      line = lines.insert(lines.end(), BreakdownLine());
      line->where = where;
      line->operation = name;
    }
    ++line->calls;
    line->microseconds += spread_of(samples[i]).median;
    line->cost += op.cost;
  }
  std::ranges::stable_sort(lines, {}, [](const BreakdownLine& l) {
    return std::string_view("model window CSA HCA").find(l.where);
  });
  return lines;
}

}  // namespace

StepBench::StepBench(ModelRunner& runner, Ops& ops) : runner_(runner), ops_(ops) {
  const V4Config& config = runner.config();
  const EngineOptions& options = runner.options();
  tokens_.resize(static_cast<std::size_t>(options.max_model_len + options.max_num_seqs * kShift));
  for (std::size_t i = 0; i < tokens_.size(); ++i)
    tokens_[i] = static_cast<std::int32_t>(random_word(kSeed, static_cast<std::int64_t>(i)) %
                                           static_cast<std::uint64_t>(config.vocab_size));
  runner.cache().randomise(ops, kSeed);
  for (std::int64_t slot = 0; slot < options.max_num_seqs; ++slot)
    runner.set_sampling(slot, {.temperature = 0}, {});
}

std::vector<SequenceChunk> StepBench::chunks(std::int64_t position, std::int64_t count,
                                             std::int64_t batch, LogitRows logits) const {
  std::vector<SequenceChunk> out;
  for (std::int64_t slot = 0; slot < batch; ++slot)
    out.push_back(
        {.slot = slot,
         .position = position,
         .tokens = std::span(tokens_).subspan(static_cast<std::size_t>(position + slot * kShift),
                                              static_cast<std::size_t>(count)),
         .logits = logits});
  return out;
}

double StepBench::run_prompt(std::int64_t prompt, std::int64_t depth, std::int64_t batch) {
  const std::int64_t room = runner_.options().max_num_batched_tokens / batch;
  return seconds_of([&] {
    for (std::int64_t done = 0; done < prompt;) {
      const std::int64_t n = std::min(room, prompt - done);
      const bool last = done + n == prompt;
      runner_.step(chunks(depth + done, n, batch, last ? LogitRows::kLast : LogitRows::kNone));
      done += n;
    }
  });
}

double StepBench::run_output(std::int64_t output, std::int64_t depth, std::int64_t batch) {
  return seconds_of([&] {
    for (std::int64_t i = 0; i < output; ++i) {
      auto step = chunks(depth + i, 1, batch, LogitRows::kNone);
      for (SequenceChunk& chunk : step) chunk.sample = true;
      runner_.step(step);
    }
  });
}

void StepBench::run(BenchTest& test, int repetitions) {
  const auto once = [&] {
    return test.prompt > 0 ? run_prompt(test.prompt, test.depth, test.batch)
                           : run_output(test.output, test.depth, test.batch);
  };
  once();
  for (int r = 0; r < repetitions; ++r) test.seconds.push_back(once());
}

// samples[i] are the times of operation i. Where the backend can record, both the plain step and
// the step with marks between its operations are replays.
std::vector<std::vector<double>> StepBench::time_operations(Breakdown& breakdown, TimingOps& timing,
                                                            std::span<const SequenceChunk> step,
                                                            int repetitions) {
  std::vector<double> whole;
  std::vector<std::vector<double>> samples;
  const auto collect = [&] {
    const std::vector<double> times = timing.microseconds();
    samples.resize(times.size());
    for (std::size_t i = 0; i < times.size(); ++i) samples[i].push_back(times[i]);
  };
  breakdown.recorded = ops_.can_record();
  if (breakdown.recorded) {
    const auto plain = runner_.record_step(ops_, step);
    // Replays follow each other without the host; the first one, which waits for it, does not
    // count.
    const auto clock = ops_.make_clock(repetitions + 2);
    clock->mark();
    for (int r = 0; r <= repetitions; ++r) {
      plain->replay();
      clock->mark();
    }
    whole = clock->intervals();
    whole.erase(whole.begin());
    const auto marked = runner_.record_step(timing, step);
    for (int r = 0; r <= repetitions; ++r) {
      marked->replay();
      if (r > 0) collect();
    }
  } else {
    for (int r = 0; r <= repetitions; ++r) {
      const double time = 1e6 * seconds_of([&] { runner_.step(step); });
      if (r > 0) whole.push_back(time);
    }
    runner_.observe(&timing);
    for (int r = 0; r <= repetitions; ++r) {
      runner_.step(step);
      if (r > 0) collect();
    }
    runner_.observe(nullptr);
  }
  breakdown.step_microseconds = spread_of(whole).median;
  return samples;
}

Breakdown StepBench::break_down(const BenchTest& test, int repetitions) {
  constexpr std::int64_t kMostOperations = 1 << 14;
  const std::int64_t room = runner_.options().max_num_batched_tokens / test.batch;
  const std::int64_t count = test.prompt > 0 ? std::min(room, test.prompt) : 1;
  TimingOps timing(ops_, test.depth + count, kMostOperations);
  const auto step = chunks(test.depth, count, test.batch, LogitRows::kLast);
  Breakdown out;
  out.test = test.name();
  out.rows = count * test.batch;
  const auto samples = time_operations(out, timing, step, repetitions);
  out.lines = group(runner_.config(), timing.operations(), samples);
  return out;
}

}  // namespace quatrain::apps
