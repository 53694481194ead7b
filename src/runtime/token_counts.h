// How often the tokens of a sequence occur: what penalties need to know of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

/// One entry a distinct token, in the order of first occurrence. Adding a token takes constant time; memory grows with
/// the distinct tokens only. Only needed where needs_counts() (runtime/sampler.h) says so.
class TokenCounts {
 public:
  struct Entry {
    std::int32_t token = 0;
    std::int32_t prompt = 0;     // times in the prompt
    std::int32_t generated = 0;  // times in the answer
  };

  void add_prompt(std::int32_t token) { ++entry(token).prompt; }
  void add_generated(std::int32_t token) { ++entry(token).generated; }
  [[nodiscard]] std::span<const Entry> entries() const { return entries_; }

 private:
  Entry& entry(std::int32_t token);
  [[nodiscard]] std::size_t slot_of(std::int32_t token) const;
  void grow();

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;  // open addressing, a power of two: 1 + index of an entry, 0 where free
};

}  // namespace millrace
