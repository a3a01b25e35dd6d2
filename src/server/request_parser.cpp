// SPDX-License-Identifier: Apache-2.0
#include "server/request_parser.h"

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <cctype>

#include "core/error.h"

namespace quatrain::server {
namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;
using boost::beast::string_view;

// A line of the framing of chunks, or all trailers, may be this long.
constexpr std::size_t kMaxChunkLine = 16 << 10;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::string_view view(string_view text) { return {text.data(), text.size()}; }

bool is_token_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

}  // namespace

// Beast's parser calls the functions *_impl; a fault set in one of them wins over Beast's own.
class RequestParser::Impl : public http::basic_parser<true> {
 public:
  explicit Impl(const HttpLimits& limits) : limits_(limits) {
    header_limit(static_cast<std::uint32_t>(limits.request_line + limits.header));
    body_limit(limits.body);
    eager(false);
  }

  std::size_t feed(std::string_view input) {
    if (fault || is_done()) return 0;
    const std::size_t header = header_done_ ? 0 : read_header(input);
    if (fault || !header_done_) return header;
    eager(true);
    return header + read_body(input.substr(header));
  }

  bool header_done() const { return header_done_; }

  HttpRequest request;
  std::optional<HttpFault> fault;
  std::optional<std::uint64_t> length;
  bool expects_continue = false;

 private:
  void refuse(int status, std::string message) {
    if (!fault) fault = HttpFault{status, std::move(message)};
  }
  void refuse(int status, std::string message, error_code& ec) {
    refuse(status, std::move(message));
    ec = http::error::bad_value;
  }

  // Waits for the whole header, checks its lines, and gives it to Beast.
  std::size_t read_header(std::string_view input) {
    std::size_t skipped = 0;  // a blank line left behind by the request before
    while (skipped < 4 && input.substr(skipped).starts_with("\r\n")) skipped += 2;
    const std::string_view text = input.substr(skipped);
    if (text.empty() || text == "\r") return 0;
    if (!is_token_char(text[0])) {
      refuse(400, "the request does not begin with a method");
      return 0;
    }
    const auto line_end = text.substr(0, limits_.request_line + 2).find("\r\n");
    if (line_end == text.npos && text.size() >= limits_.request_line + 2) {
      refuse(414, fmt::format("the request line is longer than {} bytes", limits_.request_line));
      return 0;
    }
    check_line_ends(text);
    if (fault || line_end == text.npos) return 0;
    scanned_ = std::max(scanned_, line_end);
    const auto end = text.find("\r\n\r\n", scanned_);
    // Three bytes of the blank line may be there already.
    scanned_ = end == text.npos ? text.size() - std::min<std::size_t>(text.size(), 3) : end;
    if (scanned_ > line_end + limits_.header + 2) {
      refuse(431, fmt::format("the header is longer than {} bytes", limits_.header));
      return 0;
    }
    if (end == text.npos) return 0;
    const std::string_view block = text.substr(0, end + 4);
    check_lines(block);
    check_version(block.substr(0, line_end));
    if (!fault) put_header(block);
    return skipped + block.size();
  }

  // A line that ends with LF alone would make us wait for the rest of it.
  void check_line_ends(std::string_view text) {
    for (auto i = text.find('\n', scanned_); i != text.npos; i = text.find('\n', i + 1))
      if (i == 0 || text[i - 1] != '\r')
        return refuse(400, "a line does not end with CR LF");
      else if (text.substr(i - 1).starts_with("\r\n\r\n"))
        return;
  }

  void check_lines(std::string_view block) {
    std::size_t count = 0;
    for (std::size_t begin = 0; begin + 2 < block.size(); ++count) {
      const auto end = block.find("\r\n", begin);
      const std::string_view line = block.substr(begin, end - begin);
      if (line.find_first_of(std::string_view("\r\n\0", 3)) != line.npos)
        refuse(400, "a line contains CR, LF or NUL");
      if (begin > 0 && (line.starts_with(' ') || line.starts_with('\t')))
        refuse(400, "a header field is folded over lines");
      begin = end + 2;
    }
    if (count > limits_.header_count + 1)
      refuse(431, fmt::format("there are more than {} header fields", limits_.header_count));
  }

