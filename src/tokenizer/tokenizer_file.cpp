// SPDX-License-Identifier: Apache-2.0
// Reads tokenizer.json and tokenizer_config.json into a Tokenizer.
//
// The files are untrusted: every size, id and reference is checked, and a file that asks for any
// other algorithm than V4's is refused. The post_processor is not read: at most it adds BOS, which
// is the caller's matter.
#include <fmt/format.h>
#include <simdjson.h>

#include <limits>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_data.h"
#include "tokenizer/unicode.h"

namespace quatrain {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// Bounds of a tokenizer.json. DeepSeek's own: 7 MB, 129,280 ids, 127,741 merges, 1,283 added.
constexpr std::size_t kMaxFileBytes = std::size_t{32} << 20;
constexpr std::int64_t kMaxConfigBytes = std::int64_t{4} << 20;
constexpr std::int64_t kMaxId = (1 << 20) - 1;
constexpr std::size_t kMaxMerges = 1 << 20;
constexpr std::size_t kMaxAddedTokens = 1 << 16;
constexpr std::size_t kMaxAddedBytes = 256;   // bounds the work of matching at one position
constexpr std::size_t kMaxTokenBytes = 4096;  // of a token's text in the file
constexpr std::size_t kMaxJsonDepth = 32;
constexpr std::size_t kQuotedBytes = 80;  // of what was found, in messages

std::string excerpt(std::string_view text) {
  if (text.size() <= kQuotedBytes) return json_quote(text);
  return json_quote(text.substr(0, kQuotedBytes)) + "…";
}

// A value for messages: short, whatever it is.
std::string shown(element value) {
  std::string_view text;
  if (!value.get(text)) return excerpt(text);
  switch (value.type()) {
    case simdjson::dom::element_type::ARRAY:
      return "an array";
    case simdjson::dom::element_type::OBJECT:
      return "an object";
    default:
      return simdjson::minify(value);
  }
}

// The GPT-2 alphabet: byte → the code point that stands for it in the vocabulary's strings.
// Printable bytes stand for themselves, the others follow from U+0100 on.
std::array<std::uint16_t, 256> byte_alphabet() {
  std::array<std::uint16_t, 256> alphabet{};
  std::uint16_t next = 0x100;
  for (unsigned b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
    alphabet[b] = printable ? static_cast<std::uint16_t>(b) : next++;
  }
  return alphabet;
}

}  // namespace

// One reading of one file.
class TokenizerFile {
 public:
  TokenizerFile(std::string_view name) : name_(name) {
    const auto alphabet = byte_alphabet();
    for (unsigned b = 0; b < 256; ++b) byte_of_[alphabet[b]] = static_cast<std::int16_t>(b);
  }

  Tokenizer read(std::string_view json);
  void read_config(std::string_view json, Tokenizer& tokenizer);

 private:
  using Data = Tokenizer::Data;

  element parse(std::string_view json);
  template <class T>
  T get(element parent, const char* key, const std::string& field, const char* expected) const;
  void expect_null_or(element parent, const char* key, const std::string& field,
                      const char* accepted) const;
  void expect_false(element parent, const char* key, const std::string& field, bool required) const;

  void check_pipeline(element root) const;
  void check_split(element stage, std::size_t index) const;
  void read_vocabulary(object vocab);
  void read_added_tokens(array added);
  void fill_tokens();
  void read_merges(array merges);
  std::pair<std::string_view, std::string_view> split_merge(element merge,
                                                            const std::string& field) const;
  void find_whole_pieces();
  void add_token(std::string_view text, std::int64_t id, const std::string& field);
  bool decode_alphabet(std::string_view text, std::string& bytes) const;

