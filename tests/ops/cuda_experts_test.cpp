// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts on the GPU: the packed layout, every product of a code and a scale, results
// against FP64, bits that depend on nothing but the row, and replays.
#include "backends/cuda/launch/experts_config.h"
#include "backends/cuda/launch/experts_layout.h"
#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

using cuda::PackedRows;
using cuda::PackedShape;

// ---- the layout, without a device ----

TEST(ExpertsLayout, QuadsAreTheDocumentedBits) {
  const auto quads = [](std::array<std::uint32_t, 8> codes) {
    std::pair<std::uint32_t, std::uint32_t> words;
    for (int i = 0; i < 8; ++i) {
      const cuda::QuadBits bits = cuda::quad_bits(i / 4, i % 4, codes[static_cast<std::size_t>(i)]);
      EXPECT_EQ(words.first & bits.even, 0u);
      EXPECT_EQ(words.second & bits.odd, 0u);
      words.first |= bits.even;
      words.second |= bits.odd;
    }
    return words;
  };
  EXPECT_EQ(quads({1, 2, 3, 0, 0, 0, 0, 0}), std::pair(0x0053u, 0x0000u));
  EXPECT_EQ(quads({0, 0, 0, 0, 13, 14, 15, 0}), std::pair(0x0000u, 0x9377u));
  EXPECT_EQ(quads({0, 0, 0, 9, 0, 0, 0, 6}), std::pair(0x6000u, 0x0C00u));
  EXPECT_EQ(quads({0, 0, 0, 6, 0, 0, 0, 9}), std::pair(0x0C00u, 0x6000u));
  EXPECT_EQ(quads({15, 15, 15, 15, 15, 15, 15, 15}), std::pair(0xFFFFu, 0xFFFFu));
}

// As the kernels do: a shift and a mask for three codes of a quad, and for the fourth ones of two.
TEST(ExpertsLayout, QuadsDecodeByShifts) {
  constexpr std::uint32_t kMask = 0x81C0;
  const auto place = [](std::uint32_t code) { return (code & 8u) << 12 | (code & 7u) << 6; };
  std::mt19937 random(3);
  for (int round = 0; round < 10000; ++round) {
    std::uint32_t codes[8], even = 0, odd = 0;
    for (int i = 0; i < 8; ++i) {
      codes[i] = random() % 16;
      const cuda::QuadBits bits = cuda::quad_bits(i / 4, i % 4, codes[i]);
      even |= bits.even;
      odd |= bits.odd;
    }
    const std::uint32_t fourth =
        (even << 1 & 0x9000u) | (odd >> 6 & 0x01B0u) | (even >> 7 & 0x0048u);
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(even << (3 * i) & kMask, place(codes[i]));
      ASSERT_EQ(odd << (3 * i) & kMask, place(codes[4 + i]));
    }
    ASSERT_EQ(fourth & kMask, place(codes[3]));
    ASSERT_EQ(fourth << 3 & kMask, place(codes[7]));
  }
}

TEST(ExpertsLayout, EveryPlaceIsTakenOnce) {
  const PackedShape shape{256, 512};
  std::vector<int> taken(static_cast<std::size_t>(shape.bytes()) * 2);  // by nibble
  for (int row = 0; row < shape.rows; ++row) {
    for (int col = 0; col < shape.cols; ++col) {
      const cuda::CodePlace place = cuda::code_place(shape, row, col);
      ASSERT_EQ(place.words % 8, 0);
      const std::int64_t nibble = place.words * 2 + place.atom * 8 + place.half * 4 + place.member;
      ASSERT_EQ(taken.at(static_cast<std::size_t>(nibble))++, 0);
    }
    for (int block = 0; block < shape.cols / 16; ++block)
      for (int n = 0; n < 2; ++n)
        ASSERT_EQ(
            taken.at(static_cast<std::size_t>(2 * cuda::scale_place(shape, row, block) + n))++, 0);
  }
  EXPECT_EQ(std::count(taken.begin(), taken.end(), 1), static_cast<std::ptrdiff_t>(taken.size()));
}

