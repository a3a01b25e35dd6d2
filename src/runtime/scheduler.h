// SPDX-License-Identifier: Apache-2.0
// Scheduler: which sequences run how many tokens in the next step, and who holds slots and blocks.
//
// Pure bookkeeping: it knows neither the model nor device memory, and gives the same plans for the
// same calls. Not thread-safe. Rules:
//   - A sequence holds a slot and blocks for all of its tokens, or nothing. A row per held slot
//     always fits a step.
//   - Sequences with one token to run (decode) come first, then prompts share the rows left: half
//     of them the shortest remaining first, so that a short prompt never queues behind long ones;
//     the rest the oldest first, so that none starves. Lower priorities come before both orders.
//   - When blocks run out the last sequence in order of (priority, arrival) gives up what it holds
//     and waits for its turn again; its tokens run again then. The first in that order never does.
//   - A prompt's chunk that does not come as far as it may ends at a multiple of kBlockTokens if it
//     reaches one: the slot's state is worth a snapshot there, and that costs no step of its own.
//   - A prefix is resumed where all of its blocks and a snapshot of the slot's state are still
//     there: at a multiple of kBlockTokens, and one token before the end at the latest. A sequence
//     waits for a prompt that is just running more of its prefix, and lets others pass meanwhile.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "runtime/sequence.h"
#include "runtime/snapshot_index.h"

namespace quatrain {

struct SchedulerLimits {
  std::int64_t slots = 1;
  std::int64_t blocks = 1;           ///< at least those of the longest sequence
  std::int64_t step_tokens = 1;      ///< rows of one step, at least `slots`
  std::int64_t step_logit_rows = 1;  ///< at least `slots`
  std::int64_t snapshots = 0;        ///< 0: no prefix cache
  /// Inside a prompt chunks end there at the latest; 0: they need not.
  std::int64_t snapshot_interval = 0;
  /// Tokens that a snapshot at a prompt's last border saves at least, or there is none.
  std::int64_t snapshot_gain = 1;
  std::uint64_t salt = 0;  ///< of the prefix keys
};

struct StepPlan {
  struct Chunk {
    Sequence* sequence;
    std::int64_t count;  ///< tokens from `computed` on
    bool all_logits;     ///< of every row, not just of the sequence's last token
  };
  struct Admission {
    Sequence* sequence;
    std::optional<std::int64_t> place;  ///< of the snapshot that its slot continues from
  };
  std::vector<Admission> admissions;  ///< sequences that got a slot now
  std::vector<Chunk> chunks;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  /// Takes a sequence with a fresh id; it must stay where it is until finish().
  void add(Sequence& sequence);
  /// Plans the next step; empty only if there is no sequence.
  StepPlan plan();
  /// The step has run `chunk`: its rows are in the caches. Returns where to keep a snapshot of the
  /// slot's state, if one is wanted; the caller takes it before anything else runs.
  std::optional<std::int64_t> complete(const StepPlan::Chunk& chunk);
  /// The sequence ends and gives back everything.
  void finish(Sequence& sequence);
  /// The sequence's rows are worthless: no prefix may find them again. finish() must follow.
  void spoil(Sequence& sequence);
  /// Blocks to zero before the next step.
  std::vector<BlockId> take_spoiled() { return pool_.take_spoiled(); }

  const BlockPool& pool() const { return pool_; }
  std::int64_t running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  std::int64_t preemptions() const { return preemptions_; }

  /// Throws unless every block is accounted for.
  void verify() const;

 private:
  using Order = std::pair<int, RequestId>;  // priority, arrival
  using Queue = std::map<Order, Sequence*>;
  struct Hit {
    std::vector<BlockId> blocks;  // from the front, up to the snapshot
    std::optional<std::int64_t> place;
    std::int64_t known = 0;  // tokens whose blocks are there, snapshot or not
  };

  static Order order_of(const Sequence& sequence) { return {sequence.priority, sequence.id}; }
  void grow();
  bool prefix_is_coming(Sequence& sequence, const Hit& hit) const;
  bool try_admit(Sequence& sequence, const Hit& hit, StepPlan& plan);
  Hit find_prefix(Sequence& sequence);
  void take_block(Sequence& sequence);
  void let_go(Sequence& sequence);
  void preempt(Sequence& sequence);
  void share_rows(StepPlan& plan) const;
  void extend_keys(Sequence& sequence, std::int64_t blocks) const;
  bool stops_at(const Sequence& sequence, std::int64_t border) const;
  std::int64_t next_stop(const Sequence& sequence) const;
  void end_at_border(StepPlan::Chunk& chunk) const;

  SchedulerLimits limits_;
  BlockPool pool_;
  SnapshotIndex snapshots_;
  std::vector<std::int64_t> free_slots_;
  Queue waiting_;
  Queue running_;
  std::int64_t preemptions_ = 0;
};

}  // namespace quatrain
