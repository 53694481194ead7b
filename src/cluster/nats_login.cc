#include "cluster/nats_login.h"

#include <nats/nats.h>
#include <openssl/crypto.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>

namespace millrace {

namespace {

constexpr unsigned kSendsAll = 3u << 16 | 8u << 8;  // libnats 3.8.0

/// A line of a file that begins with this: of a seed "SU", of a JWT what its `{"` is in base 64. Other lines of a file
/// of credentials frame them.
struct Secret {
  Secret(const std::string& path, std::string_view beginning) {
    std::ifstream file(path);
    if (!file) error = errno;
    while (std::getline(file, text)) {
      text.erase(0, text.find_first_not_of(" \t"));
      if (text.starts_with(beginning)) break;
      OPENSSL_cleanse(text.data(), text.size());
      text.clear();
    }
    text.resize(text.find_last_not_of(" \t\r") + 1);
  }
  ~Secret() { OPENSSL_cleanse(text.data(), text.size()); }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;

  [[nodiscard]] Status check(const std::string& path, std::string_view what) const {
    if (error != 0) return fail("{}: {}", path, std::strerror(error));
    if (text.empty()) return fail("{} has no {}", path, what);
    return Ok{};
  }

  std::string text;
  int error = 0;  // errno
};

constexpr std::string_view kSeed = "SU", kJwt = "eyJ";

const std::string& seed_file(const NatsLogin& login) {
  return login.credentials.empty() ? login.nkey_seed : login.credentials;
}

natsStatus give_jwt(char** jwt, char** error, void* closure) {
  const auto* login = static_cast<const NatsLogin*>(closure);
  const Secret secret(login->credentials, kJwt);
  if (const Status status = secret.check(login->credentials, "JWT"); !status.ok()) {
    *error = ::strdup(status.error().message.c_str());
    return NATS_ERR;
  }
  *jwt = ::strdup(secret.text.c_str());
  return NATS_OK;
}

/// What the server wants signed is another text at each connection, so one that can't be sent is hung up on, and the
/// next attempt has another signature.
natsStatus give_signature(char** error, unsigned char** signature, int* bytes, const char* nonce, void* closure) {
  const std::string& path = seed_file(*static_cast<const NatsLogin*>(closure));
  const Secret secret(path, kSeed);
  if (const Status status = secret.check(path, "seed of a user"); !status.ok()) {
    *error = ::strdup(status.error().message.c_str());
    return NATS_ERR;
  }
  if (nonce == nullptr) {  // it lets in anybody
    *signature = nullptr;
    *bytes = 0;
    return NATS_OK;
  }
  const natsStatus status = nats_Sign(secret.text.c_str(), nonce, signature, bytes);
  if (status != NATS_OK || is_sent(*signature, nats_GetVersionNumber())) return status;
  std::free(*signature);
  *signature = nullptr;
  *error = ::strdup("this signature can't be sent");
  return NATS_ERR;
}

}  // namespace

bool is_sent(const unsigned char* signature, unsigned version) {
  return signature[0] != 0 || version >= kSendsAll;
}

Status NatsLogin::set_in(__natsOptions& options) const {
  if (credentials.empty() && nkey_seed.empty()) return Ok{};
  MILLRACE_CHECK_OK(Secret(seed_file(*this), kSeed).check(seed_file(*this), "seed of a user"));
  void* const closure = const_cast<NatsLogin*>(this);  // for the callbacks, which read it
  natsStatus status = NATS_OK;
  if (credentials.empty()) {
    status = natsOptions_SetNKey(&options, nkey.c_str(), give_signature, closure);
  } else {
    MILLRACE_CHECK_OK(Secret(credentials, kJwt).check(credentials, "JWT"));
    status = natsOptions_SetUserCredentialsCallbacks(&options, give_jwt, closure, give_signature, closure);
  }
  if (status != NATS_OK) return fail("the credentials can't be used: {}", natsStatus_GetText(status));
  return Ok{};
}

}  // namespace millrace