TEST(ExpertsLayout, PackedScalesBecomeTheScale) {
  for (int code = 0; code < 256; ++code) {
    const auto scale = static_cast<std::uint8_t>(code);
    const float value = e4m3_decode(scale & 0x7Fu);
    const std::uint32_t bf16 = cuda::packed_scale(scale) * 16u + 0x7380u;
    const float decoded = bf16_decode(static_cast<std::uint16_t>(bf16)) * std::exp2(-119.0f);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(decoded));
    } else if (value != 0) {
      EXPECT_EQ(decoded, value);
    }
    EXPECT_EQ(cuda::signed_codes(0x10u, scale), value == 0 ? 0u : code < 128 ? 0x10u : 0x88888898u);
  }
}

TEST(ExpertsConfig, DependsOnTheProblemAndTheChipAlone) {
  const cuda::ChipLimits chip{.multiprocessors = 132, .shared_bytes = 232448};
  const auto config_of = [&](int tokens, int parts, int experts = 256) {
    return cuda::decode_config({.tokens = tokens,
                                .k = 6,
                                .experts = experts,
                                .hidden = 4096,
                                .inner = 2048,
                                .parts = parts},
                               chip);
  };
  for (const int parts : {1, 2})
    for (const int tokens : {1, 4, 8, 9, 16, 32, 64, 65, 256}) {
      const cuda::DecodeConfig c = config_of(tokens, parts);
      SCOPED_TRACE(cuda::describe(c));
      EXPECT_LE(c.at.bytes, chip.shared_bytes);
      EXPECT_EQ(c.blocks, 132);
    }
  EXPECT_EQ(config_of(1, 1).tile_tokens, 8);
  EXPECT_EQ(config_of(8, 2).tile_tokens, 8);
  EXPECT_EQ(config_of(256, 1).tile_tokens, 8);
  EXPECT_EQ(config_of(256, 1, 128).tile_tokens, 16);
  EXPECT_EQ(cuda::decode_max_tokens(6), 256);
  EXPECT_EQ(cuda::decode_max_tokens(16), 96);
  // The most slots, of more experts than any V4 model has.
  EXPECT_LE(cuda::decode_config({.tokens = cuda::decode_max_tokens(8),
                                 .k = 8,
                                 .experts = 512,
                                 .hidden = 8192,
                                 .inner = 4096},
                                chip)
                .at.bytes,
            chip.shared_bytes);
  EXPECT_THROW(cuda::decode_config({.tokens = 1, .k = 1, .experts = 1, .hidden = 64, .inner = 64},
                                   {.multiprocessors = 1, .shared_bytes = 32768}),
               Error);
}

// ---- on the device ----

using CudaExpertsTest = CudaTest;

const MatrixKind& nvfp4() { return kMatrixKinds[3]; }

std::uint8_t byte_at(const std::byte* bytes, std::int64_t i) {
  return static_cast<std::uint8_t>(bytes[i]);
}

// Packs `w` on the host by the index maps.
void pack_on_host(const QuantMatrix& w, PackedRows rows, const PackedShape& shape,
                  std::vector<std::uint8_t>& out) {
  for (int r = 0; r < w.rows; ++r)
    for (int c = 0; c < w.cols; ++c) {
      const int row = cuda::packed_row(rows, r);
      const std::uint8_t scale = byte_at(w.scales, (r * w.cols + c) / 16);
      const std::uint32_t pair = byte_at(w.values, (r * w.cols + c) / 2);
      const std::uint32_t code =
          cuda::signed_codes(c % 2 == 0 ? pair & 15u : pair >> 4, scale) & 15u;
      const cuda::CodePlace place = cuda::code_place(shape, row, c);
      const cuda::QuadBits bits = cuda::quad_bits(place.atom, place.member, code);
      for (int byte = 0; byte < 2; ++byte) {
        const auto at = static_cast<std::size_t>(place.words + place.half * 2 + byte);
        out.at(at) |= static_cast<std::uint8_t>(bits.even >> (8 * byte));
        out.at(at + 4) |= static_cast<std::uint8_t>(bits.odd >> (8 * byte));
      }
      out.at(static_cast<std::size_t>(cuda::scale_place(shape, row, c / 16))) =
          cuda::packed_scale(scale);
    }
}

