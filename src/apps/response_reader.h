// SPDX-License-Identifier: Apache-2.0
// Reads HTTP/1.1 responses and the events of their streams, as the load generator needs them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain::apps {

/// One response after another on a connection: begin(), feed() until done(), begin(), …
class ResponseReader {
 public:
  void begin() { *this = ResponseReader(); }

  /// Takes the bytes that came. Payloads of the stream's whole events ("data: …") go to `events`.
  void feed(std::string_view bytes, std::vector<std::string>& events);

  /// 0 until the header is whole.
  [[nodiscard]] int status() const { return status_; }
  [[nodiscard]] bool done() const { return state_ == State::kDone; }
  /// What came is not a response that this reader knows.
  [[nodiscard]] bool broken() const { return state_ == State::kBroken; }
  /// The connection can be used again.
  [[nodiscard]] bool keep_alive() const { return keep_alive_; }
  /// Of a response that is no stream.
  [[nodiscard]] const std::string& body() const { return text_; }

 private:
  enum class State : unsigned char {
    kHeader,
    kBody,  // left_ bytes
    kChunkSize,
    kChunk,  // left_ bytes
    kChunkEnd,
    kTrailer,
    kDone,
    kBroken
  };

  bool take_line(std::string_view& bytes);
  void read_header(std::string_view& bytes);
  void read_field(std::string_view line);
  void end_header();
  void read_chunk_size();
  void take_body(std::string_view& bytes, std::vector<std::string>& events);

  State state_ = State::kHeader;
  int status_ = 0;
  bool keep_alive_ = true;
  bool is_chunked_ = false;
  bool is_stream_ = false;
  std::size_t left_ = 0;
  std::string line_;  // of the header or between chunks, as far as it came
  std::string text_;  // the body, or the event that is not whole yet
};

}  // namespace quatrain::apps
