// SPDX-License-Identifier: Apache-2.0
// Schemas: what is accepted is valid, what is valid is accepted, and what is not understood is
// refused by name.
#include "grammar/random_schema.h"

namespace quatrain::grammar {
namespace {

using testing::accepts;
using testing::grammar_of;
using testing::is_valid;
using testing::Json;
using testing::RandomSchema;
using testing::refusal_of;

TEST(Schema, AcceptsEveryValidDocument) {
  int documents = 0;
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    RandomSchema schema(seed);
    const auto grammar = grammar_of(schema.root());
    for (int i = 0; i < 12; ++i, ++documents) {
      const Json document = schema.document();
      ASSERT_TRUE(is_valid(document, schema.root())) << schema.root() << document;
      for (const std::string& text : testing::spellings(document)) {
        // Fixed texts and names have one spelling.
        if (text.find("\\u") != text.npos) continue;
        ASSERT_TRUE(accepts(grammar, text))
            << schema.root() << text << " at " << testing::taken(grammar, text);
      }
    }
  }
  EXPECT_EQ(documents, 4800);
}

TEST(Schema, AcceptsNothingElse) {
  std::mt19937 random(1);
  int accepted = 0, refused = 0;
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    RandomSchema schema(seed);
    RandomSchema other(seed + 5000);
    const auto grammar = grammar_of(schema.root());
    for (int i = 0; i < 40; ++i) {
      std::string text = (i % 4 == 0 ? other.document() : schema.document()).dump();
      for (auto n = i % 4 == 1 ? 0 : 1 + random() % 3; n > 0 && !text.empty(); --n) {
        const std::size_t at = random() % text.size(), from = random() % text.size();
        switch (random() % 4) {
          case 0:
            text.erase(at, 1 + random() % 3);
            break;
          case 1:
            text.insert(at, text.substr(from, 1 + random() % 8));
            break;
          case 2:
            text[at] = "0\"a{},:[]1-.e \n"[random() % 15];
            break;
          default:
            text.insert(at, 1, " \n,"[random() % 3]);
        }
      }
      if (!accepts(grammar, text)) {
        ++refused;
        continue;
      }
      ++accepted;
      ASSERT_TRUE(Json::accept(text)) << schema.root() << text;
      ASSERT_TRUE(is_valid(Json::parse(text), schema.root())) << schema.root() << text;
    }
  }
  EXPECT_GT(accepted, 3000);
  EXPECT_GT(refused, 3000);
}

TEST(Schema, RandomTextsAreValidAndNeverEndInADeadEnd) {
  std::mt19937 random(2);
  for (std::uint32_t seed = 0; seed < 250; ++seed) {
    RandomSchema schema(seed + 1000);
    const std::string text = testing::random_text(grammar_of(schema.root()), random);
    ASSERT_TRUE(Json::accept(text)) << schema.root() << text;
    ASSERT_TRUE(is_valid(Json::parse(text), schema.root())) << schema.root() << text;
  }
}

TEST(Schema, AnyObject) {
  const auto grammar = testing::object_grammar();
  RandomSchema source(7);
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    Json object = {{"key", source.any(3)}, {"", source.any(1)}};
    for (const std::string& text : testing::spellings(object))
      ASSERT_TRUE(accepts(grammar, text)) << text;
    const std::string text = i < 100 ? testing::random_text(grammar, random) : "{}";
    ASSERT_TRUE(Json::accept(text)) << text;
    ASSERT_TRUE(Json::parse(text).is_object()) << text;
  }
  for (const char* text : {"[]", "1", "\"a\"", "", " {}", "{} ", "{}{}", "{\"a\":1,}", "{\"a\" :1}",
                           "{  }", "{\n\n}", "{\"a\":1 ,\"b\":2}"})
    EXPECT_FALSE(accepts(grammar, text)) << text;
}

TEST(Schema, ListedPropertiesComeInTheirOrder) {
  const Json schema = {{"type", "object"},
                       {"properties", {{"z", {{"type", "integer"}}}, {"a", true}, {"m", true}}},
                       {"required", {"a"}}};
  const auto grammar = grammar_of(schema);
  for (const char* text : {R"({"z":1,"a":2,"m":3})", R"({"a":2})", R"({"z":1,"a":[]})"})
    EXPECT_TRUE(accepts(grammar, text)) << text;
  for (const char* text : {R"({"a":2,"z":1})", R"({"z":1})", R"({"z":1,"m":2})", R"({"a":1,"a":2})",
                           R"({"z":1,"a":2,"x":3})", R"({"z":"","a":2})", R"({})"})
    EXPECT_FALSE(accepts(grammar, text)) << text;
}

TEST(Schema, OtherPropertiesNeverSpellAListedOne) {
  const Json schema = {{"type", "object"},
                       {"properties", {{"name", {{"type", "integer"}}}, {"n\n", true}}},
                       {"additionalProperties", {{"type", "string"}}}};
  const auto grammar = grammar_of(schema);
  for (const char* text :
       {R"({"name":1,"x":"y"})", R"({"nam":"y"})", R"({"names":"y"})", R"({"x":"y","x\ny":"z"})"})
    EXPECT_TRUE(accepts(grammar, text)) << text;
  for (const char* text : {R"({"name":"y"})", R"({"x":"y","name":1})", R"({"x":"y","name":"y"})",
                           R"({"n\u0061me":"y"})", R"({"x":1})", R"({"x":"","n\n":""})"})
    EXPECT_FALSE(accepts(grammar, text)) << text;
}

