// SPDX-License-Identifier: Apache-2.0
// json_quote against an independent JSON library: what it writes is what Python would, and reads
// back.
#include "core/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace quatrain {
namespace {

TEST(JsonQuote, EveryAsciiCharacter) {
  for (int c = 0; c < 128; ++c) {
    const std::string text = {'a', static_cast<char>(c), 'b'};
    const std::string quoted = json_quote(text);
    EXPECT_EQ(nlohmann::json::parse(quoted).get<std::string>(), text) << c;
    EXPECT_EQ(quoted, nlohmann::json(text).dump()) << c;
  }
}

TEST(JsonQuote, Spellings) {
  EXPECT_EQ(json_quote(""), "\"\"");
  EXPECT_EQ(json_quote("\"\\/\b\f\n\r\t"), R"("\"\\/\b\f\n\r\t")");
  EXPECT_EQ(json_quote(std::string("\0\x1f\x7f", 3)), "\"\\u0000\\u001f\x7f\"");
  EXPECT_EQ(json_quote("größe 水 🦉"), "\"größe 水 🦉\"");
}

void append_utf8(std::string& out, unsigned c) {
  const auto put = [&](unsigned byte) { out += static_cast<char>(byte); };
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

TEST(JsonQuote, RandomUnicode) {
  std::mt19937 random(5);
  for (int i = 0; i < 5000; ++i) {
    std::string text;
    for (auto n = random() % 40; n > 0; --n) {
      unsigned c = 0;
      do {
        c = static_cast<unsigned>(random() % (random() % 2 ? 0x80 : 0x110000));
      } while (c >= 0xD800 && c < 0xE000);
      append_utf8(text, c);
    }
    ASSERT_EQ(json_quote(text), nlohmann::json(text).dump());
  }
}

}  // namespace
}  // namespace quatrain
