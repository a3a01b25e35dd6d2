// SPDX-License-Identifier: Apache-2.0
// What other instructions cost beside the tensor cores of Hopper.
//
//   neighbour_bench
//
// A line for every instruction: cycles of a chain of products beside it, how many of it a scheduler
// issued meanwhile, cycles for one of them, and what each took from the products.
#include <fmt/format.h>

#include "neighbour_probes.h"

int main() {
  using namespace quatrain::bench;
  constexpr const char* kNames[kNeighbours] = {"none",  "FFMA", "FADD", "IMAD",
                                               "HFMA2", "LOP3", "PRMT", "SHF"};
  const auto cycles_of = [](const Times& times) {
    return static_cast<double>(times.products) / kChains;
  };
  const double alone = cycles_of(measure(Neighbour::kNone));
  fmt::print(
      "{} warpgroups, chains of {} products of {} columns: {:.0f} cycles, {} at the peak\n\n",
      kProducers, kProducts, kColumns, alone, kProducers * kProducts * kColumns / 2);
  fmt::print("| beside them | cycles | issued | cycles for one | taken from products |\n");
  fmt::print("|---|---:|---:|---:|---:|\n");
  for (int what = 1; what < kNeighbours; ++what) {
    const Times times = measure(static_cast<Neighbour>(what));
    const double cycles = cycles_of(times);
    const double issued =
        static_cast<double>(times.neighbours) / static_cast<double>(times.cycles) * cycles;
    fmt::print("| {} | {:.0f} | {:.0f} | {:.2f} | {:.2f} |\n", kNames[what], cycles, issued,
               cycles / issued, (cycles - alone) / issued);
  }
  return 0;
}