  void check_version(std::string_view line) {
    const auto space = line.rfind(' ');
    const std::string_view version = line.substr(space == line.npos ? 0 : space + 1);
    const bool has_form = version.size() == 8 && version.starts_with("HTTP/") &&
                          std::isdigit(static_cast<unsigned char>(version[5])) != 0 &&
                          version[6] == '.' &&
                          std::isdigit(static_cast<unsigned char>(version[7])) != 0;
    if (!has_form) return refuse(400, "the request line does not end with an HTTP version");
    if (version != "HTTP/1.1" && version != "HTTP/1.0")
      refuse(505, fmt::format("{} is not spoken here; use HTTP/1.1", version));
  }

  void put_header(std::string_view block) {
    error_code ec;
    const std::size_t used = put(boost::asio::const_buffer(block.data(), block.size()), ec);
    if (ec) refuse(status_of(ec), fmt::format("the header is malformed: {}", ec.message()));
    if (!fault && used != block.size()) refuse(400, "the header is malformed");
    if (!fault) check_header();
    header_done_ = !fault;
  }

  static int status_of(const error_code& ec) {
    if (ec == http::error::body_limit) return 413;
    return ec == http::error::header_limit ? 431 : 400;
  }

  void check_header() {
    if (is_chunked_ && length) return refuse(400, "both Content-Length and Transfer-Encoding");
    if (is_chunked_ && !request.is_http11)
      return refuse(400, "Transfer-Encoding in a request of HTTP/1.0");
    if (request.is_http11 && request.field("host") == nullptr)
      return refuse(400, "a request of HTTP/1.1 must have the field Host");
    if (length && *length > limits_.body)
      return refuse(413, fmt::format("the body is larger than {} bytes", limits_.body));
    if (const auto* coding = request.field("content-encoding");
        coding != nullptr && lower(*coding) != "identity")
      return refuse(415, "compressed bodies are not accepted");
    if (const auto* expect = request.field("expect"); expect != nullptr) {
      if (lower(*expect) != "100-continue") return refuse(417, "the expectation is not known");
      expects_continue = request.is_http11;
    }
    request.keep_alive = request.is_http11 && keep_alive();
  }

  std::size_t read_body(std::string_view input) {
    std::size_t used = 0;
    while (!fault && !is_done() && used < input.size()) {
      error_code ec;
      const std::string_view rest = input.substr(used);
      const std::size_t n = put(boost::asio::const_buffer(rest.data(), rest.size()), ec);
      used += n;
      if (ec == http::error::need_more || (!ec && n == 0)) {
        if (input.size() - used > kMaxChunkLine) refuse(400, "a line between chunks is too long");
        break;
      }
      if (ec == http::error::body_limit)
        refuse(413, fmt::format("the body is larger than {} bytes", limits_.body));
      else if (ec)
        refuse(400, fmt::format("the body is malformed: {}", ec.message()));
    }
    return used;
  }

  void on_request_impl(http::verb /*verb*/, string_view method, string_view target, int version,
                       error_code& ec) override {
    request.method = std::string(view(method));
    request.is_http11 = version == 11;
    std::string_view path = view(target);
    for (const std::string_view scheme : {"http://", "https://"}) {
      if (!path.starts_with(scheme)) continue;
      const auto slash = path.find('/', scheme.size());
      path = slash == path.npos ? "/" : path.substr(slash);
    }
    request.target = std::string(path);
    if (!path.starts_with('/') && !(path == "*" && request.method == "OPTIONS"))
      refuse(400, "the target of the request is not a path", ec);
  }