  std::string name_;
  simdjson::dom::parser parser_{kMaxFileBytes};
  std::array<std::int16_t, 0x200> byte_of_ = filled_with_none();  // code point → byte, or -1
  std::unique_ptr<Data> data_ = std::make_unique<Data>();
  std::unordered_map<std::string_view, std::int32_t> vocabulary_;  // by text in the file
  std::vector<std::string_view> text_of_;  // by id; empty: no token. Texts lie in parser_.
  std::vector<AddedTokenMatcher::Token> added_;
  std::vector<bool> is_added_;           // by id
  std::vector<std::int32_t> model_ids_;  // tokens of the model made of bytes
  static constexpr std::array<std::int16_t, 0x200> filled_with_none() {
    std::array<std::int16_t, 0x200> table{};
    for (auto& entry : table) entry = -1;
    return table;
  }
};

element TokenizerFile::parse(std::string_view json) {
  if (json.size() > kMaxFileBytes)
    fail("{}: expected at most {} bytes, found {}", name_, kMaxFileBytes, json.size());
  element root;
  auto error = parser_.allocate(json.size(), kMaxJsonDepth);
  if (!error) error = parser_.parse(json.data(), json.size()).get(root);
  if (error) fail("{}: expected JSON, found a fault: {}", name_, simdjson::error_message(error));
  if (!root.is_object()) fail("{}: expected an object, found {}", name_, shown(root));
  return root;
}

template <class T>
T TokenizerFile::get(element parent, const char* key, const std::string& field,
                     const char* expected) const {
  element value;
  if (parent.at_key(key).get(value))
    fail("{}: {}: expected {}, found nothing", name_, field, expected);
  T result;
  if (value.get(result))
    fail("{}: {}: expected {}, found {}", name_, field, expected, shown(value));
  return result;
}

void TokenizerFile::expect_null_or(element parent, const char* key, const std::string& field,
                                   const char* accepted) const {
  element value;
  std::string_view text;
  if (parent.at_key(key).get(value) || value.is_null()) return;
  if (!value.get(text) && text == accepted) return;
  fail("{}: {}: expected null, found {}", name_, field, shown(value));
}

void TokenizerFile::expect_false(element parent, const char* key, const std::string& field,
                                 bool required) const {
  element value;
  bool flag = true;
  if (parent.at_key(key).get(value)) {
    if (required) fail("{}: {}: expected false, found nothing", name_, field);
    return;
  }
  if (value.get(flag) || flag) fail("{}: {}: expected false, found {}", name_, field, shown(value));
}

// Everything in the file that chooses an algorithm.
void TokenizerFile::check_pipeline(element root) const {
  element normalizer;
  if (!root.at_key("normalizer").get(normalizer) && !normalizer.is_null()) {
    array steps;
    if (normalizer.at_key("normalizers").get(steps) || steps.size() != 0)
      fail("{}: normalizer: expected null or an empty sequence, found {}", name_,
           excerpt(simdjson::minify(normalizer)));
  }
  const auto pre = get<element>(root, "pre_tokenizer", "pre_tokenizer", "an object");
  const auto stages = get<array>(pre, "pretokenizers", "pre_tokenizer.pretokenizers",
                                 "three Split stages and ByteLevel");
  if (stages.size() != 4)
    fail("{}: pre_tokenizer.pretokenizers: expected 4 stages, found {}", name_, stages.size());
  for (std::size_t i = 0; i < 3; ++i) check_split(stages.at(i).value_unsafe(), i);
  const element last = stages.at(3).value_unsafe();
  const std::string field = "pre_tokenizer.pretokenizers[3]";
  const auto type = get<std::string_view>(last, "type", field + ".type", "\"ByteLevel\"");
  if (type != "ByteLevel")
    fail("{}: {}.type: expected \"ByteLevel\", found {}", name_, field, excerpt(type));
  expect_false(last, "add_prefix_space", field + ".add_prefix_space", true);
  expect_false(last, "use_regex", field + ".use_regex", true);

  const auto decoder = get<element>(root, "decoder", "decoder", "an object");
  const auto decoder_type = get<std::string_view>(decoder, "type", "decoder.type", "\"ByteLevel\"");
  if (decoder_type != "ByteLevel")
    fail("{}: decoder.type: expected \"ByteLevel\", found {}", name_, excerpt(decoder_type));

  const auto model = get<element>(root, "model", "model", "an object");
  const auto model_type = get<std::string_view>(model, "type", "model.type", "\"BPE\"");
  if (model_type != "BPE")
    fail("{}: model.type: expected \"BPE\", found {}", name_, excerpt(model_type));
  expect_null_or(model, "dropout", "model.dropout", "");
  expect_null_or(model, "unk_token", "model.unk_token", "");
  expect_null_or(model, "continuing_subword_prefix", "model.continuing_subword_prefix", "");
  expect_null_or(model, "end_of_word_suffix", "model.end_of_word_suffix", "");
  expect_false(model, "byte_fallback", "model.byte_fallback", false);
  expect_false(model, "ignore_merges", "model.ignore_merges", false);
}

