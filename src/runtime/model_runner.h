// SPDX-License-Identifier: Apache-2.0
// ModelRunner: a loaded model with its caches and scratch; runs one step at a time.
//
// Everything is allocated by the constructor: weights, caches, the scratch arena (sized by a dry
// run) and the step's input arrays. A step allocates nothing. One thread at a time may call it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "core/arena.h"
#include "model/model_source.h"
#include "ops/guard_ops.h"
#include "runtime/memory_plan.h"
#include "runtime/options.h"
#include "runtime/slot_sampler.h"

namespace quatrain {

enum class LogitRows : std::uint8_t { kNone, kLast, kAll };

/// Consecutive tokens of one sequence that a step appends.
struct SequenceChunk {
  std::int64_t slot = 0;
  std::int64_t position = 0;  ///< of tokens[0]; earlier positions must have run
  std::span<const std::int32_t> tokens;
  LogitRows logits = LogitRows::kLast;  ///< rows that the host gets
  bool sample = false;  ///< the token after the last is drawn on the device, as its slot says
};

/// What loading a model tells its caller; any may be empty.
struct LoadEvents {
  using Progress = std::function<void(std::int64_t done, std::int64_t total)>;
  /// What the model will take, before weights are read and before a lack of memory is an error.
  std::function<void(const MemoryPlan&)> plan = {};
  Progress weights = {};    ///< bytes read
  Progress recording = {};  ///< decode steps recorded
};

class ModelRunner {
 public:
  /// Loads the model in `folder` through `ops`, which must outlive the runner. Throws before any
  /// weight is read when memory is missing.
  ModelRunner(Ops& ops, const std::filesystem::path& folder, EngineOptions options,
              const LoadEvents& events = {})
      : ModelRunner(ops, open_model(folder), std::move(options), events) {}

  /// The same with an architecture and tensors from elsewhere.
  ModelRunner(Ops& ops, const ModelSource& source, EngineOptions options,
              const LoadEvents& events = {});

  /// Runs the chunks of distinct slots as one step. Returns F32 logits [n, vocab_size] of the rows
  /// asked for, in order; valid until the next step.
  std::span<const float> step(std::span<const SequenceChunk> chunks);

  /// What the last step drew: a result for each chunk that asked to sample, in order; valid until
  /// the next step. Only these were copied back for it.
  std::span<const SampleResult> samples() const { return samples_; }

  /// How tokens of `slot` are drawn from now on. `prompt` and `output` are what the sequence holds
  /// already: penalties and min_tokens count from there. Throws on parameters out of range. Not
  /// part of a step: it may wait for earlier ones.
  void set_sampling(std::int64_t slot, const SamplingParams& params,
                    std::span<const std::int32_t> prompt,
                    std::span<const std::int32_t> output = {}) {
    sampler_->set(slot, params, prompt, output);
  }

  /// Runs MTP block `m` on the rows of the last step, given each row's following token: tokens are
  /// appended at the same positions. Returns logits of all rows.
  std::span<const float> step_mtp(std::int64_t m, std::span<const std::int32_t> next_tokens);

  /// Lets blocks first, first + 1, … of the sequence in `slot` be `blocks` of the pools. At start
  /// every slot has blocks of its own if EngineOptions::kv_blocks is enough for that, else none.
  void set_blocks(std::int64_t slot, std::int64_t first, std::span<const std::int32_t> blocks);

  /// Sends the operations of later steps through `observer`, a decorator of the runner's own Ops;
  /// null goes back to those.
  void observe(Ops* observer) { step_ops_ = observer != nullptr ? observer : &ops_; }

  Ops& ops() const { return ops_; }

  /// Runs the chunks as a step on `ops`, a decorator of the runner's own Ops that can record, and
  /// records it: each replay repeats it on the same tokens. For measurements.
  std::unique_ptr<Ops::Recording> record_step(Ops& ops, std::span<const SequenceChunk> chunks);

  const V4Config& config() const { return config_; }
  const EngineOptions& options() const { return options_; }
  const KvCache& cache() const { return *cache_; }
  const ModelWeights& weights() const { return weights_; }
  const MemoryPlan& plan() const { return plan_; }
  std::int64_t weight_bytes() const { return plan_.weight_bytes(); }
  std::int64_t scratch_bytes() const { return scratch_.bytes(); }
  std::size_t recorded_steps() const { return decode_steps_.size(); }
  /// Of device memory, that recording took.
  std::int64_t recorded_bytes() const { return recorded_bytes_; }

 private:
  void make_inputs();
  void make_outputs();
  void shorten_steps(const WeightList& list);
  void record_decode_steps(const LoadEvents::Progress& progress);
  void lay_out(std::int64_t rows, std::int64_t wanted);
  void fill_rows(std::span<const SequenceChunk> chunks, std::int64_t padded = 0);
  void pad_rows(std::int64_t rows);
  void issue_step(std::span<const SequenceChunk> chunks);
  std::int64_t start_downloads(std::span<const SequenceChunk> chunks);
  void check(std::span<const SequenceChunk> chunks) const;
  bool is_decode(std::span<const SequenceChunk> chunks) const;
  void run_forward(Ops& ops, std::int64_t rows, std::int64_t wanted);
  void issue_sampling(Ops& ops, std::int64_t rows);
  std::span<const float> host_logits(std::int64_t rows) const;
  Batch batch(std::int64_t rows) const;

  Ops& ops_;
  Ops* step_ops_ = &ops_;  // what steps run on: ops_ or an observer of it
  V4Config config_;
  EngineOptions options_;
  ModelWeights weights_;
  std::unique_ptr<DeepseekV4> model_;
  std::unique_ptr<KvCache> cache_;
  MemoryPlan plan_;
  std::int64_t recorded_bytes_ = 0;

  std::vector<Buffer> memory_;
  Buffer scratch_;
  std::unique_ptr<Arena> arena_;

  // The step's inputs: one host array and its copy on the device, laid out for the step at hand, so
  // that a step copies no more than it needs.
  std::vector<std::int32_t> host_inputs_;
  Buffer input_memory_;
  Tensor inputs_;                                      // those of the step
  Tensor token_ids_, positions_, slots_, first_rows_;  // [rows]
  Tensor logit_rows_;                                  // [logit rows]
  Tensor sample_slots_, sample_positions_;  // [logit rows]; slot −1: nothing is sampled
  struct HostRows {
    std::int32_t *token_ids, *positions, *slots, *first_rows;
    std::int32_t *logit_rows, *sample_slots, *sample_positions;
  } host_{};
  Tensor block_table_;
  std::int64_t rows_ = 0;          // of the last step
  std::int64_t wanted_rows_ = 0;   // of logits
  std::int64_t sampled_rows_ = 0;  // of those
  bool is_decode_ = false;         // no sequence of the last step had more than one row

  // Decode steps of 1, 2, 4, 8, 16, 24, … rows, where the backend can record them.
  struct DecodeStep {
    std::int64_t rows;
    std::unique_ptr<Ops::Recording> recording;
  };
  std::vector<DecodeStep> decode_steps_;

  Tensor streams_;  // [rows, hc, D] of the last step
  Tensor logits_;   // F32 [logit rows, V]
  Buffer host_logits_;
  std::unique_ptr<SlotSampler> sampler_;
  std::span<const SampleResult> samples_;
};

}  // namespace quatrain
