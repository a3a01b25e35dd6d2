// SPDX-License-Identifier: Apache-2.0
// CheckOps, CostOps, TraceOps, GuardOps and TapOps around the CPU backend.
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>

#include "ops/check_ops.h"
#include "ops/cost_ops.h"
#include "ops/guard_ops.h"
#include "ops/tap_ops.h"
#include "ops/trace_ops.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

bool mentions(const std::string& text, std::initializer_list<const char*> parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [&](const char* part) { return text.find(part) != text.npos; });
}

// A tensor of FP32 (or I32) that nobody reads: shapes are refused before any data is touched.
Tensor f32(std::initializer_list<std::int64_t> shape) {
  static float nothing[1];
  return Tensor(nothing, DType::kF32, shape);
}
Tensor i32(std::initializer_list<std::int64_t> shape) {
  static std::int32_t nothing[1];
  return Tensor(nothing, DType::kI32, shape);
}
Batch batch_of(std::int64_t rows) {
  return {.token_ids = i32({rows}),
          .positions = i32({rows}),
          .slots = i32({rows}),
          .first_rows = i32({rows}),
          .block_table = i32({2, 4})};
}

class Checked : public ::testing::Test {
 protected:
  CpuOps cpu{2};
  CheckOps ops{cpu, true};

  void expect_refused(const std::function<void()>& action,
                      std::initializer_list<const char*> parts) {
    const std::string message = refusal(action);
    EXPECT_TRUE(mentions(message, parts)) << message;
  }
};

TEST_F(Checked, RefusesShapesOfDenseOperations) {
  RandomMatrix matrix(kMatrixKinds[0], 6, 8, 1);
  const auto w = cpu.pack_linear(matrix.view());
  expect_refused(
      [&] {
        ops.linear({.x = f32({3, 7}), .w = w.get(), .out = f32({3, 6})});
      },
      {"linear", "x", "[ 3 8 ]", "F32 [3, 7]"});
  expect_refused(
      [&] {
        ops.linear({.x = f32({3, 8}), .w = w.get(), .out = f32({2, 6})});
      },
      {"linear", "out", "[ 3 6 ]", "F32 [2, 6]"});
  expect_refused(
      [&] {
        ops.grouped_linear({.x = f32({3, 4, 8}), .w = w.get(), .out = f32({3, 4, 1})});
      },
      {"grouped_linear", "6 rows in 4 groups"});
  expect_refused(
      [&] {
        ops.grouped_linear({.x = f32({3, 2, 8}), .w = w.get(), .out = f32({3, 2, 4})});
      },
      {"grouped_linear", "out", "[ 3 2 3 ]"});
  expect_refused(
      [&] {
        ops.embed({.ids = i32({3}), .table = f32({9, 4}), .streams = f32({3, 2, 5})});
      },
      {"embed", "streams", "[ 3 2 4 ]"});
  expect_refused(
      [&] {
        ops.swiglu({.gate = f32({3, 4}), .up = f32({3, 5}), .out = f32({3, 4})});
      },
      {"swiglu", "up", "[ 3 4 ]"});
  expect_refused(
      [&] {
        ops.gather_rows({.x = f32({3, 4}), .rows = i32({2}), .out = f32({2, 5})});
      },
      {"gather_rows"});
  expect_refused(
      [&] {
        ops.add_to_streams({.e = f32({3, 4}), .streams = f32({3, 2, 5})});
      },
      {"add_to_streams", "e", "[ 3 5 ]"});
}

