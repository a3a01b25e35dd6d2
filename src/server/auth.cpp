// SPDX-License-Identifier: Apache-2.0
#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "core/error.h"

namespace quatrain::server {

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const auto& key : keys) hashes_.push_back(hash(key));
}

ApiKeys::Hash ApiKeys::hash(std::string_view key) {
  Hash digest{};
  unsigned size = 0;
  if (EVP_Digest(key.data(), key.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1)
    fail("SHA-256 is not to be had from OpenSSL");
  return digest;
}

bool ApiKeys::accepts(std::string_view key) const {
  const Hash found = hash(key);
  int accepted = 0;
  for (const Hash& known : hashes_)
    accepted |= static_cast<int>(CRYPTO_memcmp(known.data(), found.data(), known.size()) == 0);
  return accepted != 0;
}

std::string random_id(std::string_view prefix) {
  std::array<unsigned char, 12> bytes{};
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1)
    fail("OpenSSL has no random bytes");
  std::string id(prefix);
  for (const unsigned char byte : bytes) id += fmt::format("{:02x}", byte);
  return id;
}

}  // namespace quatrain::server
