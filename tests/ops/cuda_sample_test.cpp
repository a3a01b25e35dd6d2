// SPDX-License-Identifier: Apache-2.0
// The sampler on the device draws exactly what the sampler on the host draws.
#include "ops/cuda_compare.h"
#include "support/sample_harness.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kModelVocab = 129280;

class CudaSample : public CudaTest {
 protected:
  void compare(std::int64_t rows, std::int64_t vocab, unsigned cases) {
    gpu().reserve({.vocab_size = vocab});
    for (unsigned seed = 0; seed < cases; ++seed) {
      SampleCase c(rows, vocab, seed + static_cast<unsigned>(vocab));
      if (rows > 2) c.slots[1] = -1;
      c.expect_defined_results(gpu());
      if (HasFatalFailure()) return;
    }
  }
};

// Vocabularies around the number of blocks and threads that share a row; 9,900 rows.
TEST_F(CudaSample, SmallRowsAreTheDefinition) {
  for (const std::int64_t vocab : {1, 2, 7, 8, 9, 61, 500, 1024, 1025, 8191, 8200})
    compare(100, vocab, 9);
}

TEST_F(CudaSample, ModelRowsAreTheDefinition) { compare(64, kModelVocab, 8); }

TEST_F(CudaSample, LongestRowsAreTheDefinition) { compare(4, 393216, 2); }

TEST_F(CudaSample, TooLongRowsAreRefused) {
  EXPECT_THROW(gpu().reserve({.vocab_size = 393217}), Error);
}

// All logits equal: every search goes down to the digits of the id.
TEST_F(CudaSample, FlatRows) {
  gpu().reserve({.vocab_size = 5000});
  SampleCase c(40, 5000, 3);
  std::fill(c.logits.begin(), c.logits.end(), 0.25f);
  c.expect_defined_results(gpu());
}

// Neighbouring floats fall into one bin of everything but the last digit.
TEST_F(CudaSample, RowsOfNeighbouringFloats) {
  gpu().reserve({.vocab_size = 3000});
  SampleCase c(40, 3000, 4);
  for (float& x : c.logits)
    x = float_from_bits(0x41200000u + static_cast<std::uint32_t>(c.integer(0, 300)));
  c.expect_defined_results(gpu());
}

}  // namespace
}  // namespace quatrain::testing