  void on_field_impl(http::field /*field*/, string_view name, string_view value,
                     error_code& ec) override {
    if (header_done_) return;  // a trailer: nothing here reads one
    std::string key = lower(view(name));
    const bool is_repeated = request.field(key) != nullptr;
    constexpr std::array<std::string_view, 6> kOnce = {
        "host", "content-length", "transfer-encoding", "content-type", "expect", "authorization"};
    if (is_repeated && std::find(kOnce.begin(), kOnce.end(), key) != kOnce.end())
      return refuse(400, fmt::format("the field {} is there more than once", key), ec);
    if (key == "content-length") read_length(view(value), ec);
    if (key == "transfer-encoding") {
      is_chunked_ = lower(view(value)) == "chunked";
      if (!is_chunked_) refuse(501, "no Transfer-Encoding but chunked is implemented", ec);
    }
    request.fields.emplace_back(std::move(key), std::string(view(value)));
  }

  void read_length(std::string_view value, error_code& ec) {
    std::uint64_t n = 0;
    const bool is_number = !value.empty() && std::all_of(value.begin(), value.end(), [](char c) {
      return c >= '0' && c <= '9';
    });
    if (!is_number || value.size() > 18) {
      if (is_number) return refuse(413, "the declared body is too large", ec);
      return refuse(400, "Content-Length is not a number", ec);
    }
    for (const char c : value) n = n * 10 + static_cast<std::uint64_t>(c - '0');
    length = n;
    if (n > limits_.body)
      refuse(413, fmt::format("the body is larger than {} bytes", limits_.body), ec);
  }

  std::size_t take(string_view text, error_code& ec) {
    if (text.size() > limits_.body - request.body.size()) {
      refuse(413, fmt::format("the body is larger than {} bytes", limits_.body), ec);
      return 0;
    }
    request.body.append(text.data(), text.size());
    return text.size();
  }

  std::size_t on_body_impl(string_view text, error_code& ec) override { return take(text, ec); }
  std::size_t on_chunk_body_impl(std::uint64_t /*left*/, string_view text,
                                 error_code& ec) override {
    return take(text, ec);
  }
  void on_chunk_header_impl(std::uint64_t size, string_view /*extensions*/,
                            error_code& ec) override {
    if (++chunks_ > limits_.chunks)
      refuse(413, fmt::format("the body has more than {} chunks", limits_.chunks), ec);
    if (size > limits_.body)
      refuse(413, fmt::format("the body is larger than {} bytes", limits_.body), ec);
  }

  void on_response_impl(int /*code*/, string_view /*reason*/, int /*version*/,
                        error_code& /*ec*/) override {}
  void on_header_impl(error_code& /*ec*/) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>& /*length*/,
                         error_code& /*ec*/) override {}
  void on_finish_impl(error_code& /*ec*/) override {}

  HttpLimits limits_;
  std::size_t scanned_ = 0;  // the end of the header is not before this
  std::size_t chunks_ = 0;
  bool header_done_ = false;
  bool is_chunked_ = false;
};

RequestParser::RequestParser(const HttpLimits& limits) : impl_(std::make_unique<Impl>(limits)) {}
RequestParser::~RequestParser() = default;

std::size_t RequestParser::feed(std::string_view input) { return impl_->feed(input); }
bool RequestParser::header_done() const { return impl_->header_done(); }
bool RequestParser::done() const {
  return !impl_->fault && impl_->header_done() && impl_->is_done();
}
const std::optional<HttpFault>& RequestParser::fault() const { return impl_->fault; }
HttpRequest& RequestParser::request() { return impl_->request; }
std::optional<std::uint64_t> RequestParser::content_length() const { return impl_->length; }
bool RequestParser::expects_continue() const { return impl_->expects_continue; }

std::string_view reason_phrase(int status) {
  return view(http::obsolete_reason(static_cast<http::status>(status)));
}

}  // namespace quatrain::server
