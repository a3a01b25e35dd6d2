// SPDX-License-Identifier: Apache-2.0
#include "apps/response_reader.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

namespace quatrain::apps {
namespace {

constexpr std::size_t kMaxLine = 64 << 10;

template <class T>
bool read_number(std::string_view text, int base, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end != text.data();
}

}  // namespace

// Moves bytes to line_ up to and without CR LF; true when the line is whole.
bool ResponseReader::take_line(std::string_view& bytes) {
  const auto end = bytes.find('\n');
  const auto part = bytes.substr(0, end);
  line_ += part;
  if (line_.size() > kMaxLine) state_ = State::kBroken;
  bytes.remove_prefix(end == bytes.npos ? bytes.size() : end + 1);
  if (end == bytes.npos || state_ == State::kBroken) return false;
  if (line_.ends_with('\r')) line_.pop_back();
  return true;
}

void ResponseReader::read_header(std::string_view& bytes) {
  if (!take_line(bytes)) return;
  const std::string line = std::exchange(line_, {});
  if (status_ == 0) {
    if (!line.starts_with("HTTP/1.1 ") ||
        !read_number(std::string_view(line).substr(9), 10, status_))
      state_ = State::kBroken;
  } else if (line.empty()) {
    end_header();
  } else {
    read_field(line);
  }
}

void ResponseReader::read_field(std::string_view line) {
  const auto colon = line.find(':');
  if (colon == line.npos) {
    state_ = State::kBroken;
    return;
  }
  std::string name(line.substr(0, colon)), value(line.substr(colon + 1));
  for (std::string* text : {&name, &value})
    std::ranges::transform(*text, text->begin(), [](unsigned char c) { return std::tolower(c); });
  value.erase(0, value.find_first_not_of(' '));
  if (name == "content-length" && !read_number(value, 10, left_)) state_ = State::kBroken;
  if (name == "transfer-encoding") is_chunked_ = value == "chunked";
  if (name == "content-type") is_stream_ = value.starts_with("text/event-stream");
  if (name == "connection") keep_alive_ = value != "close";
}

void ResponseReader::end_header() {
  if (status_ == 100)  // the response proper follows
    begin();
  else if (is_chunked_)
    state_ = State::kChunkSize;
  else
    state_ = left_ > 0 ? State::kBody : State::kDone;
}

void ResponseReader::read_chunk_size() {
  const std::string line = std::exchange(line_, {});
  if (!read_number(line, 16, left_))
    state_ = State::kBroken;
  else
    state_ = left_ > 0 ? State::kChunk : State::kTrailer;
}

void ResponseReader::take_body(std::string_view& bytes, std::vector<std::string>& events) {
  const std::string_view part = bytes.substr(0, left_);
  text_ += part;
  left_ -= part.size();
  bytes.remove_prefix(part.size());
  if (left_ == 0) state_ = is_chunked_ ? State::kChunkEnd : State::kDone;
  if (!is_stream_) return;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text_.find("\n\n", begin)) != text_.npos; begin = end + 2)
    if (text_.compare(begin, 6, "data: ") == 0)
      events.push_back(text_.substr(begin + 6, end - begin - 6));
  text_.erase(0, begin);
}

void ResponseReader::feed(std::string_view bytes, std::vector<std::string>& events) {
  while (!bytes.empty() && state_ != State::kDone && state_ != State::kBroken) {
    switch (state_) {
      case State::kHeader:
        read_header(bytes);
        break;
      case State::kBody:
      case State::kChunk:
        take_body(bytes, events);
        break;
      case State::kChunkSize:
        if (take_line(bytes)) read_chunk_size();
        break;
      case State::kChunkEnd:
        if (take_line(bytes)) state_ = line_.empty() ? State::kChunkSize : State::kBroken;
        break;
      case State::kTrailer:
        if (take_line(bytes) && std::exchange(line_, {}).empty()) state_ = State::kDone;
        break;
      default:
        break;
    }
  }
}

}  // namespace quatrain::apps
