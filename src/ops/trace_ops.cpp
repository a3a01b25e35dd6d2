// SPDX-License-Identifier: Apache-2.0
#include "ops/trace_ops.h"

#include <cctype>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/step_guard.h"

namespace quatrain {
namespace {

std::unique_ptr<std::FILE, int (*)(std::FILE*)> open_for_writing(
    const std::filesystem::path& path) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) fail("{}: cannot be created", path.string());
  return {file, std::fclose};
}

std::string lower_name(DType dtype) {
  std::string name(name_of(dtype));
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

}  // namespace

TraceOps::TraceOps(Ops& inner, std::filesystem::path folder, std::string filter)
    : Interceptor(inner),
      folder_(std::move(folder)),
      filter_(std::move(filter)),
      index_(nullptr, std::fclose) {
  std::filesystem::create_directories(folder_);
  index_ = open_for_writing(folder_ / "index.jsonl");
}

void TraceOps::scope(std::string_view part, std::int64_t layer) {
  Interceptor::scope(part, layer);
  if (part != "embed") return;
  ++step_;
  call_ = 0;
}

void TraceOps::after(const OpCall& call) {
  const std::int64_t number = call_++;
  if (std::string_view(call.name).find(filter_) == std::string_view::npos) return;
  const StepGuardPause pause(nullptr);
  for (int i = 0; i < call.count; ++i) {
    const auto& field = call.fields[static_cast<std::size_t>(i)];
    if (!field.is_output) continue;
    const std::string name =
        fmt::format("s{:04}.l{:02}.{}.{:03}-{}.{}.{}", step_, layer(), part(), number, call.name,
                    field.name, lower_name(field.tensor.dtype()));
    std::vector<char> bytes(static_cast<std::size_t>(field.tensor.bytes()));
    inner().download(bytes.data(), field.tensor);
    const auto file = open_for_writing(folder_ / name);
    if (std::fwrite(bytes.data(), 1, bytes.size(), file.get()) != bytes.size())
      fail("{}: cannot be written", (folder_ / name).string());
    std::string shape;
    for (int d = 0; d < field.tensor.rank(); ++d)
      shape += fmt::format("{}{}", d ? "," : "", field.tensor.dim(d));
    const std::string weight = call.linear != nullptr    ? call.linear->name
                               : call.experts != nullptr ? call.experts->name
                                                         : "";
    fmt::print(index_.get(), "{{\"file\":{},\"dtype\":{},\"shape\":[{}],\"weight\":{}}}\n",
               json_quote(name), json_quote(name_of(field.tensor.dtype())), shape,
               json_quote(weight));
  }
  std::fflush(index_.get());
}

}  // namespace quatrain
