// SPDX-License-Identifier: Apache-2.0
// A refusal as OpenAI's clients understand it.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace quatrain::server {

/// Thrown where a request is read; becomes the response's status and its "error" object.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : std::runtime_error(message),
        status_(status),
        param_(std::move(param)),
        code_(std::move(code)) {}

  [[nodiscard]] int status() const { return status_; }
  [[nodiscard]] const std::string& param() const { return param_; }
  [[nodiscard]] const std::string& code() const { return code_; }

 private:
  int status_;
  std::string param_;  // the field at fault; empty: none
  std::string code_;
};

/// "invalid_request_error" for 400, and so on.
std::string_view error_type(int status);

/// {"error": {message, type, param, code}}
std::string error_json(const ApiError& error);

}  // namespace quatrain::server