TEST_F(Checked, RefusesShapesOfNormsAndHyperConnections) {
  expect_refused(
      [&] {
        ops.rms_norm({.x = f32({3, 4}), .weight = f32({5}), .out = f32({3, 4})});
      },
      {"rms_norm", "weight", "[ 4 ]", "F32 [5]"});
  expect_refused(
      [&] {
        ops.rms_norm({.x = f32({3, 4}), .weight = {}, .out = f32({3, 5})});
      },
      {"rms_norm"});
  expect_refused(
      [&] {
        ops.rope({.x = f32({3, 4}), .positions = i32({2}), .inv_freq = f32({2})});
      },
      {"rope", "positions", "[ 3 ]"});
  expect_refused(
      [&] {
        ops.rope({.x = f32({3, 4}), .positions = i32({3}), .inv_freq = f32({3})});
      },
      {"rope", "3 pairs in rows of 4"});
  expect_refused(
      [&] {
        ops.round_to_grid({.x = f32({3, 4}), .grid = CacheGrid::kLatent, .rope_dim = 4});
      },
      {"round_to_grid"});
  expect_refused(
      [&] {
        ops.round_to_grid({.x = f32({3, 12}), .grid = CacheGrid::kIndex});
      },
      {"round_to_grid", "power of two", "12"});
  const auto pre = [&](HcWeights w, Tensor comb) {
    ops.hc_pre({.streams = f32({3, 2, 5}),
                .weights = w,
                .sinkhorn_iters = 2,
                .out = f32({3, 5}),
                .post = f32({3, 2}),
                .comb = comb});
  };
  expect_refused(
      [&] {
        pre({.fn = f32({8, 11}), .base = f32({8}), .scale = f32({3})}, f32({3, 2, 2}));
      },
      {"hc_pre", "fn", "[ 8 10 ]"});
  expect_refused(
      [&] {
        pre({.fn = f32({8, 10}), .base = f32({8}), .scale = f32({3})}, f32({3, 4}));
      },
      {"hc_pre", "comb", "[ 3 2 2 ]"});
  expect_refused(
      [&] {
        ops.hc_post({.f = f32({3, 5}),
                     .post = f32({3, 3}),
                     .comb = f32({3, 2, 2}),
                     .streams = f32({3, 2, 5})});
      },
      {"hc_post", "post", "[ 3 2 ]"});
  expect_refused(
      [&] {
        ops.hc_head({.streams = f32({3, 2, 5}),
                     .weights = {.fn = f32({2, 10}), .base = f32({2}), .scale = f32({3})},
                     .out = f32({3, 5})});
      },
      {"hc_head", "scale", "[ 1 ]"});
}

TEST_F(Checked, RefusesShapesOfAttention) {
  op::Attend attend{.batch = batch_of(3),
                    .q = f32({3, 2, 8}),
                    .latents = f32({3, 8}),
                    .ring = f32({2, 16, 8}),
                    .entries = {.rows = f32({32, 8}), .ratio = 4},
                    .selected = i32({3, 5}),
                    .sinks = f32({2}),
                    .inv_freq = {},
                    .out = f32({3, 2, 8})};
  attend.sinks = f32({3});
  expect_refused([&] { ops.attend(attend); }, {"attend", "sinks", "[ 2 ]"});
  attend.sinks = f32({2});
  attend.entries.ratio = 5;
  expect_refused([&] { ops.attend(attend); }, {"attend", "ratio 5"});
  attend.entries = {.rows = f32({32, 9}), .ratio = 4};
  expect_refused([&] { ops.attend(attend); }, {"attend", "pool", "8", "F32 [32, 9]"});
  attend.entries = {.rows = f32({32, 8}), .ratio = 4};
  attend.batch = batch_of(4);
  expect_refused([&] { ops.attend(attend); }, {"attend", "token_ids", "[ 3 ]", "I32 [4]"});

  expect_refused(
      [&] {
        ops.kv_store({.batch = batch_of(3), .latents = f32({3, 8}), .ring = f32({2, 16, 9})});
      },
      {"kv_store", "ring", "[ 2 16 8 ]"});
  expect_refused(
      [&] {
        ops.index_select({.batch = batch_of(3),
                          .q = f32({3, 2, 8}),
                          .weights = f32({3, 3}),
                          .keys = {.rows = f32({32, 8}), .ratio = 4},
                          .selected = i32({3, 5})});
      },
      {"index_select", "weights", "[ 3 2 ]"});
  op::Compress compress{.batch = batch_of(3),
                        .values = f32({3, 16}),
                        .scores = f32({3, 16}),
                        .bias = f32({4, 16}),
                        .norm_weight = f32({8}),
                        .inv_freq = f32({2}),
                        .state = {.values = f32({2, 8, 16}), .scores = f32({2, 8, 16})},
                        .entries = {.rows = f32({32, 8}), .ratio = 4}};
  compress.values = f32({3, 8});  // forgot that windows overlap
  expect_refused([&] { ops.compress(compress); }, {"compress", "values", "[ 3 16 ]"});
  compress.values = f32({3, 16});
  compress.state.scores = f32({2, 4, 16});
  expect_refused([&] { ops.compress(compress); }, {"compress", "state.scores", "[ 2 8 16 ]"});
}