TEST_F(CudaExpertsTest, PackingFollowsTheLayout) {
  const int hidden = 304, inner = 160;
  RandomMatrix w1(nvfp4(), inner, hidden, 1), w3(nvfp4(), inner, hidden, 2),
      w2(nvfp4(), hidden, inner, 3);
  const auto experts = gpu().make_experts("experts", 2, hidden, inner);
  for (const int e : {1, 0}) gpu().pack_expert(*experts, e, w1.view(), w3.view(), w2.view());
  const auto& packed = static_cast<const CudaExperts&>(*experts);
  const PackedShape first = cuda::first_projection(hidden, inner),
                    second = cuda::second_projection(hidden, inner);
  std::vector<std::uint8_t> wanted(static_cast<std::size_t>(first.bytes()));
  pack_on_host(w1.view(), PackedRows::kGate, first, wanted);
  pack_on_host(w3.view(), PackedRows::kUp, first, wanted);
  for (const std::int64_t e : {0, 1}) {
    std::vector<std::uint8_t> found(wanted.size());
    auto* at = static_cast<std::uint8_t*>(packed.first.data()) + e * first.bytes();
    gpu().download(found.data(), Tensor(at, DType::kU8, {first.bytes()}));
    EXPECT_TRUE(found == wanted) << "gate and up of expert " << e;
  }
  wanted.assign(static_cast<std::size_t>(second.bytes()), 0);
  pack_on_host(w2.view(), PackedRows::kPlain, second, wanted);
  std::vector<std::uint8_t> found(wanted.size());
  gpu().download(found.data(), Tensor(packed.second.data(), DType::kU8, {second.bytes()}));
  EXPECT_TRUE(found == wanted) << "down";
}

// The tokens of a step, and where they go.
struct Routing {
  std::int64_t k = 1;
  std::vector<std::int32_t> ids, slots;
  std::vector<float> weights;
  std::int64_t tokens() const { return static_cast<std::int64_t>(slots.size()); }
};

// A layer on one backend, run on any routing.
class Layer {
 public:
  Layer(Ops& ops, std::int64_t count, std::int64_t hidden, std::int64_t inner)
      : ops_(ops), packed_(ops.make_experts("experts", count, hidden, inner)) {}

  void pack(std::int64_t e, RandomMatrix& w1, RandomMatrix& w3, RandomMatrix& w2) {
    ops_.pack_expert(*packed_, e, w1.view(), w3.view(), w2.view());
  }
  void reserve(std::int64_t rows, std::int64_t k) {
    StepLimits limits = roomy_limits();
    limits.rows = rows;
    limits.experts_per_token = k;
    limits.num_experts = packed_->count;
    limits.hidden_size = packed_->hidden;
    limits.intermediate_size = packed_->intermediate;
    ops_.reserve(limits);
  }
  // Adds to zeros; `replays` more times from a recording, whose outputs must have the same bits.
  std::vector<float> run(const Routing& routing, const std::vector<float>& x,
                         ExpertActivations mode, float limit = 10, int replays = 0) {
    const std::int64_t t = routing.tokens();
    const Ints slots(ops_, {t}, routing.slots), ids(ops_, {t, routing.k}, routing.ids);
    const Floats in(ops_, {t, packed_->hidden}, x), weights(ops_, {t, routing.k}, routing.weights);
    const Floats out(ops_, {t, packed_->hidden},
                     std::vector<float>(static_cast<std::size_t>(t * packed_->hidden)));
    const auto body = [&] {
      ops_.experts({.batch = {.token_ids = slots,
                              .positions = slots,
                              .slots = slots,
                              .first_rows = slots,
                              .block_table = slots},
                    .x = in,
                    .ids = ids,
                    .weights = weights,
                    .w = packed_.get(),
                    .limit = limit,
                    .activations = mode,
                    .out = out});
    };
    in_step(body);
    const std::vector<float> values = out.values();
    if (replays > 0) {
      const auto recording = ops_.record(body);
      for (int i = 0; i < replays; ++i) {
        ops_.zero(out);
        recording->replay();
        EXPECT_TRUE(same_bits(out.values(), values)) << "replay " << i;
      }
    }
    return values;
  }

 private:
  Ops& ops_;
  std::unique_ptr<PackedExperts> packed_;
};

