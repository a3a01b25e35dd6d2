// SPDX-License-Identifier: Apache-2.0
#include "runtime/block_pool.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace quatrain {

BlockPool::BlockPool(std::int64_t blocks) : blocks_(static_cast<std::size_t>(blocks)) {
  free_.reserve(blocks_.size());
  for (std::int64_t b = blocks; b-- > 0;) free_.push_back(static_cast<BlockId>(b));
}

BlockPool::Block& BlockPool::at(BlockId block) {
  return const_cast<Block&>(std::as_const(*this).at(block));
}

const BlockPool::Block& BlockPool::at(BlockId block) const {
  QT_CHECK(block >= 0 && block < total(), "block {} is outside [0, {})", block, total());
  return blocks_[static_cast<std::size_t>(block)];
}

std::optional<PrefixKey> BlockPool::forget(Block& block) {
  if (block.key) by_key_.erase(*block.key);
  block.tokens.clear();
  return std::exchange(block.key, std::nullopt);
}

BlockPool::Taken BlockPool::take() {
  QT_CHECK(available() > 0, "all {} blocks are in use", total());
  Taken taken;
  if (!free_.empty()) {
    taken.block = free_.back();
    free_.pop_back();
  } else {
    taken.block = cached_.front();
    cached_.pop_front();
    taken.evicted = forget(at(taken.block));
  }
  at(taken.block).references = 1;
  return taken;
}

void BlockPool::share(BlockId block) {
  Block& b = at(block);
  QT_CHECK(b.references > 0 || b.key, "block {} is free and cannot be shared", block);
  if (b.references++ == 0) cached_.erase(b.cached_at);
}

void BlockPool::release(BlockId block) {
  Block& b = at(block);
  QT_CHECK(b.references > 0, "block {} was released more often than taken", block);
  if (--b.references > 0) return;
  if (b.spoiled)
    spoiled_.push_back(block);
  else if (b.key)
    b.cached_at = cached_.insert(cached_.end(), block);
  else
    free_.push_back(block);
}

void BlockPool::publish(BlockId block, const PrefixKey& key, std::span<const std::int32_t> tokens) {
  Block& b = at(block);
  QT_CHECK(b.references > 0, "block {} is published by nobody who holds it", block);
  if (b.key || b.spoiled || !by_key_.try_emplace(key, block).second) return;
  b.key = key;
  b.tokens.assign(tokens.begin(), tokens.end());
}

std::optional<BlockId> BlockPool::find(const PrefixKey& key,
                                       std::span<const std::int32_t> tokens) const {
  const auto found = by_key_.find(key);
  if (found == by_key_.end() || !std::ranges::equal(at(found->second).tokens, tokens)) return {};
  return found->second;
}

void BlockPool::spoil(BlockId block) {
  Block& b = at(block);
  QT_CHECK(b.references > 0, "block {} is spoiled by nobody who holds it", block);
  forget(b);
  b.spoiled = true;
}

std::vector<BlockId> BlockPool::take_spoiled() {
  for (const BlockId block : spoiled_) {
    at(block).spoiled = false;
    free_.push_back(block);
  }
  return std::exchange(spoiled_, {});
}

void BlockPool::verify(std::span<const std::int32_t> references) const {
  QT_CHECK_EQ(references.size(), blocks_.size(), "blocks whose references are known");
  std::int64_t held = 0, keys = 0;
  for (BlockId id = 0; id < total(); ++id) {
    const Block& b = at(id);
    QT_CHECK_EQ(b.references, references[static_cast<std::size_t>(id)], "references of a block");
    held += b.references > 0 ? 1 : 0;
    keys += b.key ? 1 : 0;
    if (b.key) QT_CHECK(by_key_.at(*b.key) == id, "block {} is not where its key points", id);
  }
  QT_CHECK_EQ(static_cast<std::int64_t>(by_key_.size()), keys, "keys of prefixes");
  QT_CHECK_EQ(used(), held + static_cast<std::int64_t>(spoiled_.size()), "used blocks");
  for (const BlockId id : free_)
    QT_CHECK(at(id).references == 0 && !at(id).key, "block {} is free and in use", id);
  for (const BlockId id : cached_)
    QT_CHECK(at(id).references == 0 && at(id).key, "block {} is cached and in use", id);
}

}  // namespace quatrain
