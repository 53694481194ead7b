#include "bench/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <memory>

#include "core/mapped_file.h"

namespace millrace::bench {

Result<std::string> gunzip(std::string_view compressed, const std::string& name, std::size_t limit) {
  constexpr int kGzipOnly = 16 + MAX_WBITS;  // zlib's way of saying that nothing but gzip is expected
  constexpr std::size_t kStep = std::size_t{1} << 18;
  z_stream stream{};
  if (inflateInit2(&stream, kGzipOnly) != Z_OK) return fail("{}: zlib could not be started", name);
  const std::unique_ptr<z_stream, int (*)(z_stream*)> ended(&stream, inflateEnd);
  std::string content;
  while (!compressed.empty()) {
    const std::size_t given = std::min(compressed.size(), kStep);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data()));  // zlib only reads it
    stream.avail_in = static_cast<uInt>(given);
    const std::size_t before = content.size();
    content.resize(before + kStep);
    stream.next_out = reinterpret_cast<Bytef*>(content.data() + before);
    stream.avail_out = static_cast<uInt>(kStep);
    const int code = inflate(&stream, Z_NO_FLUSH);
    content.resize(content.size() - stream.avail_out);
    compressed.remove_prefix(given - stream.avail_in);
    if (content.size() > limit) return fail("{}: more than {} bytes when decompressed", name, limit);
    if (code == Z_STREAM_END) {
      if (compressed.empty()) return content;
      if (inflateReset(&stream) != Z_OK) return fail("{}: zlib could not be restarted", name);
    } else if (code != Z_OK) {
      return fail("{}: damaged gzip data ({})", name, stream.msg != nullptr ? stream.msg : zError(code));
    }
  }
  return fail("{}: gzip data is cut short", name);
}

Result<std::string> read_maybe_gzip(const std::filesystem::path& path, std::size_t limit) {
  constexpr std::string_view kMagic = "\x1f\x8b";
  MILLRACE_TRY(std::string content, read_text_file(path, limit));
  if (!content.starts_with(kMagic)) return content;
  return gunzip(content, path.string(), limit);
}

}  // namespace millrace::bench
