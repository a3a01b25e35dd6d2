// SPDX-License-Identifier: Apache-2.0
// Reading tokenizer.json: every deviation is refused with a message that names the fault.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "core/error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/toy_tokenizer.h"

namespace quatrain {
namespace {

using testing::Json;

Json toy() { return testing::toy_json({"<think>", "</think>"}, {{"a", "b"}, {"ab", "c"}}); }

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(TokenizerFile, RefusesWithTheFieldTheExpectedAndTheFound) {
  struct Case {
    std::function<void(Json&)> change;
    const char* message;  // a part of it
  };
  const auto stage = [](Json& j, int i) -> Json& { return j["pre_tokenizer"]["pretokenizers"][i]; };
  const Case cases[] = {
      {[](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer: expected null"},
      {[](Json& j) { j.erase("pre_tokenizer"); },
       "pre_tokenizer: expected an object, found nothing"},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "ByteLevel"}};
       },
       "pre_tokenizer.pretokenizers: expected three Split stages and ByteLevel, found nothing"},
      {[](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); }, "expected 4 stages, found 3"},
      {[&](Json& j) { stage(j, 0)["pattern"]["Regex"] = "\\p{N}"; },
       R"(pretokenizers[0].pattern.Regex: expected DeepSeek-V4's "\\p{N}{1,3}", found "\\p{N}")"},
      {[&](Json& j) { stage(j, 2)["pattern"]["Regex"] = "\\s+"; }, R"(found "\\s+")"},
      {[&](Json& j) {
         stage(j, 2)["pattern"] = {{"String", " "}};
       },
       "pretokenizers[2].pattern.Regex: expected a string, found nothing"},
      {[&](Json& j) { stage(j, 1)["behavior"] = "Removed"; },
       R"(pretokenizers[1].behavior: expected "Isolated", found "Removed")"},
      {[&](Json& j) { stage(j, 1)["invert"] = true; }, "[1].invert: expected false, found true"},
      {[&](Json& j) { stage(j, 1)["type"] = "Digits"; }, R"(expected "Split", found "Digits")"},
      {[&](Json& j) { stage(j, 3)["add_prefix_space"] = true; },
       "add_prefix_space: expected false"},
      {[&](Json& j) { stage(j, 3)["use_regex"] = true; }, "use_regex: expected false, found true"},
      {[&](Json& j) { stage(j, 3).erase("use_regex"); },
       "use_regex: expected false, found nothing"},
      {[&](Json& j) { stage(j, 3)["type"] = "Metaspace"; },
       R"(expected "ByteLevel", found "Metas)"},
      {[](Json& j) { j["decoder"]["type"] = "WordPiece"; }, "decoder.type: expected \"ByteLevel\""},
      {[](Json& j) { j.erase("decoder"); }, "decoder: expected an object, found nothing"},
      {[](Json& j) { j.erase("model"); }, "model: expected an object, found nothing"},
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "model.type: expected \"BPE\""},
      {[](Json& j) { j["model"]["dropout"] = 0.1; }, "model.dropout: expected null, found 0.1"},
      {[](Json& j) { j["model"]["unk_token"] = "<unk>"; }, "model.unk_token: expected null"},
      {[](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, "found \"##\""},
      {[](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix: expected"},
      {[](Json& j) { j["model"]["byte_fallback"] = true; }, "byte_fallback: expected false"},
      {[](Json& j) { j["model"]["ignore_merges"] = true; }, "ignore_merges: expected false"},
      {[](Json& j) { j["model"].erase("vocab"); },
       "model.vocab: expected an object, found nothing"},
      {[](Json& j) { j["model"]["vocab"] = Json::array(); }, "found an array"},
      {[](Json& j) { j["model"]["vocab"]["a"] = -1; }, "model.vocab[\"a\"]: expected an id from 0"},
      {[](Json& j) { j["model"]["vocab"]["a"] = 1 << 20; }, "found 1048576"},
      {[](Json& j) { j["model"]["vocab"]["a"] = 1e18; }, "expected an id, found 1e"},
      {[](Json& j) { j["model"]["vocab"]["a"] = ~0ull; }, "found 18446744073709551615"},
      {[](Json& j) { j["model"]["vocab"]["a"] = "5"; }, "expected an id, found \"5\""},
      {[](Json& j) { j["model"]["vocab"]["a"] = 5; }, "expected an id of its own, found 5"},
      {[](Json& j) { j["model"]["vocab"].erase("a"); }, "found none for byte 0x61"},
      {[](Json& j) { j["model"]["vocab"][""] = 4000; }, "expected a text of 1 to 4096 bytes"},
      {[](Json& j) { j["model"]["vocab"][std::string(5000, 'a')] = 4000; }, "found 5000"},
      {[](Json& j) { j["model"].erase("merges"); }, "model.merges: expected an array"},
      {[](Json& j) { j["model"]["merges"][0] = "ab"; }, "model.merges[0]: expected two texts"},
      {[](Json& j) { j["model"]["merges"][0] = "a b c"; }, "found \"a b c\""},
      {[](Json& j) { j["model"]["merges"][1] = {"ab"}; },
       "[1]: expected two strings, found an array of 1"},
      {[](Json& j) {
         j["model"]["merges"][1] = {"ab", 3};
       },
       "expected two strings"},
      {[](Json& j) { j["model"]["merges"][1] = 7; }, "expected a pair of strings, found 7"},
      {[](Json& j) {
         j["model"]["merges"][1] = {"ab", "zz"};
       },
       "model.merges[1]: expected texts of model.vocab, found \"zz\""},
      {[](Json& j) {
         j["model"]["merges"][1] = {"b", "a"};
       },
       "found \"ba\""},
      {[](Json& j) {
         j["model"]["merges"][1] = {"a", "b"};
       },
       "[1]: expected each pair once"},
      {[](Json& j) { j["added_tokens"] = 3; }, "added_tokens: expected an array, found 3"},
      {[](Json& j) { j["added_tokens"][0].erase("id"); }, "added_tokens[0].id: expected an id"},
      {[](Json& j) { j["added_tokens"][0].erase("content"); }, "added_tokens[0].content: expected"},
      {[](Json& j) { j["added_tokens"][0]["content"] = ""; },
       "added_tokens[0]: expected a text of 1"},
      {[](Json& j) { j["added_tokens"][1]["content"] = std::string(257, 'x'); }, "found 257"},
      {[](Json& j) { j["added_tokens"][1]["content"] = "<think>"; },
       "added_tokens[1].content: expected a text of its own, found \"<think>\" of added_tokens[0]"},
      {[](Json& j) { j["added_tokens"][1]["id"] = 0; }, "found 0, which is \"<think>\""},
      {[](Json& j) { j["added_tokens"][1]["id"] = 1 << 28; }, "expected an id from 0 to 1048575"},
      {[](Json& j) { j["added_tokens"][1]["content"] = "a"; }, "as in model.vocab, found 1"},
      {[](Json& j) {
         j["added_tokens"][1] = {{"content", "a"}, {"id", j["model"]["vocab"]["a"]}};
       },
       "expected a token for each byte, found none for byte 0x61"},
      {[](Json& j) {
         j["added_tokens"][1] = {{"content", "ab"}, {"id", j["model"]["vocab"]["ab"]}};
       },
       "model.merges[0]: expected a merge into plain text, found the added token \"ab\""},
      {[](Json& j) { j["added_tokens"][1]["lstrip"] = true; }, "added_tokens[1].lstrip: expected"},
      {[](Json& j) { j["added_tokens"][1]["single_word"] = true; }, "single_word: expected false"},
      {[](Json& j) { j["added_tokens"][1]["special"] = 1; }, "special: expected true or false"},
      {[](Json& j) { j["added_tokens"][1] = "x"; }, "added_tokens[1].content: expected a string"},
  };
  ASSERT_NO_THROW(Tokenizer::parse(toy().dump()));
  for (const Case& c : cases) {
    Json json = toy();
    c.change(json);
    const std::string message =
        message_of([&] { Tokenizer::parse(json.dump(), "some/tokenizer.json"); });
    EXPECT_NE(message.find(c.message), message.npos) << c.message << "\nbut: " << message;
    EXPECT_EQ(message.find("some/tokenizer.json: "), 0u) << message;
  }
}

TEST(TokenizerFile, RefusesWhatIsNotJson) {
  const std::string good = toy().dump();
  for (const std::string& bad :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), good + "}",
        good.substr(0, good.size() / 2), std::string(100000, '['), "{\"a\":\"\xFF\"}" + good})
    EXPECT_THROW(Tokenizer::parse(bad), Error) << bad.substr(0, 40);
  EXPECT_NE(message_of([] {
              Tokenizer::parse(std::string((32u << 20) + 1, ' '));
            }).find("expected at most 33554432 bytes, found 33554433"),
            std::string::npos);
  std::string twice = good;
  const std::string entry = "\"b\":" + std::to_string(2 + 'b') + ",";
  twice.insert(twice.find(entry), entry);
  EXPECT_NE(message_of([&] { Tokenizer::parse(twice); }).find("expected each text once"),
            std::string::npos);
}