void TokenizerFile::check_split(element stage, std::size_t index) const {
  const std::string field = fmt::format("pre_tokenizer.pretokenizers[{}]", index);
  const auto type = get<std::string_view>(stage, "type", field + ".type", "\"Split\"");
  if (type != "Split")
    fail("{}: {}.type: expected \"Split\", found {}", name_, field, excerpt(type));
  const auto pattern = get<element>(stage, "pattern", field + ".pattern", "an object");
  const std::string regex_field = field + ".pattern.Regex";
  // A newline may stand in the pattern itself or as an escape: the same to a regular expression.
  std::string regex;
  for (const char c : get<std::string_view>(pattern, "Regex", regex_field, "a string")) {
    if (c == '\r')
      regex += "\\r";
    else if (c == '\n')
      regex += "\\n";
    else
      regex += c;
  }
  if (regex != kSplitPatterns[index])
    fail("{}: {}: expected DeepSeek-V4's {}, found {}", name_, regex_field,
         json_quote(kSplitPatterns[index]), excerpt(regex));
  const auto behavior =
      get<std::string_view>(stage, "behavior", field + ".behavior", "\"Isolated\"");
  if (behavior != "Isolated")
    fail("{}: {}.behavior: expected \"Isolated\", found {}", name_, field, excerpt(behavior));
  expect_false(stage, "invert", field + ".invert", false);
}

// Registers a text under an id; the same pair may come again (added tokens do).
void TokenizerFile::add_token(std::string_view text, std::int64_t id, const std::string& field) {
  if (text.empty() || text.size() > kMaxTokenBytes)
    fail("{}: {}: expected a text of 1 to {} bytes, found {}", name_, field, kMaxTokenBytes,
         text.size());
  if (id < 0 || id > kMaxId)
    fail("{}: {}: expected an id from 0 to {}, found {}", name_, field, kMaxId, id);
  const auto index = static_cast<std::size_t>(id);
  if (index >= text_of_.size()) text_of_.resize(index + 1);
  if (!text_of_[index].empty() && text_of_[index] != text)
    fail("{}: {}: expected an id of its own, found {}, which is {}", name_, field, id,
         excerpt(text_of_[index]));
  text_of_[index] = text;
}

void TokenizerFile::read_vocabulary(object vocab) {
  for (const auto [text, value] : vocab) {
    const std::string field = "model.vocab[" + excerpt(text) + "]";
    std::int64_t id = 0;
    if (value.get(id)) fail("{}: {}: expected an id, found {}", name_, field, shown(value));
    add_token(text, id, field);
    if (!vocabulary_.emplace(text, static_cast<std::int32_t>(id)).second)
      fail("{}: {}: expected each text once, found it twice", name_, field);
  }
}

