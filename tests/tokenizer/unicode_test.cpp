// SPDX-License-Identifier: Apache-2.0
// Character classes against PCRE2, and UTF-8 decoding, over all code points.
#include "tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "tokenizer/pcre2_splitter.h"
#include "tokenizer/toy_tokenizer.h"

namespace quatrain {
namespace {

TEST(Unicode, ClassesAgreeWithPcre2) {
  const testing::Pattern patterns[] = {
      testing::Pattern(R"(\p{L})"),
      testing::Pattern(R"(\p{M})"),
      testing::Pattern(R"(\p{N})"),
      testing::Pattern(R"(\p{P})"),
      testing::Pattern(R"(\p{S})"),
      testing::Pattern("[" + std::string(testing::kWhiteSpace) + "]")};
  for (std::uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    testing::append_utf8(text, c);
    int expected = 0;
    for (int i = 0; i < 6; ++i)
      if (patterns[i].find(text, 0).second != 0) expected = i + 1;
    ASSERT_EQ(static_cast<int>(char_class(c)), expected) << std::hex << c;
    const Utf8Char decoded = decode_utf8(text);
    ASSERT_EQ(decoded.status, Utf8Char::Status::kValid) << std::hex << c;
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.size, text.size());
  }
}

TEST(Unicode, IllFormedUtf8) {
  using Status = Utf8Char::Status;
  const auto check = [](std::string_view bytes, Status status, unsigned size) {
    const Utf8Char c = decode_utf8(bytes);
    EXPECT_EQ(c.status, status) << ::testing::PrintToString(bytes);
    EXPECT_EQ(c.size, size) << ::testing::PrintToString(bytes);
  };
  check("\x80", Status::kInvalid, 1);
  check("\xC0\x80", Status::kInvalid, 1);          // overlong
  check("\xE0\x80\x80", Status::kInvalid, 1);      // overlong
  check("\xED\xA0\x80", Status::kInvalid, 1);      // surrogate
  check("\xF4\x90\x80\x80", Status::kInvalid, 1);  // above U+10FFFF
  check("\xF5", Status::kInvalid, 1);
  check("\xE2\x82", Status::kIncomplete, 2);
  check("\xE2\x82x", Status::kInvalid, 2);
  check("\xF0\x9F\x99", Status::kIncomplete, 3);
  check("\xF0", Status::kIncomplete, 1);
}

}  // namespace
}  // namespace quatrain
