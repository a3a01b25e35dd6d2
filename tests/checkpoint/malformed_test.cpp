// SPDX-License-Identifier: Apache-2.0
// Hostile checkpoints: every class of damage is refused with a message that names the fault, and
// nothing of more than 64 MB is allocated on the way.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>

#include <fstream>

#include "checkpoint/damage.h"
#include "checkpoint/scratch.h"
#include "model/config.h"

namespace quatrain::test {
namespace {

constexpr int kVariants = 12;  // of each class
constexpr std::size_t kMemoryLimit = 64u << 20;

/// What a loader does with a folder: everything is opened, checked and read.
void load_all(const std::filesystem::path& folder) {
  read_config(folder);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  checkpoint.load(checkpoint.linear(kNvfp4, 64, 128));
  checkpoint.load(checkpoint.linear(kPacked, 64, 128));
  checkpoint.load(checkpoint.linear(kMxfp4, 64, 128));
  checkpoint.load(checkpoint.linear(kFp8, 130, 128));
  const std::vector<std::int64_t> norm = {128}, ids = {16, 2};
  checkpoint.read_f32("norm.weight", norm);
  checkpoint.read_ints("layers.0.ffn.gate.tid2eid", ids);
}

/// Lets the process grow by at most kMemoryLimit while it lives: more ends in std::bad_alloc.
class MemoryLimit {
 public:
  MemoryLimit() {
#ifndef QUATRAIN_SANITIZED  // sanitizers reserve address space of their own
    ::malloc_trim(0);
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    ::getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    limit.rlim_cur =
        static_cast<rlim_t>(pages) * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + kMemoryLimit;
    ::setrlimit(RLIMIT_AS, &limit);
#endif
  }
  ~MemoryLimit() {
#ifndef QUATRAIN_SANITIZED
    ::setrlimit(RLIMIT_AS, &before_);
#endif
  }

 private:
  [[maybe_unused]] rlimit before_{};
};

std::string refusal(const std::filesystem::path& folder) {
  const MemoryLimit limit;
  try {
    load_all(folder);
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return fmt::format("not an Error: {}", error.what());
  }
  return "accepted";
}

TEST(Malformed, TheMemoryLimitIsReal) {
#ifdef QUATRAIN_SANITIZED
  GTEST_SKIP() << "sanitizers reserve address space of their own";
#endif
  const MemoryLimit limit;
  EXPECT_THROW(std::vector<char>(kMemoryLimit + (1u << 20)), std::bad_alloc);
}

TEST(Malformed, TheUndamagedModelLoads) {
  const ScratchFolder one, two;
  write_bytes(one.path() / "config.json", std::string(kOfficialConfig));
  write_bytes(one.path() / "model.safetensors", sound_file().bytes());
  EXPECT_EQ(refusal(one.path()), "accepted");
  write_bytes(two.path() / "config.json", std::string(kOfficialConfig));
  write_bytes(two.path() / kIndexName, write_shards(two.path()).dump());
  EXPECT_EQ(refusal(two.path()), "accepted");
}

TEST(Malformed, EveryClassIsRefusedByName) {
  std::vector<Damage> classes;
  for (auto&& part :
       {header_damage(), entry_damage(), tensor_damage(), index_damage(), config_damage()})
    classes.insert(classes.end(), part.begin(), part.end());
  int refused = 0;
  for (const Damage& damage : classes)
    for (int variant = 0; variant < kVariants; ++variant) {
      const ScratchFolder folder;
      Rng rng(static_cast<unsigned>(variant) * 7919u + 1u);
      write_damaged(damage, folder.path(), rng);
      const std::string message = refusal(folder.path());
      EXPECT_TRUE(contains(message, damage.expected)) << damage.name << ", variant " << variant;
      // A message names the file.
      EXPECT_TRUE(message.find(".json") != message.npos ||
                  message.find("safetensors") != message.npos ||
                  message.find(folder.path().string()) != message.npos)
          << message;
      refused += message.find(damage.expected) != message.npos;
    }
  EXPECT_GE(classes.size(), 30u);
  EXPECT_GE(refused, 500);
}

TEST(Malformed, AnyHeaderLength) {
  const std::string good = sound_file().bytes();
  const std::uint64_t header = sound_file().header().size();
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{1}, header - 1, header + 1, good.size() - 8,
        good.size() - 7, std::uint64_t{100'000'000}, std::uint64_t{100'000'001},
        std::uint64_t{1} << 32, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    const ScratchFolder folder;
    std::string bytes = good;
    for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
    write_bytes(folder.path() / "config.json", std::string(kOfficialConfig));
    write_bytes(folder.path() / "model.safetensors", bytes);
    EXPECT_TRUE(contains(refusal(folder.path()), "model.safetensors: ")) << length;
  }
}

TEST(Malformed, EveryTruncation) {
  const std::string good = sound_file().bytes();
  const ScratchFolder folder;
  write_bytes(folder.path() / "config.json", std::string(kOfficialConfig));
  for (std::size_t size = 0; size < good.size(); size += size < 2000 ? 13 : 997) {
    write_bytes(folder.path() / "model.safetensors", good.substr(0, size));
    EXPECT_TRUE(contains(refusal(folder.path()), "model.safetensors: ")) << size;
  }
}

/// A file of holes costs its author nothing, so it must cost the reader nothing either.
TEST(Malformed, SparseHeaderOf99Megabytes) {
  const ScratchFolder folder;
  write_bytes(folder.path() / "config.json", std::string(kOfficialConfig));
  const auto path = folder.path() / "model.safetensors";
  std::string start(9, '{');
  for (std::size_t i = 0; i < 8; ++i)
    start[i] = static_cast<char>(std::uint64_t{99'000'000} >> (8 * i));
  write_bytes(path, start);
  std::filesystem::resize_file(path, 200'000'000);
  EXPECT_TRUE(contains(refusal(folder.path()), "zero byte"));
}

TEST(Malformed, RandomBytesNeverCrash) {
  const std::string good = sound_file().bytes();
  const ScratchFolder folder;
  write_bytes(folder.path() / "config.json", std::string(kOfficialConfig));
  Rng rng(3);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = good;
    const std::size_t header = sound_file().header().size();
    for (std::size_t k = 0; k < 1 + rng() % 4; ++k)
      bytes[rng() % (8 + header)] = static_cast<char>(rng());
    write_bytes(folder.path() / "model.safetensors", bytes);
    const std::string message = refusal(folder.path());
    EXPECT_FALSE(message.starts_with("not an Error")) << message;
  }
}

}  // namespace
}  // namespace quatrain::test
