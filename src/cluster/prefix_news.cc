#include "cluster/prefix_news.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "cluster/prefix_hash.h"

namespace millrace {

namespace {

constexpr std::uint8_t kKept = 34;  // the kind of message

void put_pages(WireWriter& out, const std::vector<std::uint64_t>& pages) {
  out.varint(pages.size());
  for (const std::uint64_t page : pages) out.u64(page);
}

std::vector<std::uint64_t> read_pages(WireReader& in, std::string_view what) {
  std::vector<std::uint64_t> pages(in.count(kMaxNews, sizeof(std::uint64_t), what));
  for (std::uint64_t& page : pages) page = in.u64();
  return pages;
}

}  // namespace

Bytes encode(const PrefixNews& news) {
  WireWriter out;
  out.u8(kWireVersion);
  out.u8(kKept);
  out.u64(news.incarnation);
  out.varint(news.anew ? 1 : 0);
  put_pages(out, news.added);
  put_pages(out, news.removed);
  return std::move(out).take();
}

Result<PrefixNews> decode_prefix_news(std::span<const std::byte> message) {
  WireReader in(message);
  const std::uint8_t version = in.u8(), kind = in.u8();
  if (version != kWireVersion || kind != kKept) in.refuse("this is no news of a prefix cache");
  PrefixNews news{.incarnation = in.u64()};
  news.anew = in.flag("the sign of a new beginning");
  news.added = read_pages(in, "pages added");
  news.removed = read_pages(in, "pages removed");
  MILLRACE_CHECK_OK(in.status());
  return news;
}

std::vector<std::uint64_t> pages_held(const PrefixCache& cache) {
  std::vector<std::uint64_t> pages;
  cache.visit(
      [](std::string_view name) {
        const std::size_t slash = name.find('/');
        return PrefixHash(slash == std::string_view::npos ? std::string_view() : name.substr(slash + 1));
      },
      [&](PrefixHash known, std::span<const std::int32_t> tokens, bool has_pages) {
        for (const std::int32_t token : tokens) {
          const auto page = known.add(token);
          if (page && has_pages) pages.push_back(*page);
        }
        return known;
      });
  std::ranges::sort(pages);
  // Of two regimes. Not as a range: clang 14 does not compile that with GCC's library, and fuzzers are built with it.
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  return pages;
}

std::vector<PrefixNews> PrefixTeller::tell(std::vector<std::uint64_t> pages, std::uint64_t incarnation, bool anew) {
  std::vector<std::uint64_t> added, removed;
  if (anew) told_.clear();
  std::ranges::set_difference(pages, told_, std::back_inserter(added));
  std::ranges::set_difference(told_, pages, std::back_inserter(removed));
  told_ = std::move(pages);
  std::vector<PrefixNews> messages;
  if (anew) messages.push_back({.incarnation = incarnation, .anew = true});
  const auto cut = [&](const std::vector<std::uint64_t>& of, auto member) {
    for (std::size_t at = 0; at < of.size(); at += kMaxNews) {
      const auto first = of.begin() + static_cast<std::ptrdiff_t>(at);
      PrefixNews news{.incarnation = incarnation};
      (news.*member).assign(first, first + static_cast<std::ptrdiff_t>(std::min(kMaxNews, of.size() - at)));
      messages.push_back(std::move(news));
    }
  };
  cut(added, &PrefixNews::added);
  cut(removed, &PrefixNews::removed);
  return messages;
}

}  // namespace millrace
