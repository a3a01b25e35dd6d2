// SPDX-License-Identifier: Apache-2.0
// BlockPool: who holds which block of the paged caches, and which blocks hold known prefixes.
//
// Every block is in exactly one state: used (references > 0), cached (none, but a prefix finds it)
// or free. Knows no device memory and no requests. Not thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/prefix_key.h"

namespace quatrain {

using BlockId = std::int32_t;

class BlockPool {
 public:
  explicit BlockPool(std::int64_t blocks);

  std::int64_t total() const { return static_cast<std::int64_t>(blocks_.size()); }
  std::int64_t free() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t cached() const { return static_cast<std::int64_t>(cached_.size()); }
  std::int64_t used() const { return total() - free() - cached(); }
  /// Blocks that take() can hand out.
  std::int64_t available() const { return free() + cached(); }

  struct Taken {
    BlockId block = 0;
    std::optional<PrefixKey> evicted;  ///< the prefix that the block held until now
  };
  /// Hands out a free block, or else the cached one that was released first. There must be one.
  Taken take();
  /// One more reference to a used or cached block.
  void share(BlockId block);
  /// One reference less.
  void release(BlockId block);

  /// Makes a used block findable: it holds the rows of `tokens`, the last block of prefix `key`.
  /// A key that another block holds already keeps that one.
  void publish(BlockId block, const PrefixKey& key, std::span<const std::int32_t> tokens);
  /// The block that holds the last block of prefix `key`; `tokens` guard against equal hashes.
  std::optional<BlockId> find(const PrefixKey& key, std::span<const std::int32_t> tokens) const;
  bool is_used(BlockId block) const { return at(block).references > 0; }

  /// The used block holds worthless values: no prefix finds it from now on, and it is not handed
  /// out again before take_spoiled() has named it.
  void spoil(BlockId block);
  /// Spoiled blocks that nobody refers to any more; the caller zeroes them, then they are free.
  std::vector<BlockId> take_spoiled();

  /// Throws unless every block is in one state and `references` (per block) are those held.
  void verify(std::span<const std::int32_t> references) const;

 private:
  struct Block {
    std::int32_t references = 0;
    bool spoiled = false;
    std::optional<PrefixKey> key;
    std::vector<std::int32_t> tokens;             // with a key
    std::list<BlockId>::iterator cached_at = {};  // when cached
  };

  Block& at(BlockId block);
  const Block& at(BlockId block) const;
  std::optional<PrefixKey> forget(Block& block);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
  std::list<BlockId> cached_;  // in order of release
  std::vector<BlockId> spoiled_;
  std::unordered_map<PrefixKey, BlockId> by_key_;
};

}  // namespace quatrain
