// SPDX-License-Identifier: Apache-2.0
// Flags that every verb which runs a model shares, and what they load.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "apps/backend.h"
#include "ops/trace_ops.h"
#include "runtime/model_runner.h"
#include "tokenizer/tokenizer.h"

namespace CLI {
class App;
}

namespace quatrain::apps {

/// Adds -t/--threads, --cpu-mask and --cpu-isa.
void add_cpu_flags(CLI::App& app, CpuFlags& cpu);

/// What --expert-activations means on a backend; "auto" is int8 on the CPU and bf16 elsewhere.
ExpertActivations parse_activations(std::string name, std::string_view backend);
/// What --linear-activations means on a backend; "auto" is fp32 on the CPU and fp16 elsewhere.
LinearActivations parse_linear_activations(std::string_view name, std::string_view backend);

struct ModelFlags {
  std::string model;
  std::string synthetic;    ///< preset of a made-up model, instead of a folder
  std::int64_t layers = 0;  ///< of the made-up model; 0: as published
  std::string backend = "auto";
  std::string expert_activations = "auto";
  std::string linear_activations = "auto";
  std::string kv_cache_dtype = "auto";
  std::string sim = "off";
  std::string trace;
  std::string trace_filter;
  CpuFlags cpu;
  bool check = false;
  bool verbose = false;
  EngineOptions options;

  /// Adds the flags; the model is the first positional argument or -m/--model.
  void add_to(CLI::App& app);
  /// Adds --synthetic and --layers, for verbs that need no tokenizer.
  void add_synthetic_to(CLI::App& app);

  ModelSource open() const;
};

/// A model that is ready to run: backend, decorators, runner.
class LoadedEngine {
 public:
  /// Loads with a progress bar on stderr and prints one line about what was loaded.
  /// `decorate` may wrap the backend before anything is loaded; steps then run one by one.
  /// `on_progress` is told the share that is done, 0 to 1.
  using Decorate = std::function<std::unique_ptr<Ops>(Ops& backend)>;
  explicit LoadedEngine(const ModelFlags& flags, const Decorate& decorate = {},
                        const std::function<void(double)>& on_progress = {});

  ModelRunner& runner() { return *runner_; }
  const V4Config& config() const { return runner_->config(); }
  Ops& ops() { return *ops_; }
  const Backend& backend() const { return backend_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;  // of the model
  Backend backend_;
  std::unique_ptr<Ops> decorated_;
  std::unique_ptr<Ops> check_;
  std::unique_ptr<TraceOps> trace_;
  Ops* ops_ = nullptr;  // the outermost of the above
  std::unique_ptr<ModelRunner> runner_;
};

/// The tokenizer in the model's folder; refuses one with more ids than the model has.
Tokenizer load_tokenizer(const std::string& model, const V4Config& config);

}  // namespace quatrain::apps
