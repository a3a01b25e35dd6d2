// SPDX-License-Identifier: Apache-2.0
// GrammarBuilder: from schemas and tools to a grammar.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "grammar/grammar.h"

namespace quatrain::grammar {

/// Bounds on what one grammar is made of; beyond them schemas are refused.
struct GrammarLimits {
  std::size_t schemas = 10'000;      // all schemas and their parts
  std::size_t alternatives = 64;     // of one value, references resolved
  std::size_t texts = 4'096;         // of one enum
  std::size_t text_bytes = 1 << 20;  // of all names and fixed values
  std::size_t properties = 4'096;    // of one object
};

/// A function that may be called.
struct Tool {
  std::string name;
  std::string parameters;  // a JSON schema; empty: it has none
  std::string path;        // of the parameters, for error messages
};

/// Collects the alternatives of an answer, each with one call. Errors name the place by its path
/// and the keyword: "response_format.json_schema.schema.properties.a: …". Schemas may be hostile.
class GrammarBuilder {
 public:
  /// Free text must not contain what `guard` forbids, and fixed texts that do are refused.
  explicit GrammarBuilder(std::shared_ptr<const TextGuard> guard, GrammarLimits limits = {});
  ~GrammarBuilder();
  GrammarBuilder(const GrammarBuilder&) = delete;
  GrammarBuilder& operator=(const GrammarBuilder&) = delete;

  /// Any JSON object.
  void add_object();
  /// A value that the schema describes; docs/http_api.md lists what is understood.
  void add_schema(std::string_view json, const std::string& path);
  /// A block of calls as the model writes them, behind an empty line. `marker` is the text of the
  /// markup's marker, with kControlByte in front if it is a token of its own. At most `most` calls.
  void add_calls(std::span<const Tool> tools, std::string_view marker, std::uint32_t most);

  /// Throws Error if nothing can satisfy what was added.
  std::shared_ptr<const Grammar> build();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quatrain::grammar
