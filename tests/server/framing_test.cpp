// SPDX-License-Identifier: Apache-2.0
// Hostile and odd HTTP: each case has one right status, whole, in pieces, and over a socket.
#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "server/request_parser.h"
#include "server/test_server.h"

namespace quatrain {
namespace {

using server::HttpLimits;
using server::RequestParser;
using testing::Client;
using testing::TestServer;

struct Case {
  std::string name;
  std::string bytes;
  int status;  // 0: read without a fault
};

HttpLimits small_limits() {
  return {.request_line = 200, .header = 1000, .header_count = 10, .body = 500, .chunks = 20};
}

std::string get(const std::string& fields) { return "GET /health HTTP/1.1\r\n" + fields + "\r\n"; }
std::string post(const std::string& fields, const std::string& body) {
  return "POST /tokenize HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n" + body;
}
std::string chunked(const std::string& body) {
  return post("Transfer-Encoding: chunked\r\n", body);
}

std::vector<Case> request_lines() {
  std::vector<Case> cases = {
      {"plain", get("Host: x\r\n"), 0},
      {"query", "GET /health?a=b&c HTTP/1.1\r\nHost: x\r\n\r\n", 0},
      {"absolute form", "GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 0},
      {"absolute form without path", "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 0},
      {"HTTP/1.0 without host", "GET /health HTTP/1.0\r\n\r\n", 0},
      {"blank line before", "\r\n" + get("Host: x\r\n"), 0},
      {"two blank lines before", "\r\n\r\n" + get("Host: x\r\n"), 0},
      {"three blank lines before", "\r\n\r\n\r\n" + get("Host: x\r\n"), 400},
      {"longest line", "GET /" + std::string(186, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n", 0},
      {"line too long", "GET /" + std::string(187, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
      {"endless line", "GET /" + std::string(5000, 'a'), 414},
      {"no version", "GET /health\r\nHost: x\r\n\r\n", 400},
      {"HTTP/0.9", "GET /health HTTP/0.9\r\nHost: x\r\n\r\n", 505},
      {"HTTP/1.2", "GET /health HTTP/1.2\r\nHost: x\r\n\r\n", 505},
      {"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"HTTP/11.1", "GET /health HTTP/11.1\r\nHost: x\r\n\r\n", 400},
      {"http/1.1", "GET /health http/1.1\r\nHost: x\r\n\r\n", 400},
      {"HTTP/1.x", "GET /health HTTP/1.x\r\nHost: x\r\n\r\n", 400},
      {"HTTP/1", "GET /health HTTP/1\r\nHost: x\r\n\r\n", 400},
      {"space behind version", "GET /health HTTP/1.1 \r\nHost: x\r\n\r\n", 400},
      {"two spaces", "GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"space in target", "GET /hea lth HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"tab for space", "GET\t/health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"space before method", " GET /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"relative target", "GET health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"authority", "CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"other scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"method with bad character", "G@T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"method with bracket", "GE(T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"bare LF", "GET /health HTTP/1.1\nHost: x\n\n", 400},
      {"bare LF behind the line", "GET /health HTTP/1.1\nHost: x\r\n\r\n", 400},
      {"bare CR", "GET /health HTTP/1.1\rHost: x\r\n\r\n", 400},
      {"NUL in target", std::string("GET /he\0lth HTTP/1.1\r\nHost: x\r\n\r\n", 33), 400},
      {"TLS hello", std::string("\x16\x03\x01\x02\x00\x01\x00", 7), 400},
      {"zeros", std::string(64, '\0'), 400},
      {"JSON", "{\"a\": 1}\r\n\r\n", 400},
      {"byte order mark", "\xEF\xBB\xBFGET /health HTTP/1.1\r\nHost: x\r\n\r\n", 400},
  };
  for (const char c : std::string("\x01\x08\x0b\x0c\x1f\x7f", 6))
    cases.push_back({fmt::format("control {} in target", static_cast<int>(c)),
                     "GET /a" + std::string(1, c) + " HTTP/1.1\r\nHost: x\r\n\r\n", 400});
  return cases;
}

std::vector<Case> fields() {
  std::string ten, eleven;
  for (int i = 0; i < 9; ++i) ten += fmt::format("f{}: x\r\n", i);
  eleven = ten + "g: x\r\n";
  return {
      {"ten fields", get("Host: x\r\n" + ten), 0},
      {"eleven fields", get("Host: x\r\n" + eleven), 431},
      {"long header", get("Host: x\r\na: " + std::string(900, 'a') + "\r\n"), 0},
      {"header too long", get("Host: x\r\na: " + std::string(1100, 'a') + "\r\n"), 431},
      {"endless header", "GET /health HTTP/1.1\r\nHost: " + std::string(5000, 'x'), 431},
      {"no host", get("Accept: x\r\n"), 400},
      {"two hosts", get("Host: x\r\nHost: x\r\n"), 400},
      {"empty host", get("Host:\r\n"), 0},
      {"space before colon", get("Host: x\r\nA : b\r\n"), 400},
      {"no colon", get("Host: x\r\nabc\r\n"), 400},
      {"empty name", get("Host: x\r\n: b\r\n"), 400},
      {"folded by space", get("Host: x\r\nA: b\r\n c\r\n"), 400},
      {"folded by tab", get("Host: x\r\nA: b\r\n\tc\r\n"), 400},
      {"folded first", get(" Host: x\r\n"), 400},
      {"bracket in name", get("Host: x\r\nA(b): c\r\n"), 400},
      {"UTF-8 in name", get("Host: x\r\n\xC3\xA4: c\r\n"), 400},
      {"UTF-8 in value", get("Host: x\r\nA: \xC3\xA4\r\n"), 0},
      {"NUL in value", get(std::string("Host: x\r\nA: b\0c\r\n", 17)), 400},
      {"control in value", get("Host: x\r\nA: b\x01\r\n"), 400},
      {"bare CR in value", get("Host: x\r\nA: b\rc\r\n"), 400},
      {"bare LF in value", get("Host: x\r\nA: b\nc\r\n"), 400},
      {"spaces around value", get("Host:   x  \r\nA:\t b \t\r\n"), 0},
      {"two authorizations", get("Host: x\r\nAuthorization: a\r\nAuthorization: b\r\n"), 400},
      {"continue", post("Expect: 100-continue\r\nContent-Length: 2\r\n", "{}"), 0},
      {"other expectation", post("Expect: 200-ok\r\nContent-Length: 2\r\n", "{}"), 417},
      {"gzip", post("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}"), 415},
      {"identity", post("Content-Encoding: identity\r\nContent-Length: 2\r\n", "{}"), 0},
      {"broken connection field", get("Host: x\r\nConnection: a b\r\n"), 400},
  };
}

std::vector<Case> lengths() {
  const auto with = [](const std::string& length) {
    return post("Content-Length: " + length + "\r\n", "{}");
  };
  return {
      {"length", with("2"), 0},
      {"leading zeros", with("002"), 0},
      {"plus", with("+2"), 400},
      {"minus", with("-2"), 400},
      {"hexadecimal", with("0x2"), 400},
      {"fraction", with("2.0"), 400},
      {"exponent", with("2e0"), 400},
      {"letters", with("two"), 400},
      {"empty", with(""), 400},
      {"list", with("2, 2"), 400},
      {"inner space", with("2 2"), 400},
      {"64 bits", with("18446744073709551616"), 400},
      {"64 bits and 2", with("18446744073709551618"), 400},
      {"19 digits", with("1000000000000000000"), 413},
      {"negative 64 bits", with("-18446744073709551614"), 400},
      {"too large", with("501"), 413},
      {"far too large", with("99999999999999"), 413},
      {"largest", post("Content-Length: 500\r\n", std::string(500, ' ')), 0},
      {"twice", post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"), 400},
      {"two values", post("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"), 400},
      {"length and chunks", post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "{}"), 400},
      {"chunks and length", post("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", "{}"), 400},
      {"identity coding", post("Transfer-Encoding: identity\r\n", "{}"), 501},
      {"gzip coding", post("Transfer-Encoding: gzip, chunked\r\n", "{}"), 501},
      {"chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", "{}"), 501},
      {"two codings", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""),
       400},
      {"unknown coding", post("Transfer-Encoding: xchunked\r\n", "{}"), 501},
      {"quoted coding", post("Transfer-Encoding: \"chunked\"\r\n", "{}"), 501},
      {"vertical tab in coding",
       post("Transfer-Encoding: \x0b"
            "chunked\r\n",
            "{}"),
       400},
      {"chunks in HTTP/1.0",
       "POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
  };
}

std::vector<Case> chunks() {
  std::string many;
  for (int i = 0; i < 30; ++i) many += "1\r\n \r\n";
  std::vector<Case> cases = {
      {"chunks", chunked("1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), 0},
      {"upper case coding", post("Transfer-Encoding: CHUNKED\r\n", "2\r\n{}\r\n0\r\n\r\n"), 0},
      {"hexadecimal size", chunked("a\r\n{        }\r\n0\r\n\r\n"), 0},
      {"extension", chunked("2;a=b\r\n{}\r\n0\r\n\r\n"), 0},
      {"quoted extension", chunked("2;a=\"b\"\r\n{}\r\n0\r\n\r\n"), 0},
      {"trailer", chunked("2\r\n{}\r\n0\r\nA: b\r\n\r\n"), 0},
      {"trailing length", chunked("2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n"), 400},
      {"many chunks", chunked(many + "0\r\n\r\n"), 413},
      {"too much",
       chunked("12c\r\n" + std::string(300, ' ') + "\r\n12c\r\n" + std::string(300, ' ') +
               "\r\n0\r\n\r\n"),
       413},
      {"chunk too large", chunked("fffff\r\n"), 413},
      {"size of 64 bits", chunked("10000000000000002\r\n{}\r\n0\r\n\r\n"), 400},
      {"long extension", chunked("2;" + std::string(20000, 'a')), 400},
      {"long trailer", chunked("2\r\n{}\r\n0\r\nA: " + std::string(20000, 'a')), 400},
  };
  for (const char* size : {"-1", "+2", "0x2", "g", " 2", "", "2 ", ";a=b", "2g", "\t2", "2\t"}) {
    const bool is_allowed = std::string_view(size) == "2 " || std::string_view(size) == "2\t";
    if (!is_allowed)
      cases.push_back({fmt::format("size '{}'", size),
                       chunked(std::string(size) + "\r\n{}\r\n0\r\n\r\n"), 400});
  }
  for (const char* end : {"\n", "\r", "x", "xx", "{}"})
    cases.push_back({fmt::format("chunk of 2 ends with {} bytes", std::strlen(end)),
                     chunked("2\r\n{}" + std::string(end) + "0\r\n\r\n      "), 400});
  cases.push_back({"bare LF behind a size", chunked("2\n{}\r\n0\r\n\r\n"), 400});
  return cases;
}

// Every byte where it does not belong.
std::vector<Case> characters() {
  std::vector<Case> cases;
  const auto add = [&](const char* where, int c, const std::string& bytes) {
    cases.push_back({fmt::format("byte {} in {}", c, where), bytes, 400});
  };
  for (int c = 1; c < 256; ++c) {
    const std::string byte(1, static_cast<char>(c));
    const bool is_control = c < 32 || c == 127;
    const bool is_line_end = c == '\r' || c == '\n';
    const bool is_separator =
        std::string_view("\"(),/;<=>?@[\\]{} ").find(byte) != std::string::npos;
    if (is_control || is_separator || c == 128 || c == 255)
      add("a name", c, get("Host: x\r\nA" + byte + "b: c\r\n"));
    if (is_control && c != '\t') add("a value", c, get("Host: x\r\nA: b" + byte + "c\r\n"));
    if ((is_control && !is_line_end) || c == ' ')
      add("a target", c, "GET /a" + byte + "b HTTP/1.1\r\nHost: x\r\n\r\n");
    if (is_separator && c != ' ')
      add("a method", c, "GE" + byte + "T /health HTTP/1.1\r\nHost: x\r\n\r\n");
    if (c == '-' || c == '+' || c == '.' || c == ',' || c == 'e' || c == 'x')
      add("a length", c, post("Content-Length: 1" + byte + "2\r\n", "{}"));
  }
  return cases;
}

// Two readers must not see two different requests.
std::vector<Case> smuggling() {
  const std::string body = "0\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n";
  const auto with = [&](const std::string& lines) { return post(lines, body); };
  return {
      {"TE with a space before the colon", with("Transfer-Encoding : chunked\r\n"), 400},
      {"TE with a tab before the colon", with("Transfer-Encoding\t: chunked\r\n"), 400},
      {"TE folded", with("Transfer-Encoding:\r\n chunked\r\n"), 400},
      {"TE behind a fold", with("A: b\r\n Transfer-Encoding: chunked\r\n"), 400},
      {"TE behind a bare CR", with("A: b\rTransfer-Encoding: chunked\r\n"), 400},
      {"TE behind a bare LF", with("A: b\nTransfer-Encoding: chunked\r\n"), 400},
      {"TE behind a NUL", with(std::string("A: b\0Transfer-Encoding: chunked\r\n", 33)), 400},
      {"TE empty", with("Transfer-Encoding:\r\n"), 501},
      {"TE comma", with("Transfer-Encoding: ,chunked\r\n"), 501},
      {"TE chunked and more", with("Transfer-Encoding: chunked, identity\r\n"), 501},
      {"TE with a parameter", with("Transfer-Encoding: chunked;q=1\r\n"), 501},
      {"TE with a semicolon", with("Transfer-Encoding: chunked;\r\n"), 501},
      {"TE deflate", with("Transfer-Encoding: deflate\r\n"), 501},
      {"TE and CL of the body",
       with(fmt::format("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", body.size())), 400},
      {"CL of the body and TE",
       with(fmt::format("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", body.size())), 400},
      {"CL twice, other case", with("Content-Length: 2\r\ncontent-length: 2\r\n"), 400},
      {"CL with a comma at the end", with("Content-Length: 2,\r\n"), 400},
      {"CL with digits of another script", with("Content-Length: \xD9\xA2\r\n"), 400},
      {"CL with an underscore", with("Content-Length: 1_0\r\n"), 400},
      {"CL in quotes", with("Content-Length: \"2\"\r\n"), 400},
      {"CL and a space before the colon", with("Content-Length : 2\r\n"), 400},
      {"a chunk size with a comma", chunked("2,2\r\n{}\r\n0\r\n\r\n"), 400},
      {"a chunk size with a point", chunked("2.0\r\n{}\r\n0\r\n\r\n"), 400},
      {"a chunk size with an underscore", chunked("0_2\r\n{}\r\n0\r\n\r\n"), 400},
      {"a chunk with its length twice", chunked("2\r\n2\r\n{}\r\n0\r\n\r\n"), 400},
      {"a chunk shorter than said", chunked("3\r\n{}\r\n0\r\n\r\n"), 400},
      {"a last chunk with data", chunked("0\r\n{}\r\n0\r\n\r\n"), 400},
      {"a trailer that is no field", chunked("2\r\n{}\r\n0\r\nabc\r\n\r\n"), 400},
      {"a trailer folded first", chunked("2\r\n{}\r\n0\r\n A: b\r\n\r\n"), 400},
  };
}

std::vector<Case> all_cases() {
  std::vector<Case> all;
  for (auto&& part : {request_lines(), fields(), lengths(), chunks(), characters(), smuggling()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

// What a connection does with the bytes it has: feeds all it did not use yet, again with more.
int status_of(const std::string& bytes, std::size_t piece) {
  RequestParser parser(small_limits());
  std::string in;
  for (std::size_t at = 0; at < bytes.size() && !parser.fault() && !parser.done();) {
    in += bytes.substr(at, piece);
    at += piece;
    for (std::size_t used = 1; used > 0 && !parser.fault() && !parser.done();) {
      used = parser.feed(in);
      in.erase(0, used);
    }
  }
  if (parser.fault()) return parser.fault()->status;
  return parser.done() ? 0 : -1;
}

// Around the limit of a header it does not matter how the bytes arrive.
TEST(Framing, AHeaderAtItsLimitIsJudgedAlikeInPieces) {
  const HttpLimits limits{.request_line = 32, .header = 64, .header_count = 4};
  for (std::size_t n = 40; n < 70; ++n) {
    const std::string bytes = "GET / HTTP/1.1\r\nHost: x\r\na: " + std::string(n, 'a') + "\r\n\r\n";
    RequestParser whole(limits), pieces(limits);
    whole.feed(bytes);
    std::string in;
    for (const char byte : bytes) {
      if (pieces.fault() || pieces.done()) break;
      in += byte;
      in.erase(0, pieces.feed(in));
    }
    EXPECT_EQ(pieces.done(), whole.done()) << n << " bytes";
    EXPECT_EQ(whole.done(), 12 + n <= limits.header) << n << " bytes";
  }
}

TEST(Framing, EveryCaseHasItsStatusHoweverItIsCut) {
  const auto cases = all_cases();
  EXPECT_GE(std::ranges::count_if(cases, [](const Case& c) { return c.status != 0; }), 200);
  for (const Case& c : cases)
    for (const std::size_t piece : {std::size_t{1} << 20, std::size_t{1}, std::size_t{7}})
      EXPECT_EQ(status_of(c.bytes, piece), c.status) << c.name << ", pieces of " << piece;
}

TEST(Framing, EveryCaseOverASocket) {
  TestServer::Setup setup;
  setup.http.limits = small_limits();
  TestServer server(setup);
  for (const Case& c : all_cases()) {
    Client client(server.port());
    client.send(c.bytes);
    const auto reply = client.reply();
    if (c.status == 0) {
      EXPECT_TRUE(reply.status != 0 && reply.status != 431 && reply.status < 500) << c.name;
      continue;
    }
    EXPECT_EQ(reply.status, c.status) << c.name;
    EXPECT_EQ(reply.field("Connection"), "close") << c.name;
    EXPECT_TRUE(reply.parsed()["error"]["message"].is_string()) << c.name << ": " << reply.body;
    EXPECT_TRUE(client.ended()) << c.name;
  }
  EXPECT_EQ(server.get("/health").status, 200);
}

TEST(Framing, MutatedRequestsNeverCrashAndAgreeForEveryCut) {
  std::mt19937 random(1);
  const auto cases = all_cases();
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = cases[random() % cases.size()].bytes;
    for (auto n = 1 + random() % 4; n > 0 && !bytes.empty(); --n) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, random() % 4);
          break;
        default:
          bytes.insert(at, 1, "\r\n:; 0\t"[random() % 7]);
      }
    }
    const int whole = status_of(bytes, std::size_t{1} << 20);
    // A request that stays incomplete may be refused earlier or later, never read differently.
    if (whole == 0) {
      EXPECT_EQ(status_of(bytes, 1), 0) << bytes;
    }
  }
}

TEST(Framing, PipelinedRequestsAreAnsweredInOrder) {
  TestServer server;
  Client client(server.port());
  std::string text;
  for (int i = 0; i < 50; ++i)
    text += TestServer::post_text("/detokenize", fmt::format(R"({{"tokens":[{}]}})", 300 + i)) +
            "GET /version HTTP/1.1\r\nHost: x\r\n\r\n";
  client.send(text);
  for (int i = 0; i < 50; ++i) {
    const auto reply = client.reply();
    ASSERT_EQ(reply.status, 200);
    const auto wanted = testing::storyteller_tokenizer().token(300 + i);
    EXPECT_EQ(reply.parsed()["prompt"], std::string(wanted)) << i;
    EXPECT_EQ(client.reply().parsed()["version"], "test");
  }
}

}  // namespace
}  // namespace quatrain
