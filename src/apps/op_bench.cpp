// SPDX-License-Identifier: Apache-2.0
#include "apps/op_bench.h"

#include <algorithm>

#include "apps/bench_report.h"
#include "core/codec.h"
#include "core/random.h"

namespace quatrain::apps {
namespace {

constexpr double kReplayMicroseconds = 1000;
constexpr double kMostRounds = 64;

}  // namespace

std::int64_t OpBench::copies(std::int64_t bytes) const {
  constexpr std::int64_t kMost = 128;
  return std::clamp<std::int64_t>((cycle_bytes_ + bytes - 1) / bytes, 1, kMost);
}

Tensor OpBench::make(DType dtype, std::initializer_list<std::int64_t> shape, float deviation) {
  const Tensor view(nullptr, dtype, shape);
  memory_.push_back(ops_.allocate(view.bytes()));
  const Tensor tensor(memory_.back().data(), dtype, shape);
  if (dtype == DType::kI32) {
    ops_.zero(tensor);
    return tensor;
  }
  // A list of numbers, repeated: contents only need to be no zeros.
  constexpr std::int64_t kList = (std::int64_t{1} << 18) + 17;
  const std::int64_t count = std::min(kList, view.elements());
  std::vector<float> wide(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i)
    wide[static_cast<std::size_t>(i)] = deviation * random_normal(random_word(seed_, i));
  ++seed_;
  std::vector<std::uint16_t> narrow;
  if (dtype == DType::kBF16 || dtype == DType::kF16)
    for (const float x : wide)
      narrow.push_back(dtype == DType::kBF16 ? bf16_encode(x) : f16_encode(x));
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(dtype == DType::kU8 ? count : 0));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(0x38 | (i * 5 % 8));  // finite in every packed format
  const void* data = dtype == DType::kF32 ? static_cast<const void*>(wide.data())
                     : narrow.empty()     ? static_cast<const void*>(bytes.data())
                                          : narrow.data();
  const Tensor flat = tensor.reshaped({tensor.elements()});
  for (std::int64_t at = 0; at < flat.dim(0); at += count)
    ops_.upload(flat.rows(at, std::min(count, flat.dim(0) - at)), data);
  return tensor;
}

Tensor OpBench::make_ints(std::initializer_list<std::int64_t> shape,
                          const std::function<std::int64_t(std::int64_t)>& value) {
  const Tensor tensor = make(DType::kI32, shape);
  std::vector<std::int32_t> values(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::int32_t>(value(static_cast<std::int64_t>(i)));
  ops_.upload(tensor, values.data());
  return tensor;
}

Batch OpBench::batch(std::int64_t rows, std::int64_t slots, std::int64_t context,
                     std::int64_t first) {
  const bool together = slots == 1;
  const std::int64_t blocks = (context + kBlockTokens - 1) / kBlockTokens;
  return {.token_ids = make_ints({rows}, [](std::int64_t i) { return i; }),
          .positions = make_ints({rows},
                                 [&](std::int64_t i) {
                                   return together ? std::max(context - rows, std::int64_t{0}) + i
                                                   : context - 1;
                                 }),
          .slots = make_ints({rows}, [&](std::int64_t i) { return (first + i) % slots; }),
          .first_rows = make_ints({rows}, [&](std::int64_t i) { return together ? 0 : i; }),
          .block_table = make_ints({slots, blocks}, [](std::int64_t i) { return i; })};
}

double OpBench::microseconds(const std::vector<Call>& calls) {
  const auto clock = ops_.make_clock(repetitions_ + 2);
  std::size_t rounds = 1;  // through the list in one pass
  const auto pass = [&] {
    for (std::size_t round = 0; round < rounds; ++round)
      for (const Call& call : calls) call();
  };
  const auto interval = [&] {
    clock->restart();
    clock->mark();
    pass();
    clock->mark();
    return clock->intervals().front();
  };
  interval();  // before anything counts, and before recording
  std::unique_ptr<Ops::Recording> recording;
  if (ops_.can_record()) {
    // Long enough that the launch of a replay does not count.
    const double once = std::max(interval(), 1.0);
    rounds = static_cast<std::size_t>(std::clamp(kReplayMicroseconds / once, 1.0, kMostRounds));
    recording = ops_.record(pass);
  }
  // Passes are issued without waiting, so that a device never waits for the host between them; the
  // first one, which it does wait for, does not count.
  clock->restart();
  clock->mark();
  for (int r = 0; r <= repetitions_; ++r) {
    if (recording)
      recording->replay();
    else
      pass();
    clock->mark();
  }
  std::vector<double> times = clock->intervals();
  times.erase(times.begin());
  return spread_of(std::move(times)).median / static_cast<double>(rounds * calls.size());
}

}  // namespace quatrain::apps