// A matrix of zeros to write single codes into.
RandomMatrix blank(std::int64_t rows, std::int64_t cols) {
  RandomMatrix w(nvfp4(), rows, cols, 1);
  auto* values = const_cast<std::byte*>(w.view().values);
  std::fill(values, values + rows * cols / 2, std::byte{0});
  auto* scales = const_cast<std::byte*>(w.view().scales);
  std::fill(scales, scales + rows * cols / 16, std::byte{0x38});  // 1
  w.view().global_scale = 1;
  return w;
}
void set_code(RandomMatrix& w, std::int64_t row, std::int64_t col, unsigned code) {
  auto& byte = const_cast<std::byte*>(w.view().values)[(row * w.view().cols + col) / 2];
  byte |= static_cast<std::byte>(code << (col % 2 * 4));
}

// Row r of the second projection has scale r and all 16 codes; expert c passes 32 on in its hidden
// column c and zero elsewhere, so token c's output r is 32 times code c times scale r, exactly.
TEST_F(CudaExpertsTest, EveryCodeTimesEveryScaleIsExact) {
  Layer layer(gpu(), 16, 256, 16);
  for (int c = 0; c < 16; ++c) {
    RandomMatrix w1 = blank(16, 256), w3 = blank(16, 256), w2 = blank(256, 16);
    w1.view().global_scale = 16;
    for (int i = 0; i < 16; ++i) set_code(w1, i, 0, 4);  // gate 2 · 16, whose sigmoid is 1
    set_code(w3, c, 0, 2);                               // up 1
    for (int r = 0; r < 256; ++r) {
      for (unsigned code = 0; code < 16; ++code) set_code(w2, r, code, code);
      const_cast<std::byte*>(w2.view().scales)[r] = static_cast<std::byte>(r);
    }
    layer.pack(c, w1, w3, w2);
  }
  layer.reserve(64, 1);
  Routing routing;
  std::vector<float> x(16 * 256);
  for (int t = 0; t < 16; ++t) {
    routing.ids.push_back(t);
    routing.slots.push_back(0);
    routing.weights.push_back(1);
    x[static_cast<std::size_t>(t * 256)] = 1;
  }
  for (const ExpertActivations mode : {ExpertActivations::kBf16, ExpertActivations::kFull}) {
    const std::vector<float> out = layer.run(routing, x, mode, 0);
    for (int code = 0; code < 16; ++code)
      for (int scale = 0; scale < 256; ++scale) {
        const float wanted = e2m1_decode(static_cast<std::uint8_t>(code)) *
                             e4m3_decode(static_cast<std::uint8_t>(scale)) * 32;
        const float found = out[static_cast<std::size_t>(code * 256 + scale)];
        if (std::isnan(wanted)) {
          EXPECT_TRUE(std::isnan(found)) << code << " x " << scale;
        } else {
          EXPECT_EQ(found, wanted) << code << " x " << scale;
        }
      }
  }
}

// Random experts and the FP64 reference of their decoded weights.
class RandomLayer {
 public:
  RandomLayer(CudaOps& ops, std::int64_t count, std::int64_t hidden, std::int64_t inner)
      : hidden_(hidden), inner_(inner), layer_(ops, count, hidden, inner) {
    for (std::int64_t e = 0; e < count; ++e) {
      const auto seed = static_cast<unsigned>(10 + 3 * e);
      auto& w = weights_.emplace_back();
      w.reserve(3);
      w.emplace_back(nvfp4(), inner, hidden, seed);
      w.emplace_back(nvfp4(), inner, hidden, seed + 1);
      w.emplace_back(nvfp4(), hidden, inner, seed + 2);
      // Scales at the edges of their range beside ordinary ones; gate and up differ tenfold.
      for (RandomMatrix& matrix : w)
        for (const int scale : {0x00, 0x01, 0x07, 0x08, 0x7E, 0x80, 0x81, 0xB8})
          const_cast<std::byte*>(matrix.view().scales)[scale % 37] = static_cast<std::byte>(scale);
      w[0].view().global_scale = 0.02f / static_cast<float>(1 + e);
      w[1].view().global_scale = 0.2f;
      w[2].view().global_scale = 0.05f;
      layer_.pack(e, w[0], w[1], w[2]);
    }
  }
  Layer& layer() { return layer_; }
  std::int64_t count() const { return static_cast<std::int64_t>(weights_.size()); }
  std::int64_t hidden() const { return hidden_; }

