// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/unicode.h"

namespace quatrain {

Utf8Char decode_utf8(std::string_view bytes) {
  using Status = Utf8Char::Status;
  const auto byte = [&](std::size_t i) -> std::uint32_t {
    return static_cast<unsigned char>(bytes[i]);
  };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, Status::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {0, 1, Status::kInvalid};
  const std::uint32_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte is restricted so that no overlong form, surrogate or value above U+10FFFF
  // passes.
  std::uint32_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  std::uint32_t code_point = lead & (0x7Fu >> size);
  for (std::uint32_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {0, i, Status::kIncomplete};
    const std::uint32_t next = byte(i);
    if (next < low || next > high) return {0, i, Status::kInvalid};
    code_point = code_point << 6 | (next & 0x3Fu);
    low = 0x80, high = 0xBF;
  }
  return {code_point, size, Status::kValid};
}

void drain_utf8(std::string& pending, bool final, std::string& out) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
  const std::string_view bytes = pending;
  std::size_t done = 0;
  while (done < bytes.size()) {
    const Utf8Char c = decode_utf8(bytes.substr(done));
    if (c.status == Utf8Char::Status::kIncomplete && !final) break;
    if (c.status == Utf8Char::Status::kValid)
      out += bytes.substr(done, c.size);
    else
      out += kReplacement;
    done += c.size;
  }
  pending.erase(0, done);
}

}  // namespace quatrain
