// SPDX-License-Identifier: Apache-2.0
// quatrain tokenize: text to token ids, and back.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/text_file.h"
#include "core/error.h"
#include "core/json.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace quatrain::apps {
namespace {

struct TokenizeFlags {
  std::string model;
  std::optional<std::string> text;
  std::optional<std::string> file;
  std::optional<std::string> decode;
  bool pieces = false;
  bool json = false;
  bool no_special = false;
  bool bos = false;
};

std::string input_text(const TokenizeFlags& flags) {
  return flags.text ? *flags.text : read_text(flags.file.value_or("-"));
}

// Ids separated by spaces, commas, newlines or brackets, so that our own output can be given back.
std::vector<std::int32_t> parse_ids(const Tokenizer& tokenizer, std::string_view text) {
  constexpr std::string_view kSeparators = " ,[]\t\r\n";
  std::vector<std::int32_t> ids;
  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(kSeparators), text.size()));
    if (text.empty()) return ids;
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    std::int32_t id = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), id);
    if (result.ec != std::errc() || result.ptr != word.data() + word.size() ||
        !tokenizer.has_token(id))
      fail("--decode: expected ids of tokens, found {}", json_quote(word));
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

// A token in quotes; bytes that are no character by themselves as \xNN.
std::string quoted_piece(std::string_view bytes) {
  std::string out = "\"";
  while (!bytes.empty()) {
    const Utf8Char c = decode_utf8(bytes);
    const std::string_view part = bytes.substr(0, c.size);
    if (c.status == Utf8Char::Status::kValid) {
      const std::string quoted = json_quote(part);
      out.append(quoted, 1, quoted.size() - 2);
    } else {
      for (const char byte : part)
        out += fmt::format("\\x{:02X}", static_cast<unsigned>(static_cast<unsigned char>(byte)));
    }
    bytes.remove_prefix(c.size);
  }
  return out + "\"";
}

// The same as a JSON string, where such bytes become U+FFFD.
std::string json_piece(std::string_view bytes) {
  std::string pending(bytes), text;
  drain_utf8(pending, true, text);
  return json_quote(text);
}

void print_json(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, bool pieces) {
  std::string id_list, piece_list;
  for (const std::int32_t id : ids) {
    const char* separator = id_list.empty() ? "" : ", ";
    id_list += fmt::format("{}{}", separator, id);
    if (pieces) piece_list += separator + json_piece(tokenizer.token(id));
  }
  fmt::print("{{\"count\": {}, \"ids\": [{}]", ids.size(), id_list);
  if (pieces) fmt::print(", \"pieces\": [{}]", piece_list);
  fmt::print("}}\n");
}

void tokenize(const TokenizeFlags& flags) {
  const Tokenizer tokenizer = Tokenizer::load(flags.model);
  if (flags.decode) {
    const std::string text = tokenizer.decode(parse_ids(tokenizer, *flags.decode));
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  std::vector<std::int32_t> ids;
  if (flags.bos) {
    if (!tokenizer.bos_id()) fail("--bos: expected a vocabulary with a BOS token, found none");
    ids.push_back(*tokenizer.bos_id());
  }
  tokenizer.encode_to(input_text(flags),
                      flags.no_special ? AddedTokens::kText : AddedTokens::kMatch, ids);
  if (flags.json) {
    print_json(tokenizer, ids, flags.pieces);
  } else if (flags.pieces) {
    for (const std::int32_t id : ids)
      fmt::print("{:>7} {}\n", id, quoted_piece(tokenizer.token(id)));
  } else {
    fmt::print("{}\n", fmt::join(ids, " "));
  }
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* verb =
      app.add_subcommand("tokenize", "Print the token ids of a text, or the text of ids");
  verb->add_option("model", flags->model, "Model folder or tokenizer.json")->required();
  auto* text = verb->add_option("text", flags->text, "The text; otherwise standard input is read");
  auto* file =
      verb->add_option("-f,--file", flags->file, "Read the text from a file; - is standard input");
  auto* decode =
      verb->add_option("--decode", flags->decode, "Ids to turn into text, such as \"5 17\"");
  file->excludes(text);
  decode->excludes(text)->excludes(file);
  verb->add_flag("--pieces", flags->pieces, "One token per line: its id and its text");
  verb->add_flag("--json", flags->json, "Print JSON");
  verb->add_flag("--no-special", flags->no_special, "Take control tokens in the text for text");
  verb->add_flag("--bos", flags->bos, "Begin with the BOS token");
  verb->callback([flags] { tokenize(*flags); });
}

}  // namespace quatrain::apps
