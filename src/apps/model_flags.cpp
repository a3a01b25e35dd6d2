// SPDX-License-Identifier: Apache-2.0
#include "apps/model_flags.h"

#include <CLI/CLI.hpp>
#include <chrono>

#include "core/json.h"
#include "core/log.h"
#include "core/progress.h"
#include "model/synthetic.h"
#include "ops/check_ops.h"

namespace quatrain::apps {

void add_cpu_flags(CLI::App& app, CpuFlags& cpu) {
  app.add_option("-t,--threads", cpu.threads, "CPU threads; 0 takes one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu-mask", cpu.cpus,
                 "Pin CPU threads to these processors, separated by commas; one thread on each")
      ->delimiter(',');
  app.add_option("--cpu-isa", cpu.isa,
                 "CPU instruction set: auto (the best there is), plain, avx2, avx512, vbmi, amx or "
                 "amx-linears (see docs/numerics.md)")
      ->capture_default_str();
}

void ModelFlags::add_to(CLI::App& app) {
  app.add_option("MODEL,-m,--model,--model-path", model,
                 "Folder with config.json, safetensors files and tokenizer.json")
      ->required();
  app.add_option("--backend", backend, "cpu, cuda, or auto: cuda where there is a usable GPU")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  add_cpu_flags(app, cpu);
  app.add_option("-c,--max-model-len,--ctx-size,--ctx,--context-length", options.max_model_len,
                 "Context in tokens; 0 takes the checkpoint's maximum, at most 8192")
      ->capture_default_str();
  app.add_option(
         "--max-num-batched-tokens,--chunked-prefill-size", options.max_num_batched_tokens,
         "Tokens of prompts that run in one step; 0 takes 512 on the CPU and 4096 on a GPU, "
         "or fewer where memory is short")
      ->capture_default_str();
  app.add_option("--expert-activations", expert_activations,
                 "Inputs of the routed experts: auto (int8 on the CPU, bf16 on a GPU), fp32, bf16, "
                 "int8 (CPU only), fp8 (as the official model; for weights that are MXFP4 or exact "
                 "casts of it, refused for others), nvfp4 (FP4 with one scale per row) or static "
                 "(FP4 with the checkpoint's input_scale)")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "int8", "fp8", "nvfp4", "static"}))
      ->capture_default_str();
  app.add_option(
         "--linear-activations", linear_activations,
         "Inputs of linears with FP8 weights: auto (fp32 on the CPU, fp16 on a GPU), fp32, fp16 "
         "(11 bits and a power of two per row and 128 columns), or fp8 (the same with 4 bits, as "
         "the official model; refused where other linears should have it)")
      ->check(CLI::IsMember({"auto", "fp32", "fp16", "fp8"}))
      ->capture_default_str();
  app.add_option(
         "--kv-cache-dtype", kv_cache_dtype,
         "Type of the caches: auto (fp32 on the CPU, fp16 on a GPU), fp16, bf16, fp32, or fp8 "
         "(packed FP8 latents and FP4 index keys; implies --sim on)")
      ->check(CLI::IsMember({"auto", "fp16", "bf16", "fp32", "fp8"}))
      ->capture_default_str();
  app.add_option("--sim", sim, "Round cached keys to the FP8/FP4 grid of the packed caches")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--trace", trace, "Write every intermediate tensor to this folder");
  app.add_option("--trace-filter", trace_filter, "Trace only operations whose name contains this");
  app.add_flag("--check", check, "Stop at the first operation whose result is not finite");
  app.add_flag("-v,--verbose", verbose,
               "Say which kernels steps of how many rows take on a GPU; bench always does");
}

