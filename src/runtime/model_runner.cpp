// SPDX-License-Identifier: Apache-2.0
#include "runtime/model_runner.h"

#include <algorithm>
#include <numeric>

#include "core/step_guard.h"

namespace quatrain {
namespace {

constexpr std::int64_t kFewestFreeRows = 512;               // of a step, where nobody says how many
constexpr std::int64_t kMaxBlocks = std::int64_t{1} << 24;  // rows of a pool stay far below 2^31

// Rows of logits that the host gets.
std::int64_t host_rows(const SequenceChunk& chunk) {
  const auto n = static_cast<std::int64_t>(chunk.tokens.size());
  return chunk.logits == LogitRows::kAll    ? n
         : chunk.logits == LogitRows::kLast ? std::min<std::int64_t>(n, 1)
                                            : 0;
}

// Rows of logits that are computed: the last ones of the chunk.
std::int64_t device_rows(const SequenceChunk& chunk) {
  return std::max<std::int64_t>(host_rows(chunk), chunk.sample && !chunk.tokens.empty() ? 1 : 0);
}

}  // namespace

void EngineOptions::resolve(const V4Config& config, const Ops& ops) {
  if (max_model_len == 0) max_model_len = std::min(config.max_positions, kDefaultContext);
  if (max_logit_rows == 0) max_logit_rows = max_num_seqs;
  const auto in_range = [](const char* name, std::int64_t value, std::int64_t low,
                           std::int64_t high) {
    if (value < low || value > high)
      fail("--{}: expected a value in [{}, {}], found {}", name, low, high, value);
  };
  in_range("max-model-len", max_model_len, 1, config.max_positions);
  in_range("max-num-seqs", max_num_seqs, 1, 1 << 16);
  if (max_num_batched_tokens == 0)
    max_num_batched_tokens =
        std::clamp(ops.prompt_rows(), max_num_seqs, max_num_seqs * max_model_len);
  in_range("max-num-batched-tokens", max_num_batched_tokens, 1, 1 << 20);
  const std::int64_t full = blocks_per_sequence(*this);
  if (kv_blocks == 0) kv_blocks = max_num_seqs * full;
  in_range("kv-blocks", kv_blocks, full, kMaxBlocks);
  if (mtp && config.num_mtp_layers == 0)
    fail("--mtp: the checkpoint has no MTP block (num_nextn_predict_layers is 0)");
  max_logit_rows = std::min(max_logit_rows, max_num_batched_tokens);
}

ModelRunner::ModelRunner(Ops& ops, const ModelSource& source, EngineOptions options,
                         const LoadEvents& events)
    : ops_(ops), config_(source.config), options_(std::move(options)) {
  const bool rows_are_free = options_.max_num_batched_tokens == 0;
  options_.resolve(config_, ops_);
  const WeightList list = list_weights(source.checkpoint, config_, options_.mtp);
  plan_ = plan_memory(ops_, config_, options_, list);
  if (rows_are_free) shorten_steps(list);
  if (events.plan) events.plan(plan_);
  plan_.check();
  weights_ = load_weights(
      source.checkpoint, config_, ops_, list,
      {.mtp = options_.mtp,
       .fp8_expert_inputs = options_.numerics.expert_activations == ExpertActivations::kFp8,
       .progress = events.weights});
  model_ = std::make_unique<DeepseekV4>(config_, weights_, options_.numerics);

  const std::int64_t slots = options_.max_num_seqs;
  cache_ = std::make_unique<KvCache>(ops_, config_, slots, options_.kv_blocks);
  ops_.reserve(step_limits(config_, options_));

  make_inputs();
  make_outputs();
  scratch_ = ops_.allocate(plan_.arena);
  arena_ = std::make_unique<Arena>(scratch_.data(), scratch_.bytes());
  if (options_.record && ops_.can_record()) record_decode_steps(events.recording);
}

void ModelRunner::make_inputs() {
  const std::int64_t rows = options_.max_num_batched_tokens;
  const std::int64_t total = 4 * rows + 3 * options_.max_logit_rows;
  host_inputs_.assign(static_cast<std::size_t>(total), 0);
  input_memory_ = ops_.allocate(total * bytes_of(DType::kI32));
  lay_out(rows, options_.max_logit_rows);

  const std::int64_t slots = options_.max_num_seqs;
  const std::int64_t blocks = blocks_per_sequence(options_);
  std::vector<std::int32_t> table(static_cast<std::size_t>(slots * blocks));
  if (options_.kv_blocks >= slots * blocks) std::iota(table.begin(), table.end(), 0);
  memory_.push_back(ops_.allocate(slots * blocks * bytes_of(DType::kI32)));
  block_table_ = Tensor(memory_.back().data(), DType::kI32, {slots, blocks});
  ops_.upload(block_table_, table.data());
}

void ModelRunner::set_blocks(std::int64_t slot, std::int64_t first,
                             std::span<const std::int32_t> blocks) {
  const auto count = static_cast<std::int64_t>(blocks.size());
  QT_CHECK(slot >= 0 && slot < block_table_.dim(0), "no sequence slot {}", slot);
  QT_CHECK(first >= 0 && first + count <= block_table_.dim(1),
           "blocks [{}, {}) of a sequence of at most {}", first, first + count,
           block_table_.dim(1));
  for (const std::int32_t block : blocks)
    QT_CHECK(block >= 0 && block < options_.kv_blocks, "block {} is outside [0, {})", block,
             options_.kv_blocks);
  if (count > 0) ops_.upload(block_table_[slot].rows(first, count), blocks.data());
}

// Arrays of `rows` and `wanted` entries one behind the other.
void ModelRunner::lay_out(std::int64_t rows, std::int64_t wanted) {
  inputs_ = Tensor(input_memory_.data(), DType::kI32, {4 * rows + 3 * wanted});
  std::int64_t begin = 0;
  const auto take = [&](Tensor& tensor, std::int32_t*& host, std::int64_t count) {
    tensor = inputs_.rows(begin, count);
    host = host_inputs_.data() + begin;
    begin += count;
  };
  take(token_ids_, host_.token_ids, rows);
  take(positions_, host_.positions, rows);
  take(slots_, host_.slots, rows);
  take(first_rows_, host_.first_rows, rows);
  take(logit_rows_, host_.logit_rows, wanted);
  take(sample_slots_, host_.sample_slots, wanted);
  take(sample_positions_, host_.sample_positions, wanted);
}

void ModelRunner::make_outputs() {
  const std::int64_t rows = options_.max_num_batched_tokens;
  const DType type = ops_.activation_dtype();
  const std::int64_t width = config_.hc_mult * config_.hidden_size;
  memory_.push_back(ops_.allocate(rows * width * bytes_of(type)));
  streams_ = Tensor(memory_.back().data(), type, {rows, config_.hc_mult, config_.hidden_size});
  const std::int64_t logit_bytes =
      options_.max_logit_rows * config_.vocab_size * bytes_of(DType::kF32);
  host_logits_ = ops_.allocate_host(logit_bytes);
  memory_.push_back(ops_.allocate(logit_bytes));
  logits_ =
      Tensor(memory_.back().data(), DType::kF32, {options_.max_logit_rows, config_.vocab_size});
  sampler_ = std::make_unique<SlotSampler>(ops_, config_.vocab_size, options_.max_num_seqs,
                                           options_.max_logit_rows);
}

// Halves the rows of a step until the model fits the memory, as long as that may help.
void ModelRunner::shorten_steps(const WeightList& list) {
  std::int64_t& rows = options_.max_num_batched_tokens;
  const std::int64_t fewest = std::max(options_.max_num_seqs, kFewestFreeRows);
  while (plan_.missing() > 0 && rows / 2 >= fewest) {
    rows /= 2;
    plan_ = plan_memory(ops_, config_, options_, list);
  }
}

// A decode step's shape depends on its padded row count alone, so a recording per count serves
// every batch.
void ModelRunner::record_decode_steps(const LoadEvents::Progress& progress) {
  const std::int64_t before = ops_.memory().free;
  const std::vector<std::int64_t> buckets = decode_buckets(options_);
  for (const std::int64_t rows : buckets) {
    lay_out(rows, rows);
    is_decode_ = true;
    rows_ = wanted_rows_ = 0;
    pad_rows(rows);
    ops_.upload(inputs_, host_inputs_.data());
    const auto body = [&] {
      run_forward(ops_, rows, rows);
      issue_sampling(ops_, rows);
    };
    body();  // once eagerly: sets up what recording may not
    decode_steps_.push_back({rows, ops_.record(body)});
    if (progress) progress(std::ssize(decode_steps_), std::ssize(buckets));
  }
  ops_.wait();
  recorded_bytes_ = before - ops_.memory().free;
}

Batch ModelRunner::batch(std::int64_t rows) const {
  return {.token_ids = token_ids_.rows(0, rows),
          .positions = positions_.rows(0, rows),
          .slots = slots_.rows(0, rows),
          .first_rows = first_rows_.rows(0, rows),
          .block_table = block_table_,
          .is_decode = is_decode_};
}

void ModelRunner::check(std::span<const SequenceChunk> chunks) const {
  std::int64_t rows = 0;
  for (const SequenceChunk& chunk : chunks) {
    const auto n = static_cast<std::int64_t>(chunk.tokens.size());
    rows += n;
    if (chunk.slot < 0 || chunk.slot >= options_.max_num_seqs)
      fail("sequence slot {} is outside [0, {})", chunk.slot, options_.max_num_seqs);
    if (std::ranges::count(chunks, chunk.slot, &SequenceChunk::slot) != 1)
      fail("sequence slot {} has two chunks in one step", chunk.slot);
    if (chunk.position < 0 || chunk.position + n > options_.max_model_len)
      fail("positions [{}, {}) do not fit the context of {} tokens (--max-model-len)",
           chunk.position, chunk.position + n, options_.max_model_len);
    for (const std::int32_t id : chunk.tokens)
      if (id < 0 || id >= config_.vocab_size)
        fail("token id {} is outside [0, {})", id, config_.vocab_size);
  }
  if (rows == 0) fail("a step needs at least one token");
  if (rows > options_.max_num_batched_tokens)
    fail("a step of {} tokens is above --max-num-batched-tokens {}", rows,
         options_.max_num_batched_tokens);
}

bool ModelRunner::is_decode(std::span<const SequenceChunk> chunks) const {
  return !decode_steps_.empty() && step_ops_ == &ops_ &&
         static_cast<std::int64_t>(chunks.size()) <= decode_steps_.back().rows &&
         std::ranges::all_of(chunks, [](const SequenceChunk& chunk) {
           return chunk.tokens.size() == 1 && device_rows(chunk) == 1;
         });
}

// Rows of the chunks, then inert ones up to `padded`, if that is more.
void ModelRunner::fill_rows(std::span<const SequenceChunk> chunks, std::int64_t padded) {
  std::int64_t rows = 0, wanted = 0;
  for (const SequenceChunk& chunk : chunks) {
    rows += static_cast<std::int64_t>(chunk.tokens.size());
    wanted += device_rows(chunk);
  }
  if (wanted > options_.max_logit_rows)
    fail("{} rows of logits were asked for, room was made for {}", wanted, options_.max_logit_rows);
  lay_out(std::max(rows, padded), std::max(wanted, padded));
  rows_ = wanted_rows_ = sampled_rows_ = 0;
  is_decode_ = std::ranges::all_of(
      chunks, [](const SequenceChunk& chunk) { return chunk.tokens.size() <= 1; });
  for (const SequenceChunk& chunk : chunks) {
    const std::int64_t first = rows_;
    const auto n = static_cast<std::int64_t>(chunk.tokens.size());
    for (std::int64_t i = 0; i < n; ++i, ++rows_) {
      host_.token_ids[rows_] = chunk.tokens[static_cast<std::size_t>(i)];
      host_.positions[rows_] = static_cast<std::int32_t>(chunk.position + i);
      host_.slots[rows_] = static_cast<std::int32_t>(chunk.slot);
      host_.first_rows[rows_] = static_cast<std::int32_t>(first);
      if (n - i > device_rows(chunk)) continue;
      const bool sampled = chunk.sample && i + 1 == n;
      host_.logit_rows[wanted_rows_] = static_cast<std::int32_t>(rows_);
      host_.sample_slots[wanted_rows_] = sampled ? static_cast<std::int32_t>(chunk.slot) : -1;
      host_.sample_positions[wanted_rows_] = static_cast<std::int32_t>(chunk.position + i + 1);
      ++wanted_rows_;
      if (sampled) ++sampled_rows_;
    }
  }
  pad_rows(padded);
}

// Appends inert rows up to `rows`, each with logits of its own that nobody samples.
void ModelRunner::pad_rows(std::int64_t rows) {
  for (std::int64_t r = rows_; r < rows; ++r) {
    host_.token_ids[r] = 0;
    host_.positions[r] = 0;
    host_.slots[r] = -1;
    host_.first_rows[r] = static_cast<std::int32_t>(r);
    host_.logit_rows[r] = static_cast<std::int32_t>(r);
    host_.sample_slots[r] = -1;
    host_.sample_positions[r] = 0;
  }
}

void ModelRunner::run_forward(Ops& ops, std::int64_t rows, std::int64_t wanted) {
  model_->forward(ops, *arena_, batch(rows), *cache_, streams_.rows(0, rows),
                  logit_rows_.rows(0, wanted), logits_.rows(0, wanted));
}

void ModelRunner::issue_sampling(Ops& ops, std::int64_t rows) {
  sampler_->issue(ops, logits_.rows(0, rows), sample_slots_.rows(0, rows),
                  sample_positions_.rows(0, rows));
}

void ModelRunner::issue_step(std::span<const SequenceChunk> chunks) {
  if (is_decode(chunks)) {
    const auto step = std::ranges::find_if(decode_steps_, [&](const DecodeStep& decode) {
      return decode.rows >= static_cast<std::int64_t>(chunks.size());
    });
    fill_rows(chunks, step->rows);
    ops_.upload(inputs_, host_inputs_.data());
    step->recording->replay();
    return;
  }
  fill_rows(chunks);
  ops_.upload(inputs_, host_inputs_.data());
  GuardOps ops(*step_ops_);
  run_forward(ops, rows_, wanted_rows_);
  if (sampled_rows_ > 0) issue_sampling(ops, wanted_rows_);
}

// Rows for the host lie one behind the other there; one copy for each run of them on the device.
// Returns their number.
std::int64_t ModelRunner::start_downloads(std::span<const SequenceChunk> chunks) {
  const std::int64_t row_bytes = config_.vocab_size * bytes_of(DType::kF32);
  std::int64_t done = 0, begin = 0, end = 0;  // the run [begin, end) is not copied yet
  const auto flush = [&] {
    if (end == begin) return;
    char* to = static_cast<char*>(host_logits_.data()) + done * row_bytes;
    ops_.start_download(to, logits_.rows(begin, end - begin));
    done += end - begin;
  };
  for (const SequenceChunk& chunk : chunks) {
    if (host_rows(chunk) == device_rows(chunk)) {
      end += device_rows(chunk);
      continue;
    }
    flush();
    begin = end = end + device_rows(chunk);
  }
  flush();
  if (sampled_rows_ > 0) sampler_->start_download(wanted_rows_);
  return done;
}

std::span<const float> ModelRunner::step(std::span<const SequenceChunk> chunks) {
  check(chunks);
  std::int64_t downloaded = 0;
  {
    const StepGuard guard(options_.guard ? "step" : nullptr);
    issue_step(chunks);
    downloaded = start_downloads(chunks);
  }
  ops_.wait();
  samples_ = {};
  if (sampled_rows_ > 0)
    samples_ = sampler_->finish({host_.sample_slots, static_cast<std::size_t>(wanted_rows_)});
  return host_logits(downloaded);
}

std::span<const float> ModelRunner::host_logits(std::int64_t rows) const {
  return {static_cast<const float*>(host_logits_.data()),
          static_cast<std::size_t>(rows * config_.vocab_size)};
}

std::unique_ptr<Ops::Recording> ModelRunner::record_step(Ops& ops,
                                                         std::span<const SequenceChunk> chunks) {
  check(chunks);
  fill_rows(chunks);
  ops_.upload(inputs_, host_inputs_.data());
  run_forward(ops, rows_, wanted_rows_);  // once eagerly: sets up what recording may not
  return ops.record([&] { run_forward(ops, rows_, wanted_rows_); });
}

std::span<const float> ModelRunner::step_mtp(std::int64_t m,
                                             std::span<const std::int32_t> next_tokens) {
  QT_CHECK_EQ(static_cast<std::int64_t>(next_tokens.size()), rows_,
              "following tokens of an MTP step");
  QT_CHECK(rows_ <= options_.max_logit_rows, "MTP logits of {} rows, room was made for {}", rows_,
           options_.max_logit_rows);
  QT_CHECK(m >= 0 && m < static_cast<std::int64_t>(weights_.mtp.size()), "no MTP block {}", m);
  const Tensor logits = logits_.rows(0, rows_);
  {
    const StepGuard guard(options_.guard ? "mtp step" : nullptr);
    lay_out(token_ids_.dim(0), rows_);
    for (std::int64_t r = 0; r < rows_; ++r) {
      host_.token_ids[r] = next_tokens[static_cast<std::size_t>(r)];
      host_.logit_rows[r] = static_cast<std::int32_t>(r);
    }
    ops_.upload(inputs_, host_inputs_.data());
    GuardOps ops(*step_ops_);
    model_->forward_mtp(ops, *arena_, batch(rows_), *cache_, m, streams_.rows(0, rows_),
                        logit_rows_, logits);
    ops_.start_download(host_logits_.data(), logits);
  }
  ops_.wait();
  return host_logits(rows_);
}

}  // namespace quatrain
