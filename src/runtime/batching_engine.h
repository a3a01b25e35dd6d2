// SPDX-License-Identifier: Apache-2.0
// The engine behind the public interface: one thread that runs a ModelRunner step by step, with
// whatever sequences there are at that moment.
#pragma once

#include <memory>
#include <optional>

#include "quatrain/engine.h"
#include "runtime/model_runner.h"

namespace quatrain {

struct SchedulerOptions {
  /// Bounds of the queue, which holds requests that have not started. A prompt longer than the
  /// second is taken when nothing else waits.
  std::int64_t max_queued_requests = 1024;
  std::int64_t max_queued_tokens = std::int64_t{1} << 20;
  /// States kept to resume a shared prefix from, each as large as SnapshotStore says; 0 turns the
  /// prefix cache off.
  std::int64_t prefix_snapshots = 64;
  /// Tokens between them inside a prompt, a multiple of kBlockTokens. Chunks of a prompt end there,
  /// so more is faster to prefill and resumes earlier; with 0 they end at a prompt's last border,
  /// where prompts were seen to part, and where a step has no more room.
  std::int64_t snapshot_interval = kBlockTokens;
  /// Tokens that a snapshot at a prompt's last border must save whoever resumes there, or the
  /// prompt is not cut there: the rest of it would take a step of its own.
  std::int64_t snapshot_gain = 1;
  std::optional<std::uint64_t> prefix_salt = {};  ///< of the prefix keys; none: drawn
};

/// `runner` must outlive the engine, which is the only one to run steps on it. Throws Error if the
/// runner's rows are fewer than its sequences.
std::unique_ptr<Engine> make_engine(ModelRunner& runner, const SchedulerOptions& options = {});

}  // namespace quatrain