  // Rows of padding give zeros. With `rounds` inputs and hidden values are rounded to BF16.
  std::vector<double> reference(const Routing& routing, const std::vector<float>& x,
                                bool rounds) const {
    const auto taken = [&](double value) {
      return rounds ? bf16_round(static_cast<float>(value)) : value;
    };
    std::vector<double> out(static_cast<std::size_t>(routing.tokens() * hidden_));
    for (std::size_t e = 0; e < weights_.size(); ++e) {
      std::vector<std::size_t> mine;
      for (std::size_t s = 0; s < routing.ids.size(); ++s)
        if (routing.ids[s] == static_cast<int>(e) &&
            routing.slots[s / static_cast<std::size_t>(routing.k)] >= 0)
          mine.push_back(s);
      std::vector<double> h(mine.size() * static_cast<std::size_t>(inner_));
      for (std::int64_t i = 0; i < inner_ && !mine.empty(); ++i) {
        const std::vector<double> gate_row = weights_[e][0].row(i), up_row = weights_[e][1].row(i);
        for (std::size_t m = 0; m < mine.size(); ++m) {
          const std::size_t from =
              mine[m] / static_cast<std::size_t>(routing.k) * static_cast<std::size_t>(hidden_);
          double gate = 0, up = 0;
          for (std::size_t d = 0; d < gate_row.size(); ++d) {
            gate += gate_row[d] * taken(x[from + d]);
            up += up_row[d] * taken(x[from + d]);
          }
          gate = std::min(gate, 10.0);
          up = std::clamp(up, -10.0, 10.0);
          h[m * static_cast<std::size_t>(inner_) + static_cast<std::size_t>(i)] =
              taken(gate / (1 + std::exp(-gate)) * up);
        }
      }
      for (std::int64_t d = 0; d < hidden_ && !mine.empty(); ++d) {
        const std::vector<double> row = weights_[e][2].row(d);
        for (std::size_t m = 0; m < mine.size(); ++m) {
          double sum = 0;
          for (std::size_t i = 0; i < row.size(); ++i) sum += row[i] * h[m * row.size() + i];
          const std::size_t token = mine[m] / static_cast<std::size_t>(routing.k);
          out[token * static_cast<std::size_t>(hidden_) + static_cast<std::size_t>(d)] +=
              routing.weights[mine[m]] * sum;
        }
      }
    }
    return out;
  }

 private:
  std::int64_t hidden_, inner_;
  std::vector<std::vector<RandomMatrix>> weights_;
  Layer layer_;
};

// counts[e] tokens choose expert e; the last choice of each token is the last expert.
Routing routing_with(const std::vector<int>& counts, unsigned seed) {
  Routing routing{.k = 2, .ids = {}, .slots = {}, .weights = {}};
  Random random(seed);
  for (std::size_t e = 0; e < counts.size(); ++e)
    for (int i = 0; i < counts[e]; ++i) {
      routing.slots.push_back(0);
      for (const std::size_t id : {e, counts.size()}) {
        routing.ids.push_back(static_cast<int>(id));
        routing.weights.push_back(random.uniform(0.1f, 1.0f));
      }
    }
  return routing;
}

double relative_l2(const std::vector<float>& found, const std::vector<double>& wanted) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    difference += (found[i] - wanted[i]) * (found[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / norm);
}