TEST_F(Checked, RefusesShapesOfMoe) {
  op::Route route{.logits = f32({3, 9}),
                  .bias = f32({9}),
                  .hash_table = {},
                  .token_ids = i32({3}),
                  .ids = i32({3, 2}),
                  .weights = f32({3, 2})};
  route.bias = f32({8});
  expect_refused([&] { ops.route(route); }, {"route", "bias", "[ 9 ]"});
  route.bias = {};
  expect_refused([&] { ops.route(route); }, {"route", "bias", "hash_table"});
  route.hash_table = i32({20, 3});
  expect_refused([&] { ops.route(route); }, {"route", "hash_table", "[ 20 2 ]"});

  const auto experts = cpu.make_experts("some.experts", 4, 8, 6);
  expect_refused(
      [&] {
        ops.experts({.batch = batch_of(3),
                     .x = f32({3, 9}),
                     .ids = i32({3, 2}),
                     .weights = f32({3, 2}),
                     .w = experts.get(),
                     .out = f32({3, 8})});
      },
      {"experts", "x", "[ 3 8 ]"});
  expect_refused(
      [&] {
        ops.experts({.batch = batch_of(3),
                     .x = f32({3, 8}),
                     .ids = i32({3, 2}),
                     .weights = f32({3, 1}),
                     .w = experts.get(),
                     .out = f32({3, 8})});
      },
      {"experts", "weights", "[ 3 2 ]"});
}

TEST_F(Checked, NamesTheFirstValueThatIsNotFinite) {
  for (const float bad : {kNaN, INFINITY}) {
    std::vector<float> gate(12, 1);
    gate[7] = bad;
    const Floats g(cpu, {3, 4}, gate), u(cpu, {3, 4}, std::vector<float>(12, 1)), out(cpu, {3, 4});
    ops.scope("ffn", 5);
    expect_refused([&] { ops.swiglu({.gate = g, .up = u, .out = out}); },
                   {"layer 5", "ffn", "swiglu", "element 7", "out", "F32 [3, 4]"});
    CheckOps shapes_only(cpu);
    EXPECT_NO_THROW(shapes_only.swiglu({.gate = g, .up = u, .out = out}));
  }
}

TEST_F(Checked, LetsARightCallThroughInsideAStep) {
  const Floats g(cpu, {3, 4}, std::vector<float>(12, 1)), out(cpu, {3, 4});
  in_step([&] { ops.swiglu({.gate = g, .up = g, .limit = 10, .out = out}); });
  EXPECT_NEAR(out.values()[3], 1 / (1 + std::exp(-1.0)), 1e-6);
}

// ---- CostOps ----

TEST(Cost, OfALinearIsItsWeightAndActivations) {
  CpuOps cpu(1);
  CostOps cost(cpu, 1000);
  RandomMatrix matrix(kMatrixKinds[3], 24, 32, 1);  // NVFP4
  const auto w = cpu.pack_linear(matrix.view());
  cost.linear({.x = f32({5, 32}), .w = w.get(), .out = f32({5, 24})});
  EXPECT_EQ(cost.total().flops, 2.0 * 5 * 32 * 24);
  EXPECT_EQ(cost.total().bytes, 4.0 * (5 * 32 + 5 * 24) + 24 * 32 / 2 + 24 * 32 / 16);
  cost.linear({.x = f32({5, 32}), .w = w.get(), .out = f32({5, 24})});
  EXPECT_EQ(cost.total().flops, 2 * 2.0 * 5 * 32 * 24) << "calls add up";
}

