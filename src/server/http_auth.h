// API keys: who may ask, and whose shared context is whose.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "server/http_message.h"

namespace millrace {

/// Immutable; any thread. Keys themselves are not kept, only their SHA-256.
class ApiKeys {
 public:
  /// One key a line; blanks around it, empty lines and lines that begin with '#' do not count. Errors: the file cannot
  /// be read, holds no key, or a key with characters that a header cannot carry; the key is not shown.
  static Result<ApiKeys> read(const std::filesystem::path& path);
  static Result<ApiKeys> parse(std::string_view text, std::string_view name);

  [[nodiscard]] std::size_t size() const { return digests_.size(); }

  /// The tenant of a key, 32 hexadecimal digits that tell nothing about the key; nothing for an unknown one.
  /// `authorization`: the header, "Bearer KEY". Takes the same time whichever key is right, or none.
  [[nodiscard]] std::optional<std::string> tenant(std::string_view authorization) const;

 private:
  using Digest = std::array<unsigned char, 32>;

  std::vector<Digest> digests_;
};

/// 401, for a request whose header Authorization names nobody.
HttpReply no_key_reply(std::string_view authorization);

}  // namespace millrace