// Counts around the widths of a pass; the last expert has all tokens.
TEST_F(CudaExpertsTest, MatchFp64ForAnyCounts) {
  RandomLayer random(gpu(), 7, 528, 272);
  random.layer().reserve(700, 2);
  unsigned seed = 50;
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{0, 1, 0, 0, 0, 0},
                                                                      {0, 1, 2, 0, 3, 1},
                                                                      {7, 0, 0, 0, 0, 0},
                                                                      {8, 0, 1, 0, 0, 0},
                                                                      {9, 1, 0, 15, 16, 17},
                                                                      {31, 0, 32, 33, 0, 1},
                                                                      {0, 200, 0, 0, 0, 50},
                                                                      {255, 1, 256, 0, 130, 15},
                                                                      {127, 128, 129, 0, 1, 7},
                                                                      {88, 65, 73, 81, 57, 49},
                                                                      {33, 17, 96, 105, 113, 121},
                                                                      {0, 0, 0, 300, 0, 0}}) {
    Routing routing = routing_with(counts, ++seed);
    std::vector<float> x = Random(++seed).normals(routing.tokens() * random.hidden());
    // Every fifth row is padding, poisoned with NaN.
    for (std::size_t t = 4; t < routing.slots.size(); t += 5) {
      routing.slots[t] = -1;
      std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(t) * random.hidden(), random.hidden(),
                  kNaN);
    }
    for (const auto& [mode, tolerance] :
         {std::pair(ExpertActivations::kFull, 2e-5), std::pair(ExpertActivations::kBf16, 2e-3)}) {
      const std::vector<double> wanted =
          random.reference(routing, x, mode == ExpertActivations::kBf16);
      const std::vector<float> out = random.layer().run(routing, x, mode);
      for (std::size_t i = 0; i < out.size(); ++i)
        if (routing.slots[i / static_cast<std::size_t>(random.hidden())] < 0) {
          ASSERT_EQ(out[i], 0.0f) << "padding was written";
        }
      const double error = relative_l2(out, wanted);
      EXPECT_LE(error, tolerance) << routing.tokens() << " tokens, mode " << static_cast<int>(mode);
    }
  }
}

TEST_F(CudaExpertsTest, ARowHasTheSameBitsInAnyBatchAndReplay) {
  RandomLayer random(gpu(), 24, 1040, 528);
  random.layer().reserve(256, 3);
  for (const ExpertActivations mode : {ExpertActivations::kFull, ExpertActivations::kBf16}) {
    Routing all{.k = 3, .ids = {}, .slots = {}, .weights = {}};
    Random source(5);
    const std::int64_t tokens = 64;
    for (std::int64_t t = 0; t < tokens; ++t) {
      all.slots.push_back(0);
      const auto order = source.permutation(24);
      for (std::size_t i = 0; i < 3; ++i) {
        all.ids.push_back(t % 2 == 0 ? order[i] : static_cast<int>(i));  // half on three experts
        all.weights.push_back(source.uniform(0.1f, 1.0f));
      }
    }
    const std::vector<float> x = source.normals(tokens * random.hidden());
    const std::vector<float> together = random.layer().run(all, x, mode, 10, 100);
    for (const std::int64_t count : {1, 3, 8, 17, 33})
      for (const std::int64_t first : {std::int64_t{0}, tokens - count}) {
        Routing some{.k = 3,
                     .ids = rows_of(all.ids, first, count, 3),
                     .slots = rows_of(all.slots, first, count, 1),
                     .weights = rows_of(all.weights, first, count, 3)};
        EXPECT_TRUE(same_bits(
            random.layer().run(some, rows_of(x, first, count, random.hidden()), mode, 10, 3),
            rows_of(together, first, count, random.hidden())))
            << count << " tokens from " << first;
      }
  }
}

// V4-Flash's and V4-Pro's matrices, so that tiles are cut between blocks as they are there.
TEST_F(CudaExpertsTest, MatchFp64AtModelSizes) {
  const std::pair<int, int> sizes[] = {{4096, 2048}, {7168, 3072}};
  for (const auto& [hidden, inner] : sizes) {
    RandomLayer random(gpu(), 3, hidden, inner);
    random.layer().reserve(64, 2);
    for (const std::vector<int>& counts : {std::vector<int>{1, 0}, std::vector<int>{2, 7}}) {
      const Routing routing = routing_with(counts, 3);
      const std::vector<float> x = Random(4).normals(routing.tokens() * hidden);
      EXPECT_LE(relative_l2(random.layer().run(routing, x, ExpertActivations::kFull),
                            random.reference(routing, x, false)),
                2e-5);
      EXPECT_LE(relative_l2(random.layer().run(routing, x, ExpertActivations::kBf16),
                            random.reference(routing, x, true)),
                2e-3);
    }
  }
}

}  // namespace
}  // namespace quatrain::testing