TEST(Cost, ProductsOfFp8InputsAreFp8WhereTheWeightsAre) {
  CpuOps cpu(1);
  RandomMatrix fp8(kMatrixKinds[7], 128, 128, 1);
  RandomMatrix bf16(kMatrixKinds[1], 128, 128, 1);
  const auto a = cpu.pack_linear(fp8.view()), b = cpu.pack_linear(bf16.view());
  const Tensor x = f32({5, 128}), out = f32({5, 128});
  const double flops = 2.0 * 5 * 128 * 128;
  op::Linears call{.x = x, .activations = LinearActivations::kFp8};
  call.add(*a, out);
  call.add(*b, out);
  EXPECT_EQ(cost_of(call, 10).flops, 2 * flops);
  EXPECT_EQ(cost_of(call, 10).fp8_flops, flops);
  op::Linear one{.x = x, .w = a.get(), .out = out, .activations = LinearActivations::kF16};
  EXPECT_EQ(cost_of(one, 10).fp8_flops, 0);
  one.activations = LinearActivations::kFp8;
  EXPECT_EQ(cost_of(one, 10).fp8_flops, flops);
  one.precise = true;
  EXPECT_EQ(cost_of(one, 10).fp8_flops, 0);
}

TEST(Cost, OfExpertsCountsDistinctExperts) {
  CpuOps cpu(1);
  CostOps cost(cpu, 1000);
  auto w = cpu.make_experts("experts", 8, 32, 16);
  RandomMatrix up(kMatrixKinds[1], 16, 32, 1), down(kMatrixKinds[1], 32, 16, 2);
  for (int e = 0; e < 8; ++e) cpu.pack_expert(*w, e, up.view(), up.view(), down.view());
  const double all = 8 * 3 * 16 * 32 * 2;  // BF16
  EXPECT_EQ(static_cast<double>(w->bytes), all);
  cost.experts({.batch = batch_of(1),
                .x = f32({1, 32}),
                .ids = i32({1, 2}),
                .weights = f32({1, 2}),
                .w = w.get(),
                .out = f32({1, 32})});
  EXPECT_EQ(cost.total().flops, 2.0 * 2 * 3 * 32 * 16);  // 2 experts, 3 products
  EXPECT_DOUBLE_EQ(cost.total().bytes, 4.0 * 3 * 32 + all * 2 / 8);

  CostOps two(cpu, 1000);
  two.experts({.batch = batch_of(2),
               .x = f32({2, 32}),
               .ids = i32({2, 2}),
               .weights = f32({2, 2}),
               .w = w.get(),
               .out = f32({2, 32})});
  // 8·(1 − (3/4)²) = 3.5 experts
  EXPECT_DOUBLE_EQ(two.total().bytes, 2 * 4.0 * 3 * 32 + all * 3.5 / 8);
}

TEST(Cost, OfAttentionCountsVisibleKeys) {
  CpuOps cpu(1);
  op::Attend call{.batch = batch_of(3),
                  .q = f32({3, 2, 8}),
                  .latents = f32({3, 8}),
                  .ring = f32({2, 128, 8}),
                  .entries = {},
                  .selected = {},
                  .sinks = f32({2}),
                  .inv_freq = {},
                  .out = f32({3, 2, 8})};
  // `keys` that a row sees, `read` by all: rows of one sequence share what they read, and three
  // rows belong to two sequences at least.
  const auto expect_keys = [&](double keys, double read, std::int64_t context) {
    CostOps cost(cpu, context);
    cost.attend(call);
    EXPECT_EQ(cost.total().flops, 3 * 2 * 8 * 4 * keys);
    EXPECT_EQ(cost.total().bytes, 4.0 * (2 * 48 + 24) + read * 8 * 4);
  };
  expect_keys(128, 2 * 128, 1000);
  expect_keys(50, 2 * 50, 50);
  call.entries = {.rows = f32({64, 8}), .ratio = 128};
  expect_keys(128 + 7, 2 * (128 + 7), 1000);
  call.entries.ratio = 4;
  call.selected = i32({3, 64});
  expect_keys(128 + 64, 2 * 128 + 3 * 64, 1000);
  expect_keys(100 + 25, 2 * (100 + 25), 100);
}

