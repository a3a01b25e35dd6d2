// SPDX-License-Identifier: Apache-2.0
// Small tokenizers for tests: tokenizer.json texts built from a list of merges, and random text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quatrain::testing {

using Json = nlohmann::ordered_json;

/// The tokenizer that ships with the model in the repository: 4096 tokens.
inline std::filesystem::path storyteller_folder() {
  return std::filesystem::path(QUATRAIN_SOURCE_DIR) / "models" / "storyteller-nvfp4";
}

inline void append_utf8(std::string& out, std::uint32_t c) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 63)), put(0x80 | (c & 63));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 63)), put(0x80 | (c >> 6 & 63)),
        put(0x80 | (c & 63));
  }
}

/// Bytes in the alphabet of tokenizer.json.
inline std::string in_alphabet(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto b = static_cast<unsigned char>(c);
    std::uint32_t next = 0x100, code = b;
    for (std::uint32_t x = 0; x <= b; ++x) {
      const bool printable = (x >= '!' && x <= '~') || (x >= 0xA1 && x <= 0xAC) || x >= 0xAE;
      if (!printable) code = next++;
      if (printable && x == b) code = b;
    }
    append_utf8(out, code);
  }
  return out;
}

/// A complete tokenizer.json: the pipeline of the shipped one, added tokens from id 0, then the 256
/// bytes, then one token per merge. Merges are pairs of byte strings.
inline Json toy_json(const std::vector<std::string>& added,
                     const std::vector<std::pair<std::string, std::string>>& merges) {
  static const Json shipped = [] {
    FILE* file = std::fopen((storyteller_folder() / "tokenizer.json").c_str(), "rb");
    Json json = Json::parse(file);
    std::fclose(file);
    return json;
  }();
  Json json = {{"added_tokens", Json::array()},
               {"normalizer", nullptr},
               {"pre_tokenizer", shipped["pre_tokenizer"]},
               {"decoder", shipped["decoder"]}};
  Json vocab = Json::object(), pairs = Json::array();
  int id = 0;
  for (const auto& text : added)
    json["added_tokens"].push_back({{"id", id++}, {"content", text}, {"special", true}});
  for (int b = 0; b < 256; ++b) vocab[in_alphabet(std::string(1, static_cast<char>(b)))] = id++;
  for (const auto& [left, right] : merges) {
    pairs.push_back({in_alphabet(left), in_alphabet(right)});
    const std::string merged = in_alphabet(left + right);
    if (!vocab.contains(merged)) vocab[merged] = id++;
  }
  json["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", pairs}};
  return json;
}

/// Random text over kinds of characters that the pre-tokenizer treats differently.
inline std::string random_text(std::mt19937& random, int max_characters) {
  static const std::vector<std::pair<std::uint32_t, std::uint32_t>> kRanges = {
      {' ', '~'},         {' ', ' '},         {'a', 'z'},         {'0', '9'},
      {'\n', '\n'},       {'\r', '\r'},       {0, 0x20},          {0x7F, 0xA0},
      {0xA0, 0x24F},      {0x300, 0x36F},     {0x370, 0x4FF},     {0x590, 0x6FF},
      {0x900, 0x97F},     {0xE00, 0xE7F},     {0x1680, 0x1680},   {0x180B, 0x180F},
      {0x2000, 0x206F},   {0x2070, 0x218F},   {0x3000, 0x3000},   {0x3001, 0x303F},
      {0x3040, 0x30FF},   {0x4E00, 0x4E40},   {0x9F90, 0x9FC0},   {0xAC00, 0xAC40},
      {0xFE00, 0xFE0F},   {0xFF00, 0xFF60},   {0x1D7CE, 0x1D7FF}, {0x1F300, 0x1F650},
      {0xE0100, 0xE01EF}, {0x20000, 0x20040}, {0, 0xD7FF},        {0xE000, 0x10FFFF}};
  // Few kinds at a time, so that runs and their borders are frequent.
  std::size_t kinds[3];
  for (auto& kind : kinds) kind = random() % kRanges.size();
  std::string text;
  for (int n = static_cast<int>(random() % static_cast<unsigned>(max_characters + 1)); n > 0; --n) {
    const auto [low, high] = kRanges[kinds[random() % 3]];
    append_utf8(text, low + static_cast<std::uint32_t>(random() % (high - low + 1)));
  }
  return text;
}

}  // namespace quatrain::testing
