// SPDX-License-Identifier: Apache-2.0
// Fuzzes the compiler of schemas, and the grammars that come out. The input is a schema, a zero
// byte, and bytes that choose what is written: every text can go on or end, and what has ended is
// JSON.
#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "grammar/automaton.h"
#include "grammar/builder.h"

namespace {

using namespace quatrain::grammar;

std::shared_ptr<const TextGuard> guard() {
  static const std::vector<std::string> markup = {"<｜", "｜DSML", "|DSML"};
  static const auto guard = std::make_shared<const TextGuard>(markup);
  return guard;
}

// The bytes that may follow.
std::vector<std::uint8_t> followers(Automaton& automaton,
                                    const std::vector<Automaton::Thread>& threads) {
  std::vector<std::uint8_t> bytes;
  std::vector<Automaton::Thread> next;
  const std::size_t cells = automaton.cells();
  for (int byte = 0; byte < 256; ++byte) {
    next.clear();
    automaton.step(threads, static_cast<std::uint8_t>(byte), next);
    automaton.forget(cells);
    if (!next.empty()) bytes.push_back(static_cast<std::uint8_t>(byte));
  }
  return bytes;
}

void write(const std::shared_ptr<const Grammar>& grammar, std::string_view choices) {
  Automaton automaton(grammar);
  std::vector<Automaton::Thread> threads, next;
  automaton.start(threads);
  std::string text;
  for (const char choice : choices) {
    const std::vector<std::uint8_t> bytes = followers(automaton, threads);
    const bool ends =
        std::ranges::any_of(threads, [&](auto thread) { return automaton.may_end(thread); });
    if (bytes.empty() && !ends) std::abort();
    if (ends) {
      simdjson::dom::parser parser;
      simdjson::dom::element parsed;
      if (parser.parse(text).get(parsed)) std::abort();
    }
    if (bytes.empty()) return;
    const std::uint8_t byte = bytes[static_cast<std::uint8_t>(choice) % bytes.size()];
    next.clear();
    automaton.step(threads, byte, next);
    threads.swap(next);
    automaton.compact(threads);
    text += static_cast<char>(byte);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = std::min(input.find('\0'), size);
  const GrammarLimits limits{.schemas = 200, .texts = 32, .text_bytes = 4096, .properties = 32};
  try {
    GrammarBuilder builder(guard(), limits);
    builder.add_schema(input.substr(0, zero), "schema");
    write(builder.build(), input.substr(std::min(zero + 1, size)).substr(0, 400));
  } catch (const quatrain::Error&) {
  }
  return 0;
}