TEST(TokenizerFile, AcceptsTheSameInOtherSpellings) {
  const auto ids = [](const Json& json) {
    return Tokenizer::parse(json.dump()).encode("abcab <think>");
  };
  const auto expected = ids(toy());
  Json json = toy();
  for (auto& merge : json["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  // Newlines in the pattern as they are instead of escapes.
  auto& regex = json["pre_tokenizer"]["pretokenizers"][2]["pattern"]["Regex"];
  auto text = regex.get<std::string>();
  for (const auto& [escape, byte] : {std::pair("\\r", "\r"), std::pair("\\n", "\n")})
    for (auto at = text.find(escape); at != text.npos; at = text.find(escape))
      text.replace(at, 2, byte);
  regex = text;
  EXPECT_EQ(ids(json), expected);
}

TEST(TokenizerFile, IdsMayHaveHoles) {
  Json json = toy();
  json["added_tokens"][1]["id"] = 5000;
  const Tokenizer tokenizer = Tokenizer::parse(json.dump());
  EXPECT_EQ(tokenizer.vocab_size(), 5001);
  EXPECT_FALSE(tokenizer.has_token(4000));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a</think>")), "a</think>");
}

TEST(TokenizerFile, ReadsTheConfigBesideIt) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "quatrain_tokenizer_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << toy().dump();
  const auto load = [&](const std::string& config) {
    std::ofstream(folder / "tokenizer_config.json") << config;
    return Tokenizer::load(folder);
  };
  EXPECT_FALSE(load("{}").add_bos());
  EXPECT_EQ(load("{}").bos_id(), std::nullopt);
  const Tokenizer t = load(
      R"({"bos_token": {"content": "<think>"}, "eos_token": "</think>", "add_bos_token": true})");
  EXPECT_EQ(t.bos_id(), 0);
  EXPECT_EQ(t.eos_id(), 1);
  EXPECT_TRUE(t.add_bos());
  EXPECT_NE(message_of([&] {
              load(R"({"eos_token": "<end>"})");
            }).find("tokenizer_config.json: eos_token: expected an added token, found \"<end>\""),
            std::string::npos);
  EXPECT_NE(message_of([&] { load(R"({"add_bos_token": 1})"); }).find("expected true or false"),
            std::string::npos);
  EXPECT_THROW(load("["), Error);
  std::filesystem::remove_all(folder);
  EXPECT_THROW(Tokenizer::load(folder), Error);
}

}  // namespace
}  // namespace quatrain
