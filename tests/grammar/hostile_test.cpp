// SPDX-License-Identifier: Apache-2.0
// Schemas that try to take time or memory.
#include <chrono>

#include "grammar/random_schema.h"

namespace quatrain::grammar {
namespace {

using testing::grammar_of;
using testing::Json;
using testing::refusal_of;

constexpr std::size_t kFarTooLong = 5;  // seconds, also under a sanitizer

class Hostile : public ::testing::Test {
 protected:
  void TearDown() override {
    const auto time = std::chrono::steady_clock::now() - begin_;
    EXPECT_LT(time, std::chrono::seconds(kFarTooLong));
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

TEST_F(Hostile, DeepNesting) {
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += R"({"items":)";
  GrammarBuilder builder(testing::markup_guard());
  EXPECT_THROW(builder.add_schema(text, "schema"), Error);
}

TEST_F(Hostile, ManySchemas) {
  Json properties = Json::object();
  for (int i = 0; i < 4000; ++i)
    properties[fmt::format("p{}", i)] = {{"anyOf", {{{"type", "string"}}, {{"type", "null"}}}}};
  EXPECT_NE(refusal_of({{"properties", properties}}).find("more than 10000 schemas"),
            std::string::npos);
}

TEST_F(Hostile, ManyProperties) {
  Json properties = Json::object();
  for (int i = 0; i < 5000; ++i) properties[fmt::format("p{}", i)] = true;
  EXPECT_NE(refusal_of({{"properties", properties}}).find("more than 4096 properties"),
            std::string::npos);
}

TEST_F(Hostile, HugeEnums) {
  Json values = Json::array();
  for (int i = 0; i < 5000; ++i) values.push_back(i);
  EXPECT_NE(refusal_of({{"enum", values}}).find("more than 4096 values"), std::string::npos);
  EXPECT_NE(refusal_of({{"const", std::string(2 << 20, 'x')}}).find("more than 1048576 bytes"),
            std::string::npos);
  EXPECT_NE(refusal_of({{"const", std::string(100'000, 'x')}}).find("65535"), std::string::npos);
}

TEST_F(Hostile, ManyAlternatives) {
  Json parts = Json::array();
  for (int i = 0; i < 65; ++i) parts.push_back({{"const", i}});
  EXPECT_NE(refusal_of({{"anyOf", parts}}).find("more than 64 alternatives"), std::string::npos);
  // The same by references of references.
  Json schema = {{"$ref", "#/$defs/s0"}};
  for (int i = 0; i < 300; ++i) {
    const auto to = [](int k) -> Json { return {{"$ref", fmt::format("#/$defs/s{}", k)}}; };
    schema["$defs"][fmt::format("s{}", i)] = {
        {"anyOf", {to((i + 1) % 300), to((i * 7 + 3) % 300), {{"const", i}}}}};
  }
  EXPECT_NE(refusal_of(schema).find("more than 64 alternatives"), std::string::npos);
}

TEST_F(Hostile, AChainOfReferences) {
  Json schema = {{"$ref", "#/$defs/s0"}};
  for (int i = 0; i < 3000; ++i)
    schema["$defs"][fmt::format("s{}", i)] = {
        {"type", "object"},
        {"properties", {{"a", {{"$ref", fmt::format("#/$defs/s{}", i + 1)}}}}},
        {"required", {"a"}}};
  schema["$defs"]["s3000"] = true;
  EXPECT_NE(refusal_of(schema).find("satisfies"), std::string::npos);
}

// Every level doubles the readings of "[[[[".
TEST_F(Hostile, AmbiguityIsBounded) {
  const Json list = {{"type", "array"}, {"items", {{"$ref", "#"}}}};
  const auto grammar = grammar_of({{"anyOf", {list, list, list, {{"type", "integer"}}}}});
  const std::string text = std::string(40, '[') + "1" + std::string(40, ']');
  EXPECT_TRUE(testing::accepts(grammar, text));
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Json::accept(testing::random_text(grammar, random)));
}

TEST_F(Hostile, DepthIsBoundedWithoutDeadEnds) {
  const auto any = testing::object_grammar();
  std::string text;
  while (testing::taken(any, text + R"({"a":)") > text.size() + 4) text += R"({"a":)";
  EXPECT_EQ(text.size() / 5, kMaxDepth);
  // Two values are needed at each level, one of which nests further.
  const Json pair = {{"type", "object"},
                     {"properties",
                      {{"l", {{"anyOf", {{{"$ref", "#"}}, {{"type", "null"}}}}}},
                       {"r", {{"anyOf", {{{"$ref", "#"}}, {{"type", "null"}}}}}}}},
                     {"required", {"l", "r"}}};
  const auto grammar = grammar_of(pair);
  text.clear();
  while (testing::taken(grammar, text + R"({"l":)") == text.size() + 5) text += R"({"l":)";
  EXPECT_GE(text.size() / 5, 60u);
  text += "null,\"r\":null}";
  EXPECT_EQ(testing::taken(grammar, text), text.size());
}

}  // namespace
}  // namespace quatrain::grammar