TEST(Cost, OfRotationCountsTheRotatedColumns) {
  CpuOps cpu(1);
  CostOps cost(cpu, 10);
  cost.rope({.x = f32({3, 2, 8}), .positions = i32({3}), .inv_freq = f32({2})});
  EXPECT_EQ(cost.total().bytes, 2.0 * 3 * 2 * 4 * 4);
  EXPECT_EQ(cost.total().flops, 3.0 * 3 * 2 * 4);
}

TEST(Cost, OfCompressionCountsTheWindowsThatClose) {
  CpuOps cpu(1);
  // 8 rows close two CSA windows of 8 slots, or a sixteenth of an HCA window of 128.
  for (const std::int64_t ratio : {4, 128}) {
    const std::int64_t channels = ratio == 4 ? 16 : 8;
    CostOps cost(cpu, 10);
    cost.compress({.batch = batch_of(8),
                   .values = f32({8, channels}),
                   .scores = f32({8, channels}),
                   .bias = f32({ratio, channels}),
                   .norm_weight = f32({8}),
                   .inv_freq = f32({2}),
                   .state = {},
                   .entries = {.rows = f32({64, 8}), .ratio = ratio}});
    const double windows = ratio == 4 ? 2 : 1.0 / 16, slots = ratio == 4 ? 8 : 128;
    EXPECT_DOUBLE_EQ(cost.total().bytes, 2.0 * 2 * 8 * static_cast<double>(channels) * 4 +
                                             windows * (slots * 8 * 2 * 4 + 8 * 4));
  }
}

TEST(Cost, RunsNoOperation) {
  CpuOps cpu(1);
  CostOps cost(cpu, 10);
  const Floats out(cpu, {1, 4});
  cost.swiglu({.gate = out, .up = out, .out = out});
  for (const float v : out.values()) EXPECT_TRUE(std::isnan(v));
}

// ---- TraceOps, TapOps, GuardOps ----