void TokenizerFile::read_added_tokens(array added) {
  if (added.size() > kMaxAddedTokens)
    fail("{}: added_tokens: expected at most {}, found {}", name_, kMaxAddedTokens, added.size());
  std::unordered_map<std::string_view, std::size_t> seen;
  for (const element entry : added) {
    const std::string field = fmt::format("added_tokens[{}]", added_.size());
    const auto text = get<std::string_view>(entry, "content", field + ".content", "a string");
    const auto id = get<std::int64_t>(entry, "id", field + ".id", "an id");
    if (text.size() > kMaxAddedBytes)
      fail("{}: {}.content: expected at most {} bytes, found {}", name_, field, kMaxAddedBytes,
           text.size());
    for (const char* flag : {"single_word", "lstrip", "rstrip"})
      expect_false(entry, flag, field + "." + flag, false);
    bool special = false;
    if (!entry.at_key("special").error())
      special = get<bool>(entry, "special", field + ".special", "true or false");
    const auto [same, is_new] = seen.emplace(text, added_.size());
    if (!is_new)
      fail("{}: {}.content: expected a text of its own, found {} of added_tokens[{}]", name_, field,
           excerpt(text), same->second);
    const auto in_model = vocabulary_.find(text);
    if (in_model != vocabulary_.end() && in_model->second != id)
      fail("{}: {}.id: expected {} as in model.vocab, found {}", name_, field, in_model->second,
           id);
    add_token(text, id, field);
    added_.push_back({std::string(text), static_cast<std::int32_t>(id)});
    data_->special.resize(std::max<std::size_t>(data_->special.size(), id + 1));
    data_->special[id] = special;
  }
}

// The bytes that a text of the vocabulary stands for; false when it is not of the alphabet.
bool TokenizerFile::decode_alphabet(std::string_view text, std::string& bytes) const {
  bytes.clear();
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (c.status != Utf8Char::Status::kValid || c.code_point >= byte_of_.size()) return false;
    const std::int16_t byte = byte_of_[c.code_point];
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
    text.remove_prefix(c.size);
  }
  return true;
}

void TokenizerFile::fill_tokens() {
  data_->special.resize(text_of_.size());
  data_->tokens.resize(text_of_.size());
  is_added_.resize(text_of_.size());
  for (const auto& token : added_) is_added_[token.id] = true;
  data_->byte_ids.fill(TokenIndex::kNone);
  std::string bytes;
  for (std::size_t i = 0; i < text_of_.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const bool in_alphabet = decode_alphabet(text_of_[i], bytes);
    // The text of an added token is literal, and so is one with characters outside the alphabet.
    data_->tokens.set(id, in_alphabet && !is_added_[i] ? std::string_view(bytes) : text_of_[i]);
    if (!in_alphabet || !vocabulary_.contains(text_of_[i])) continue;
    if (is_added_[i]) continue;  // plain text never becomes an added token
    if (bytes.size() == 1) data_->byte_ids[static_cast<unsigned char>(bytes[0])] = id;
    model_ids_.push_back(id);
  }
  for (unsigned b = 0; b < 256; ++b)
    if (data_->byte_ids[b] == TokenIndex::kNone)
      fail("{}: model.vocab: expected a token for each byte, found none for byte {:#04x}", name_,
           b);
  data_->vocabulary.reserve(model_ids_.size());
  for (const std::int32_t id : model_ids_) data_->vocabulary.insert(data_->tokens, id);
  data_->added = AddedTokenMatcher(std::move(added_));
}

// A merge is ["a", "b"] or "a b".
std::pair<std::string_view, std::string_view> TokenizerFile::split_merge(
    element merge, const std::string& field) const {
  std::string_view left, right;
  array pair;
  if (!merge.get(pair)) {
    if (pair.size() != 2 || pair.at(0).get(left) || pair.at(1).get(right))
      fail("{}: {}: expected two strings, found an array of {}", name_, field, pair.size());
  } else if (!merge.get(left)) {
    const std::size_t space = left.find(' ');
    if (space == left.npos || left.find(' ', space + 1) != left.npos)
      fail("{}: {}: expected two texts and a space between them, found {}", name_, field,
           excerpt(left));
    right = left.substr(space + 1);
    left = left.substr(0, space);
  } else {
    fail("{}: {}: expected a pair of strings, found {}", name_, field, shown(merge));
  }
  return {left, right};
}

