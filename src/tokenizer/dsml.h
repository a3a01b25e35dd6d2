// SPDX-License-Identifier: Apache-2.0
// The markup of tool calls, read as a stream: <｜DSML｜invoke name="f"> and its like.
//
// Private to the chat sources. What is text and what is markup is decided in assistant_stream.cpp.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/chat_message.h"

namespace quatrain::dsml {

/// One tag <｜DSML｜name attributes> or </｜DSML｜name>. The views point into the text read.
struct Tag {
  std::size_t size = 0;  // from "<" to ">"
  bool is_closing = false;
  std::string_view name;
  std::string_view attributes;

  /// The value of key="value" among the attributes.
  [[nodiscard]] std::optional<std::string_view> attribute(std::string_view key) const;
};

enum class Match : unsigned char {
  kNo,       // whatever follows, it is none
  kPartial,  // more text decides
  kYes,
};

/// Whether `text` begins a tag: "<", perhaps "/", and the marker; or the full-width marker alone,
/// which is one token and never text. kOpeningBytes are the bytes that can begin either.
/// `marker_begun` tells of a partial one that more than a bar of the marker is there.
Match match_opening(std::string_view text, bool* marker_begun = nullptr);

/// The whole tag at the beginning of `text`. Never partial once the text is longer than
/// kMaxTagBytes.
Match match_tag(std::string_view text, Tag& tag);

inline constexpr std::string_view kOpeningBytes = "<\xEF";
inline constexpr std::size_t kMaxSpaces = 16;  // at each place where spaces are allowed
inline constexpr std::size_t kMaxTagBytes = 4096;

/// Reads the calls out of a tool block. The result does not depend on how the text is cut.
class CallReader {
 public:
  /// Takes the next text; calls that it completes are appended to `calls`.
  void feed(std::string_view text, std::vector<ToolCall>& calls);
  /// The text has ended. A call that is still open is dropped.
  void finish(std::vector<ToolCall>& calls);
  /// Whether finish() would hand out a call.
  [[nodiscard]] bool would_finish_call() const;

 private:
  // A call whose invoke tag was seen; its parameters as text of a JSON object.
  struct OpenCall {
    std::string name;
    std::string members;
  };
  struct OpenParameter {
    std::optional<std::string> key;
    bool is_string = true;
  };

  void read(bool is_final, std::vector<ToolCall>& calls);
  bool read_tag(std::vector<ToolCall>& calls);
  bool read_value(bool is_final);
  void open_tag(const Tag& tag, std::vector<ToolCall>& calls);
  void add_parameter(std::string_view value);
  void close_call(std::vector<ToolCall>& calls);

  std::string buffer_;
  std::size_t begin_ = 0;    // of what was not read yet: a tag, or the value of parameter_
  std::size_t scanned_ = 0;  // no tag of interest begins before this
  std::optional<OpenCall> call_;
  std::optional<OpenParameter> parameter_;  // set: its value comes next
  bool is_done_ = false;                    // the block was closed, or is broken beyond reading
};

}  // namespace quatrain::dsml