void ModelFlags::add_synthetic_to(CLI::App& app) {
  CLI::Option* folder = app.get_option("--model");
  folder->required(false);
  app.add_option("--synthetic", synthetic,
                 "A made-up model of true dimensions instead of MODEL: flash, pro or storyteller")
      ->check(CLI::IsMember({"flash", "pro", "storyteller"}))
      ->excludes(folder);
  app.add_option("--layers", layers, "Layers of the made-up model; 0 takes the published number")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

ModelSource ModelFlags::open() const {
  if (!synthetic.empty()) return synthetic_model(synthetic, layers);
  if (model.empty()) fail("no model: give a folder, or --synthetic flash, pro or storyteller");
  return open_model(model);
}

ExpertActivations parse_activations(std::string name, std::string_view backend) {
  if (name == "auto") name = backend == "cpu" ? "int8" : "bf16";
  if (name == "int8") {
    if (backend != "cpu")
      fail("--expert-activations int8: the {} backend has no int8 products; use bf16", backend);
    return ExpertActivations::kInt8;
  }
  if (name == "bf16") return ExpertActivations::kBf16;
  if (name == "fp8") return ExpertActivations::kFp8;
  if (name == "nvfp4") return ExpertActivations::kNvfp4;
  if (name == "static") return ExpertActivations::kStatic;
  return ExpertActivations::kFull;
}

LinearActivations parse_linear_activations(std::string_view name, std::string_view backend) {
  if (name == "auto") name = backend == "cpu" ? "fp32" : "fp16";
  if (name == "fp16") return LinearActivations::kF16;
  if (name == "fp8") return LinearActivations::kFp8;
  return LinearActivations::kFull;
}

namespace {

void log_plan(const MemoryPlan& plan) {
  std::string text = plan.describe();
  if (text.ends_with('\n')) text.pop_back();
  log_event(LogLevel::kInfo, "memory", text, fmt::format(R"("plan":{})", json_quote(text)));
}

LoadEvents::Progress progress_on_stderr(const char* label, const char* unit) {
  return [=, bar = std::shared_ptr<ProgressBar>(), reported = std::int64_t{0}](
             std::int64_t done, std::int64_t total) mutable {
    if (!bar) {
      ProgressOptions options = ProgressOptions::for_stderr();
      options.unit = unit;
      bar = std::make_shared<ProgressBar>(label, total, std::move(options));
    }
    bar->advance(done - reported);
    reported = done;
    if (done == total) bar->finish();
  };
}

}  // namespace

LoadedEngine::LoadedEngine(const ModelFlags& flags, const Decorate& decorate,
                           const std::function<void(double)>& on_progress)
    : backend_(make_backend(flags.backend, flags.cpu, flags.kv_cache_dtype)) {
  ops_ = backend_.ops.get();
  if (decorate) {
    decorated_ = decorate(*ops_);
    ops_ = decorated_.get();
  }
  if (flags.check) {
    check_ = std::make_unique<CheckOps>(*ops_, true);
    ops_ = check_.get();
  }
  if (!flags.trace.empty()) {
    trace_ = std::make_unique<TraceOps>(*ops_, flags.trace, flags.trace_filter);
    ops_ = trace_.get();
  }
  EngineOptions options = flags.options;
  options.record = !decorated_ && !check_ && !trace_;  // decorators see single operations only
  options.numerics.sim = flags.sim == "on" || ops_->cache_dtype() == DType::kU8;
  options.numerics.expert_activations =
      parse_activations(flags.expert_activations, ops_->backend_name());
  options.numerics.linear_activations =
      parse_linear_activations(flags.linear_activations, ops_->backend_name());

  const auto start = std::chrono::steady_clock::now();
  const ModelSource source = flags.open();
  name_ = source.name;
  runner_ = std::make_unique<ModelRunner>(
      *ops_, source, options,
      LoadEvents{
          .plan = log_plan,
          .weights =
              [&, bar = progress_on_stderr("loading", "")](std::int64_t done, std::int64_t total) {
                bar(done, total);
                if (on_progress)
                  on_progress(static_cast<double>(done) / static_cast<double>(total));
              },
          .recording = progress_on_stderr("recording", "decode steps")});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const std::string recorded =
      runner_->recorded_steps() == 0
          ? ""
          : fmt::format("{} recorded decode steps in {:.1f} MB; ", runner_->recorded_steps(),
                        static_cast<double>(runner_->recorded_bytes()) / 1e6);
  const bool fp8 = options.numerics.expert_activations == ExpertActivations::kFp8;
  log_info("{}: {}; {}{}ready in {:.2f} s", name_, backend_.description,
           fp8 ? "FP8 expert inputs, for which every expert's scales are exact; " : "", recorded,
           seconds.count());
  if (flags.verbose)
    for (const std::string& choice : ops_->kernel_choices()) log_info("kernels: {}", choice);
}

Tokenizer load_tokenizer(const std::string& model, const V4Config& config) {
  Tokenizer tokenizer = Tokenizer::load(model);
  if (tokenizer.vocab_size() > config.vocab_size)
    fail("{}: tokenizer.json has ids up to {}, config.json a vocab_size of {}", model,
         tokenizer.vocab_size() - 1, config.vocab_size);
  return tokenizer;
}

}  // namespace quatrain::apps