void TokenizerFile::read_merges(array merges) {
  if (merges.size() > kMaxMerges)
    fail("{}: model.merges: expected at most {}, found {}", name_, kMaxMerges, merges.size());
  data_->merges.reserve(merges.size());
  std::int32_t rank = 0;
  for (const element merge : merges) {
    const std::string field = fmt::format("model.merges[{}]", rank);
    const auto [left, right] = split_merge(merge, field);
    const auto id_of = [&](std::string_view text) {
      const auto it = vocabulary_.find(text);
      if (it == vocabulary_.end())
        fail("{}: {}: expected texts of model.vocab, found {}", name_, field, excerpt(text));
      return it->second;
    };
    const std::int32_t left_id = id_of(left), right_id = id_of(right);
    const std::int32_t merged_id = id_of(std::string(left) + std::string(right));
    if (is_added_[merged_id])
      fail("{}: {}: expected a merge into plain text, found the added token {}", name_, field,
           excerpt(text_of_[merged_id]));
    if (!data_->merges.insert(left_id, right_id, {rank, merged_id}))
      fail("{}: {}: expected each pair once, found {} and {} again", name_, field, excerpt(left),
           excerpt(right));
    ++rank;
  }
}

// Most pieces of a text are one token: find those that can be taken without merging.
void TokenizerFile::find_whole_pieces() {
  std::vector<std::int32_t> whole, ids;
  for (const std::int32_t id : model_ids_) {
    ids.clear();
    for (const char c : data_->tokens.get(id))
      ids.push_back(data_->byte_ids[static_cast<unsigned char>(c)]);
    if (merge_pairs(data_->merges, ids) == 1 && ids[0] == id) whole.push_back(id);
  }
  data_->whole_pieces.reserve(whole.size());
  for (const std::int32_t id : whole) data_->whole_pieces.insert(data_->tokens, id);
}

Tokenizer TokenizerFile::read(std::string_view json) {
  const element root = parse(json);
  check_pipeline(root);
  const auto model = get<element>(root, "model", "model", "an object");
  read_vocabulary(get<object>(model, "vocab", "model.vocab", "an object"));
  if (!root.at_key("added_tokens").error())
    read_added_tokens(get<array>(root, "added_tokens", "added_tokens", "an array"));
  fill_tokens();
  read_merges(get<array>(model, "merges", "model.merges", "an array"));
  find_whole_pieces();
  data_->bos = data_->added.id_of(kBosToken);
  data_->eos = data_->added.id_of(kEosToken);
  return Tokenizer(std::move(data_));
}

void TokenizerFile::read_config(std::string_view json, Tokenizer& tokenizer) {
  const element root = parse(json);
  element value;
  // A token is given by its text, or as an object that holds the text.
  const auto read_token = [&](const char* key, std::optional<std::int32_t>& id) {
    if (root.at_key(key).get(value) || value.is_null()) return;
    std::string_view text;
    if (value.is_object())
      text = get<std::string_view>(value, "content", std::string(key) + ".content", "a string");
    else if (value.get(text))
      fail("{}: {}: expected a string, found {}", name_, key, shown(value));
    id = tokenizer.added_id_of(text);
    if (!id) fail("{}: {}: expected an added token, found {}", name_, key, excerpt(text));
  };
  read_token("bos_token", tokenizer.data_->bos);
  read_token("eos_token", tokenizer.data_->eos);
  if (!root.at_key("add_bos_token").get(value) && !value.is_null())
    tokenizer.data_->add_bos = get<bool>(root, "add_bos_token", "add_bos_token", "true or false");
}

Tokenizer Tokenizer::parse(std::string_view json, std::string_view name) {
  return TokenizerFile(name).read(json);
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "tokenizer.json" : path;
  Tokenizer tokenizer = parse(read_text_file(file, kMaxFileBytes), file.string());
  const auto config = file.parent_path() / "tokenizer_config.json";
  if (std::filesystem::exists(config))
    TokenizerFile(config.string()).read_config(read_text_file(config, kMaxConfigBytes), tokenizer);
  return tokenizer;
}

}  // namespace quatrain
