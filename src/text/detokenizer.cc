#include "text/detokenizer.h"

#include "core/check.h"
#include "text/ffi.h"

namespace millrace {

void Detokenizer::Free::operator()(ffi::Detokenizer* handle) const {
  ffi::millrace_detokenizer_free(handle);
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : handle_(ffi::millrace_detokenizer_new(tokenizer.handle_.get(), skip_special_tokens)) {
  MILLRACE_CHECK(handle_ != nullptr, "no detokenizer could be made");
}

// A decoder that fails on a token (a file's own contradiction, such as a Strip that cuts more than there is) has no
// text for it; generation goes on.

std::string Detokenizer::push(std::int32_t token) {
  ffi::Bytes out;
  return ffi::millrace_detokenizer_push(handle_.get(), token, out.out()) == 0 ? out.string() : std::string();
}

std::string Detokenizer::finish() {
  ffi::Bytes out;
  return ffi::millrace_detokenizer_finish(handle_.get(), out.out()) == 0 ? out.string() : std::string();
}

std::vector<std::string> Detokenizer::special_tokens(const Tokenizer& tokenizer) {
  ffi::Bytes out;
  const int status = ffi::millrace_detokenizer_special_tokens(tokenizer.handle_.get(), out.out());
  MILLRACE_CHECK(status == 0, "the tokenizer cannot list its tokens");
  const std::string texts = out.string();
  std::vector<std::string> tokens;
  for (std::size_t begin = 0; begin < texts.size();) {
    const std::size_t end = texts.find('\0', begin);
    tokens.push_back(texts.substr(begin, end - begin));
    begin = end + 1;
  }
  return tokens;
}

}  // namespace millrace