TEST(Schema, References) {
  const Json schema = {
      {"$defs",
       {{"node",
         {{"type", "object"},
          {"properties",
           {{"value", {{"$ref", "#/$defs/a~1b"}}},
            {"children", {{"type", "array"}, {"items", {{"$ref", "#/$defs/node"}}}}}}},
          {"required", {"value", "children"}}}},
        {"a/b", {{"enum", {"x", "y"}}}}}},
      {"$ref", "#/$defs/node"}};
  const auto grammar = grammar_of(schema);
  EXPECT_TRUE(accepts(grammar, R"({"value":"x","children":[{"value":"y","children":[]}]})"));
  EXPECT_FALSE(accepts(grammar, R"({"value":"x","children":[{"value":"z","children":[]}]})"));
  EXPECT_FALSE(accepts(grammar, R"({"value":"x"})"));
  // A schema that refers to itself in every way.
  const auto self =
      grammar_of({{"anyOf", {{{"$ref", "#"}}, {{"type", "integer"}}, {{"$ref", "#"}}}}});
  EXPECT_TRUE(accepts(self, "7"));
}

TEST(Schema, WhatIsNotUnderstoodIsRefusedByName) {
  const auto in_a = [](Json inner) -> Json {
    return {{"type", "object"}, {"properties", {{"a", std::move(inner)}}}};
  };
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"type", "string"}, {"pattern", "^a$"}}, "pattern"},
      {{{"type", "number"}, {"multipleOf", 2}}, "multipleOf"},
      {{{"type", "array"}, {"uniqueItems", true}}, "uniqueItems"},
      {{{"type", "array"}, {"contains", true}}, "contains"},
      {{{"type", "object"}, {"patternProperties", Json::object()}}, "patternProperties"},
      {{{"type", "object"}, {"minProperties", 1}}, "minProperties"},
      {{{"type", "object"}, {"propertyNames", true}}, "propertyNames"},
      {{{"not", {{"type", "null"}}}}, "not"},
      {{{"if", true}}, "if"},
      {{{"nullable", true}}, "nullable"},
      {{{"type", "string"}, {"typo", 1}}, "typo"},
      {{{"allOf", {true, true}}}, "allOf"},
      {{{"anyOf", {true}}, {"minLength", 3}}, "minLength beside anyOf"},
      {{{"$ref", "#"}, {"type", "string"}}, "type beside $ref"},
      {{{"enum", {"a"}}, {"minLength", 3}}, "minLength beside enum"},
      {{{"type", "array"}, {"items", Json::array({true})}}, "items"},
      {{{"type", "any"}}, "type"},
      {{{"type", Json::array()}}, "type"},
      {{{"$ref", "https://example.com"}}, "$ref"},
      {{{"$ref", "#/$defs/none"}}, "$ref"},
      {{{"type", "string"}, {"minLength", -1}}, "minLength"},
      {{{"type", "string"}, {"maxLength", 1.5}}, "maxLength"},
      {{{"type", "integer"}, {"minimum", 1e17}}, "minimum"},
      {{{"type", "integer"}, {"minimum", "x"}}, "minimum"},
      {{{"type", "object"}, {"required", {"b"}}}, "required"},
      {{{"type", "object"}, {"properties", 3}}, "properties"},
      {{{"const", "<｜DSML｜>"}}, "const"},
      {Json(3), "expected a schema"},
  };
  for (const auto& [schema, word] : cases) {
    const std::string message = refusal_of(in_a(schema));
    EXPECT_NE(message.find("schema.properties.a"), message.npos) << schema << message;
    EXPECT_NE(message.find(word), message.npos) << schema << message;
  }
  EXPECT_EQ(refusal_of({{"type", "string"},
                        {"format", "date"},
                        {"title", "t"},
                        {"description", "d"},
                        {"default", 1},
                        {"examples", Json::array()},
                        {"$schema", "s"}}),
            "");
}

TEST(Schema, WhatNothingSatisfiesIsRefused) {
  const std::vector<Json> cases = {
      Json(false),
      {{"enum", Json::array()}},
      {{"type", "integer"}, {"enum", {"a"}}},
      {{"type", "integer"}, {"minimum", 3}, {"maximum", 2}},
      {{"type", "string"}, {"minLength", 3}, {"maxLength", 2}},
      {{"type", "array"}, {"minItems", 1}, {"items", false}},
      {{"type", "array"}, {"minItems", 2}, {"maxItems", 1}},
      {{"$ref", "#"}},
      {{"type", "object"}, {"properties", {{"a", {{"$ref", "#"}}}}}, {"required", {"a"}}},
      {{"type", "array"}, {"minItems", 1}, {"items", {{"$ref", "#"}}}},
      {{"anyOf", {false, {{"$ref", "#"}}}}},
  };
  for (const Json& schema : cases)
    EXPECT_NE(refusal_of(schema).find("satisfies"), std::string::npos) << schema;
  // An alternative or an optional part that nothing satisfies is left out.
  const auto grammar = grammar_of(
      {{"type", "object"}, {"properties", {{"a", false}, {"b", {{"anyOf", {false, true}}}}}}});
  EXPECT_TRUE(accepts(grammar, R"({"b":1})"));
  EXPECT_FALSE(testing::taken(grammar, R"({"a)") > 2);
}

}  // namespace
}  // namespace quatrain::grammar
