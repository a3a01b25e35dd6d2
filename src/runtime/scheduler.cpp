// SPDX-License-Identifier: Apache-2.0
#include "runtime/scheduler.h"

#include <algorithm>

#include "core/error.h"
#include "ops/op_args.h"

namespace quatrain {
namespace {

std::int64_t blocks_for(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

std::span<const std::int32_t> tokens_of_block(const Sequence& sequence, std::int64_t block) {
  return std::span(sequence.tokens)
      .subspan(static_cast<std::size_t>(block * kBlockTokens), kBlockTokens);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), pool_(limits.blocks), snapshots_(limits.snapshots) {
  QT_CHECK(limits.step_tokens >= limits.slots && limits.step_logit_rows >= limits.slots,
           "a step of {} rows and {} rows of logits does not hold {} sequences", limits.step_tokens,
           limits.step_logit_rows, limits.slots);
  for (std::int64_t slot = limits.slots; slot-- > 0;) free_slots_.push_back(slot);
}

void Scheduler::add(Sequence& sequence) {
  QT_CHECK(blocks_for(sequence.size()) <= limits_.blocks, "{} tokens never fit {} blocks",
           sequence.size(), limits_.blocks);
  waiting_.emplace(order_of(sequence), &sequence);
}

StepPlan Scheduler::plan() {
  StepPlan plan;
  grow();
  for (auto it = waiting_.begin(); it != waiting_.end() && !free_slots_.empty();) {
    Sequence& sequence = *it++->second;
    const Hit hit = find_prefix(sequence);
    if (prefix_is_coming(sequence, hit)) continue;
    if (!try_admit(sequence, hit, plan)) break;
  }
  share_rows(plan);
  return plan;
}

// Every running sequence gets the blocks of the tokens it has, the first in order first.
void Scheduler::grow() {
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    Sequence& sequence = *it->second;
    while (static_cast<std::int64_t>(sequence.blocks.size()) < blocks_for(sequence.size())) {
      if (pool_.available() > 0) {
        take_block(sequence);
        continue;
      }
      Sequence& last = *running_.rbegin()->second;
      preempt(last);
      if (&last == &sequence) return;
    }
  }
}

void Scheduler::take_block(Sequence& sequence) {
  const BlockPool::Taken taken = pool_.take();
  // Without its last block a prefix cannot be resumed.
  if (taken.evicted) snapshots_.remove(*taken.evicted);
  sequence.blocks.push_back(taken.block);
}

// A prompt that runs now will soon hold more of this prefix than the cache does: waiting for it is
// faster than running the same tokens beside it. Where the two part a snapshot is worth it.
bool Scheduler::prefix_is_coming(Sequence& sequence, const Hit& hit) const {
  if (limits_.snapshots == 0 || sequence.score_prompt) return false;
  const std::int64_t most = (sequence.size() - 1) / kBlockTokens;
  for (const auto& [order, other] : running_) {
    if (other->computed >= other->prompt_size) continue;
    const std::int64_t blocks = std::min(most, other->prompt_size / kBlockTokens);
    extend_keys(*other, blocks);
    std::int64_t common = std::ssize(hit.blocks);
    while (common < blocks && other->keys[static_cast<std::size_t>(common)] ==
                                  sequence.keys[static_cast<std::size_t>(common)])
      ++common;
    const std::int64_t border = common * kBlockTokens;
    if (common == std::ssize(hit.blocks) || border <= other->computed) continue;
    if (other->learned_border <= other->computed) other->learned_border = border;
    if (stops_at(*other, border)) return true;
  }
  return false;
}

// Gives the sequence a slot and blocks if they are there, with one block to spare for each running
// sequence, so that the newcomer is not preempted at once.
bool Scheduler::try_admit(Sequence& sequence, const Hit& hit, StepPlan& plan) {
  const auto resumed = static_cast<std::int64_t>(hit.blocks.size());
  const std::int64_t revived =
      std::ranges::count_if(hit.blocks, [&](BlockId block) { return !pool_.is_used(block); });
  if (blocks_for(sequence.size()) - resumed + running() > pool_.available() - revived) return false;

  for (const BlockId block : hit.blocks) pool_.share(block);
  sequence.blocks = hit.blocks;
  while (static_cast<std::int64_t>(sequence.blocks.size()) < blocks_for(sequence.size()))
    take_block(sequence);
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  sequence.computed = sequence.last_snapshot = resumed * kBlockTokens;
  sequence.learned_border = hit.known > sequence.computed ? hit.known : 0;
  sequence.blocks_announced = 0;
  if (!sequence.admitted) {
    sequence.cached_tokens = std::min(sequence.computed, sequence.prompt_size);
    sequence.admitted = true;
  }
  plan.admissions.push_back({&sequence, hit.place});
  running_.insert(waiting_.extract(order_of(sequence)));
  return true;
}

Scheduler::Hit Scheduler::find_prefix(Sequence& sequence) {
  Hit hit;
  if (limits_.snapshots == 0 || sequence.score_prompt) return hit;
  std::vector<BlockId> found;
  const std::int64_t most = (sequence.size() - 1) / kBlockTokens;
  extend_keys(sequence, most);
  for (std::int64_t b = 0; b < most; ++b) {
    const auto block =
        pool_.find(sequence.keys[static_cast<std::size_t>(b)], tokens_of_block(sequence, b));
    if (!block) break;
    found.push_back(*block);
  }
  hit.known = static_cast<std::int64_t>(found.size()) * kBlockTokens;
  while (!found.empty() && !hit.place) {
    hit.place = snapshots_.use(sequence.keys[found.size() - 1]);
    if (!hit.place) found.pop_back();
  }
  hit.blocks = std::move(found);
  return hit;
}

void Scheduler::extend_keys(Sequence& sequence, std::int64_t blocks) const {
  while (static_cast<std::int64_t>(sequence.keys.size()) < blocks) {
    const PrefixKey parent =
        sequence.keys.empty() ? PrefixKey{.low = limits_.salt, .high = 0} : sequence.keys.back();
    const auto block = static_cast<std::int64_t>(sequence.keys.size());
    sequence.keys.push_back(extend_prefix(parent, tokens_of_block(sequence, block)));
  }
}

// Later blocks first: of an old prefix its end goes before its front.
void Scheduler::let_go(Sequence& sequence) {
  for (std::size_t b = sequence.blocks.size(); b-- > 0;) pool_.release(sequence.blocks[b]);
  sequence.blocks.clear();
  free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void Scheduler::preempt(Sequence& sequence) {
  let_go(sequence);
  sequence.computed = 0;
  ++preemptions_;
  waiting_.insert(running_.extract(order_of(sequence)));
}

void Scheduler::finish(Sequence& sequence) {
  if (sequence.slot >= 0) let_go(sequence);
  waiting_.erase(order_of(sequence));
  running_.erase(order_of(sequence));
}

void Scheduler::spoil(Sequence& sequence) {
  for (const BlockId block : sequence.blocks) pool_.spoil(block);
  for (const PrefixKey& key : sequence.keys) snapshots_.remove(key);
}

// ---- Rows of a step ----

void Scheduler::share_rows(StepPlan& plan) const {
  std::int64_t rows = limits_.step_tokens;
  struct Prompt {
    StepPlan::Chunk chunk;
    std::int64_t stop;  // where the chunk must end at the latest
  };
  std::vector<Prompt> prompts;
  for (const auto& [order, sequence] : running_) {
    if (sequence->remaining() == 1) {
      plan.chunks.push_back({sequence, 1, sequence->score_prompt});
      --rows;
    } else {
      prompts.push_back({{sequence, 0, sequence->score_prompt}, next_stop(*sequence)});
    }
  }
  // Every held slot has a row of logits; what is left goes to prompts that are to be scored.
  std::int64_t logit_rows = limits_.step_logit_rows - running();
  const auto give = [&](Prompt& prompt, std::int64_t most) {
    StepPlan::Chunk& chunk = prompt.chunk;
    std::int64_t count = std::min(most, prompt.stop - chunk.sequence->computed - chunk.count);
    if (chunk.all_logits) {
      count = std::min(count, logit_rows + (chunk.count == 0 ? 1 : 0));
      logit_rows -= count - (chunk.count == 0 && count > 0 ? 1 : 0);
    }
    chunk.count += count;
    rows -= count;
    return count;
  };
  std::vector<Prompt*> shortest;
  for (Prompt& prompt : prompts) shortest.push_back(&prompt);
  std::ranges::stable_sort(shortest, {}, [](const Prompt* prompt) {
    const Sequence& sequence = *prompt->chunk.sequence;
    return std::pair(sequence.priority, sequence.remaining());
  });
  std::int64_t half = rows / 2;
  for (Prompt* prompt : shortest) half -= give(*prompt, half);
  for (Prompt& prompt : prompts) give(prompt, rows);
  for (auto& [chunk, stop] : prompts) {
    if (chunk.sequence->computed + chunk.count < stop) end_at_border(chunk);
    if (chunk.count > 0) plan.chunks.push_back(chunk);
  }
}

// Of a chunk that steps cut short, where it reaches one.
void Scheduler::end_at_border(StepPlan::Chunk& chunk) const {
  const std::int64_t computed = chunk.sequence->computed;
  const std::int64_t border = (computed + chunk.count) / kBlockTokens * kBlockTokens;
  if (limits_.snapshots > 0 && border > computed) chunk.count = border - computed;
}

// Where the next chunk must end at the latest.
std::int64_t Scheduler::next_stop(const Sequence& sequence) const {
  for (std::int64_t border = (sequence.computed / kBlockTokens + 1) * kBlockTokens;
       border < sequence.size(); border += kBlockTokens)
    if (stops_at(sequence, border)) return border;
  return sequence.size();
}

// Chunks end there for the sake of a snapshot. Inside a prompt: at regular distances, at its last
// border if that saves enough, and where an earlier prompt is known to go on differently. Inside
// the output: at every border, which costs no extra step. Other chunks that end at a border leave
// one as well.
bool Scheduler::stops_at(const Sequence& sequence, std::int64_t border) const {
  if (limits_.snapshots == 0) return false;
  if (border >= sequence.prompt_size || border == sequence.learned_border) return true;
  if (limits_.snapshot_interval > 0 && border % limits_.snapshot_interval == 0) return true;
  return border == (sequence.prompt_size - 1) / kBlockTokens * kBlockTokens &&
         border - sequence.last_snapshot >= limits_.snapshot_gain;
}

std::optional<std::int64_t> Scheduler::complete(const StepPlan::Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  const std::int64_t old_blocks = sequence.computed / kBlockTokens;
  sequence.computed += chunk.count;
  const std::int64_t blocks = sequence.computed / kBlockTokens;
  if (limits_.snapshots == 0 || blocks == old_blocks) return {};
  extend_keys(sequence, blocks);
  for (std::int64_t b = old_blocks; b < blocks; ++b)
    pool_.publish(sequence.blocks[static_cast<std::size_t>(b)],
                  sequence.keys[static_cast<std::size_t>(b)], tokens_of_block(sequence, b));

  if (sequence.computed % kBlockTokens != 0) return {};
  sequence.last_snapshot = sequence.computed;
  const PrefixKey& key = sequence.keys[static_cast<std::size_t>(blocks - 1)];
  if (snapshots_.use(key)) return {};
  if (sequence.computed > sequence.prompt_size) {
    // One snapshot per output is enough: the next turn of a conversation resumes at the last.
    if (sequence.output_snapshot) snapshots_.remove(*sequence.output_snapshot);
    sequence.output_snapshot = key;
  }
  return snapshots_.add(key);
}

void Scheduler::verify() const {
  std::vector<std::int32_t> references(static_cast<std::size_t>(pool_.total()), 0);
  for (const auto& [order, sequence] : running_) {
    QT_CHECK(sequence->slot >= 0, "a running sequence has no slot");
    for (const BlockId block : sequence->blocks) ++references[static_cast<std::size_t>(block)];
  }
  pool_.verify(references);
  for (const auto& [order, sequence] : waiting_)
    QT_CHECK(sequence->slot < 0 && sequence->blocks.empty(), "a waiting sequence holds blocks");
  QT_CHECK_EQ(static_cast<std::int64_t>(free_slots_.size()) + running(), limits_.slots,
              "free and held slots");
}

}  // namespace quatrain
