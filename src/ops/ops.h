// SPDX-License-Identifier: Apache-2.0
// THE SEAM: the operations that a paragraph of the DeepSeek-V4 paper describes.
//
// The model above it is plain host code and never learns which backend runs; a backend below it
// knows nothing of layers. Operations run in order. None allocates, waits for the device or reads
// the environment: everything is sized by reserve(). op_args.h gives each operation's formula.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "ops/fused_args.h"
#include "ops/op_clock.h"

/// The plain operations, which every backend has: X(argument struct, method name).
#define QT_FOR_EACH_PLAIN_OP(X)    \
  X(Embed, embed)                  \
  X(HcPre, hc_pre)                 \
  X(HcPost, hc_post)               \
  X(HcHead, hc_head)               \
  X(RmsNorm, rms_norm)             \
  X(Linear, linear)                \
  X(GroupedLinear, grouped_linear) \
  X(Rope, rope)                    \
  X(RoundToGrid, round_to_grid)    \
  X(Compress, compress)            \
  X(IndexSelect, index_select)     \
  X(Attend, attend)                \
  X(KvStore, kv_store)             \
  X(Route, route)                  \
  X(SwiGlu, swiglu)                \
  X(Experts, experts)              \
  X(GatherRows, gather_rows)       \
  X(AddToStreams, add_to_streams)  \
  X(Sample, sample)

/// Those made of plain ones (fused_args.h), which a backend may do in one go.
#define QT_FOR_EACH_FUSED_OP(X)        \
  X(Linears, linears)                  \
  X(SwiGluLinear, swiglu_linear)       \
  X(HcPreNorm, hc_pre_norm)            \
  X(HcPostPreNorm, hc_post_pre_norm)   \
  X(NormRope, norm_rope)               \
  X(AttentionInputs, attention_inputs) \
  X(AttendStore, attend_store)

#define QT_FOR_EACH_OP(X) \
  QT_FOR_EACH_PLAIN_OP(X) \
  QT_FOR_EACH_FUSED_OP(X)

namespace quatrain {

/// The largest step that will run; sizes every buffer a backend keeps for itself.
struct StepLimits {
  std::int64_t rows = 0;               ///< T
  std::int64_t context = 0;            ///< positions of one sequence
  std::int64_t slots = 0;              ///< sequences
  std::int64_t experts_per_token = 0;  ///< k
  std::int64_t num_experts = 0;        ///< E
  std::int64_t hidden_size = 0;        ///< D
  std::int64_t intermediate_size = 0;  ///< I
  std::int64_t window = 0;
  std::int64_t index_topk = 0;
  std::int64_t vocab_size = 0;  ///< V; 0 where nothing is sampled
  LinearActivations linear_activations = LinearActivations::kFull;
};

/// Of what allocate() takes from; zeros where nobody knows.
struct MemoryInfo {
  std::int64_t free = 0;
  std::int64_t total = 0;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string_view backend_name() const = 0;
  virtual DType activation_dtype() const = 0;
  /// Of the window rings and the pools of compressed rows; U8 stands for packed rows
  /// (core/packed_row.h), whose values must be on the grid.
  virtual DType cache_dtype() const { return activation_dtype(); }

  /// Rows of a step from which on prompts gain little by more.
  virtual std::int64_t prompt_rows() const { return 512; }

  // ---- memory ----
  virtual MemoryInfo memory() { return {}; }
  virtual Buffer allocate(std::int64_t bytes) = 0;
  virtual void upload(const Tensor& device, const void* host) = 0;
  virtual void download(void* host, const Tensor& device) = 0;
  virtual void zero(const Tensor& device) = 0;
  /// Copies the contents of one view on the device to another of as many bytes.
  virtual void copy(const Tensor& to, const Tensor& from) = 0;

  /// Host memory that the device copies to and from without the host's help.
  virtual Buffer allocate_host(std::int64_t bytes) { return allocate(bytes); }
  /// Issues a download to memory from allocate_host(), which holds the bytes after wait().
  virtual void start_download(void* host, const Tensor& device) { download(host, device); }
  /// Waits for everything issued so far.
  virtual void wait() {}

  /// A place in the order of the device's work.
  class Fence {
   public:
    virtual ~Fence() = default;
    virtual bool reached() = 0;
    virtual void wait() = 0;
  };
  /// The place behind everything issued so far; null where calls return when their work is done.
  virtual std::unique_ptr<Fence> fence() { return nullptr; }

  // ---- load time ----
  // A matrix that lies in memory from allocate_host() may still be read when these return: it must
  // stay until a fence made afterwards is reached.
  virtual std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) = 0;
  /// Experts are packed one at a time, so that only one of them is in host memory.
  virtual std::unique_ptr<PackedExperts> make_experts(std::string name, std::int64_t count,
                                                      std::int64_t hidden,
                                                      std::int64_t intermediate) = 0;
  virtual void pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                           const QuantMatrix& w3, const QuantMatrix& w2) = 0;
  virtual void reserve(const StepLimits& limits) = 0;
  /// What reserve() will take. Before it, and before anything is packed.
  virtual std::int64_t reserve_bytes(const StepLimits& limits) {
    (void)limits;
    return 0;
  }

  /// Which kernels steps of how many rows take, a line for each kind of operation, for people to
  /// read; after reserve(). A function of the model's shape and the device alone.
  virtual std::vector<std::string> kernel_choices() const { return {}; }

  // ---- recorded steps ----
  /// Operations recorded once and replayed as one launch, on what their input arrays hold then.
  class Recording {
   public:
    virtual ~Recording() = default;
    virtual void replay() = 0;
  };
  virtual bool can_record() const { return false; }
  /// Records the operations that `body` issues, without running them. They must have run before.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& body) {
    (void)body;
    fail("the {} backend cannot record operations", backend_name());
  }

  // ---- measurements ----
  /// A clock with room for `points`; operations that end with their call need no other.
  virtual std::unique_ptr<OpClock> make_clock(std::int64_t points) {
    return make_wall_clock(points);
  }

  // ---- a step ----
  /// Names the part of the model that the next operations belong to, for decorators.
  virtual void scope(std::string_view part, std::int64_t layer) {
    (void)part;
    (void)layer;
  }

#define QT_DECLARE(Args, method) virtual void method(const op::Args& args) = 0;
  QT_FOR_EACH_PLAIN_OP(QT_DECLARE)
#undef QT_DECLARE
#define QT_DECLARE(Args, method) virtual void method(const op::Args& args);
  QT_FOR_EACH_FUSED_OP(QT_DECLARE)
#undef QT_DECLARE
};

}  // namespace quatrain
