#include "runtime/text_windows.h"

#include <algorithm>

namespace millrace {

Result<std::vector<TokenWindow>> cut_windows(std::span<const std::int32_t> ids, std::int64_t window,
                                             std::optional<std::int32_t> bos) {
  const std::int64_t fresh = window - (bos ? 1 : 0);  // tokens of the text in a window
  if (fresh < 2) return fail("windows of {} tokens are too short to predict anything", window);
  std::vector<TokenWindow> windows;
  for (std::size_t start = 0; start < ids.size(); start += static_cast<std::size_t>(fresh)) {
    TokenWindow tokens;
    if (bos) tokens.push_back(*bos);
    const auto piece = ids.subspan(start, std::min(ids.size() - start, static_cast<std::size_t>(fresh)));
    tokens.insert(tokens.end(), piece.begin(), piece.end());
    if (tokens.size() > 1) windows.push_back(std::move(tokens));
  }
  if (windows.empty()) return fail("the text has {} tokens: nothing to predict", ids.size());
  return windows;
}

}  // namespace millrace