class Folder {
 public:
  Folder()
      : path(std::filesystem::temp_directory_path() / fmt::format("quatrain-trace-{}", getpid())) {}
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

TEST(Trace, FilesAndIndexReloadToTheSameValues) {
  const Folder folder;
  CpuOps cpu(2);
  RandomMatrix matrix(kMatrixKinds[0], 6, 8, 1);
  const auto w = cpu.pack_linear(matrix.view());
  cpu.reserve(roomy_limits());
  const Floats x(cpu, {3, 8}, Random(1).normals(24)), y(cpu, {3, 6}), gated(cpu, {3, 6});
  std::vector<float> first;
  {
    TraceOps trace(cpu, folder.path);
    const StepGuard guard("step");  // tracing may allocate inside a step
    trace.scope("embed", -1);       // begins a step
    trace.scope("attn", 3);
    trace.linear({.x = x, .w = w.get(), .out = y});
    trace.swiglu({.gate = y, .up = y, .out = gated});
    const StepGuardPause pause(nullptr);
    first = y.values();
    trace.scope("embed", -1);
    trace.scope("head", -1);
    trace.linear({.x = x, .w = w.get(), .out = y});
  }
  std::ifstream index(folder.path / "index.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(index, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0]["file"], "s0000.l03.attn.000-linear.out.f32");
  EXPECT_EQ(lines[1]["file"], "s0000.l03.attn.001-swiglu.out.f32");
  EXPECT_EQ(lines[2]["file"], "s0001.l-1.head.000-linear.out.f32");
  EXPECT_EQ(lines[0]["dtype"], "F32");
  EXPECT_EQ(lines[0]["shape"], (std::vector<int>{3, 6}));
  EXPECT_EQ(lines[0]["weight"], "random.F32");
  EXPECT_EQ(lines[1]["weight"], "");
  for (const auto& [line, values] :
       {std::pair(lines[0], first), std::pair(lines[1], gated.values())}) {
    std::ifstream file(folder.path / line["file"].get<std::string>(), std::ios::binary);
    std::vector<float> loaded(values.size() + 1);
    file.read(reinterpret_cast<char*>(loaded.data()),
              static_cast<std::streamsize>(loaded.size() * sizeof(float)));
    EXPECT_EQ(file.gcount(), static_cast<std::streamsize>(values.size() * sizeof(float)));
    loaded.pop_back();
    EXPECT_TRUE(same_bits(loaded, values));
  }
}

TEST(Trace, FilterChoosesOperationsAndKeepsTheirNumbers) {
  const Folder folder;
  CpuOps cpu(1);
  const Floats x(cpu, {1, 4}, {1, 2, 3, 4}), y(cpu, {1, 4});
  {
    TraceOps trace(cpu, folder.path, "norm");
    trace.scope("embed", -1);
    trace.scope("ffn", 12);
    trace.swiglu({.gate = x, .up = x, .out = y});
    trace.rms_norm({.x = x, .weight = {}, .out = y});
  }
  EXPECT_TRUE(std::filesystem::exists(folder.path / "s0000.l12.ffn.001-rms_norm.out.f32"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path), {}), 2);
}

TEST(Trace, FolderThatCannotBeMadeIsAnError) {
  const Folder folder;
  std::ofstream(folder.path) << "a file";
  CpuOps cpu(1);
  EXPECT_ANY_THROW(TraceOps(cpu, folder.path / "sub"));
}

TEST(Tap, KeepsTheStreamsAfterEachLayerAndTheChosenExperts) {
  CpuOps cpu(1);
  TapOps tap(cpu);
  const Floats f(cpu, {2, 3}, Random(1).normals(6)), post(cpu, {2, 2}, Random(2).normals(4));
  const Floats comb(cpu, {2, 2, 2}, Random(3).normals(8));
  const Floats streams(cpu, {2, 2, 3}, Random(4).normals(12));
  tap.scope("attn", 1);
  tap.hc_post({.f = f, .post = post, .comb = comb, .streams = streams});
  EXPECT_TRUE(tap.streams.empty()) << "only the second site ends a layer";
  tap.scope("ffn", 1);
  tap.hc_post({.f = f, .post = post, .comb = comb, .streams = streams});
  EXPECT_TRUE(same_bits(tap.streams[1], streams.values()));

  // The next layer's first site may be what mixes in this layer's last output.
  const Floats fn(cpu, {8, 6}, Random(5).normals(48)), base(cpu, {8}, Random(6).normals(8));
  const Floats scale(cpu, {3}, {1, 1, 1}), weight(cpu, {3}, {1, 1, 1}), out(cpu, {2, 3});
  tap.scope("attn", 3);
  tap.hc_post_pre_norm({.post = {.f = f, .post = post, .comb = comb, .streams = streams},
                        .next = {.pre = {.streams = streams,
                                         .weights = {.fn = fn, .base = base, .scale = scale},
                                         .sinkhorn_iters = 2,
                                         .hc_eps = 1e-6f,
                                         .norm_eps = 1e-6f,
                                         .out = out,
                                         .post = post,
                                         .comb = comb},
                                 .norm_weight = weight,
                                 .eps = 1e-6f}});
  EXPECT_TRUE(same_bits(tap.streams[2], streams.values()));
}

using GuardDeathTest = ::testing::Test;

// A backend that allocates in an operation, as a mistake would.
class LeakyOps final : public Interceptor {
 public:
  using Interceptor::Interceptor;
  std::vector<float> memory;

 protected:
  void before(const OpCall&) override { memory.resize(memory.size() + 1000); }
};

TEST(GuardDeathTest, NamesTheOperationThatAllocated) {
#ifdef QUATRAIN_SANITIZED
  GTEST_SKIP() << "sanitizers bring their own operator new";
#endif
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  CpuOps cpu(1);
  LeakyOps leaky(cpu);
  GuardOps guarded(leaky);
  const Floats x(cpu, {1, 4}, {1, 2, 3, 4});
  EXPECT_DEATH(in_step([&] { guarded.swiglu({.gate = x, .up = x, .out = x}); }),
               "'swiglu' allocated");
}

}  // namespace
}  // namespace quatrain::testing
