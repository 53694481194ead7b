#include "server/http_auth.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "core/mapped_file.h"
#include "server/http_text.h"

namespace millrace {

namespace {

std::array<unsigned char, 32> sha256(std::string_view text) {
  std::array<unsigned char, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r";
  const std::size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

}  // namespace

Result<ApiKeys> ApiKeys::read(const std::filesystem::path& path) {
  constexpr std::size_t kMost = std::size_t{1} << 20;
  MILLRACE_TRY(const std::string text, read_text_file(path, kMost));
  return parse(text, path.string());
}

Result<ApiKeys> ApiKeys::parse(std::string_view text, std::string_view name) {
  ApiKeys keys;
  int line = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view key = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line;
    if (key.empty() || key.front() == '#') continue;
    if (!std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; })) {
      return fail("{}: line {} is no key: expected printable ASCII without blanks", name, line);
    }
    keys.digests_.push_back(sha256(key));
  }
  if (keys.digests_.empty()) return fail("{}: no key in it; expected one a line", name);
  return keys;
}

std::optional<std::string> ApiKeys::tenant(std::string_view authorization) const {
  constexpr std::string_view kScheme = "Bearer ";
  const bool bearer =
      authorization.size() > kScheme.size() && equals_ignoring_case(authorization.substr(0, kScheme.size()), kScheme);
  const std::string_view key = bearer ? trim(authorization.substr(kScheme.size())) : std::string_view();
  // Digests are compared, each to its end and all of them, so that time tells neither how much of a key was right nor
  // which one.
  const Digest digest = sha256(key);
  bool known = false;
  for (const Digest& other : digests_) known |= CRYPTO_memcmp(digest.data(), other.data(), digest.size()) == 0;
  if (!bearer || !known) return std::nullopt;
  std::string seed = "millrace tenant ";
  seed.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  const Digest name = sha256(seed);
  return fmt::format("{:02x}", fmt::join(name.begin(), name.begin() + 16, ""));
}

HttpReply no_key_reply(std::string_view authorization) {
  const std::string_view message = authorization.empty()
                                       ? "No API key was given: expected a header Authorization: Bearer KEY."
                                       : "The API key is not known here.";
  HttpReply reply = error_reply(401, message, "invalid_request_error", "invalid_api_key");
  reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

}  // namespace millrace
