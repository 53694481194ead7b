// Which blocks of the past a block of a prompt's rows reads. Pure: positions and shares in, blocks out.
#pragma once

#include <cstdint>
#include <vector>

#include "recipe/block_selection.h"

namespace millrace {

/// The blocks of keys that may be left out are [first, end): those before and behind them, up to the rows' own, are
/// read always, and of them `most` at most.
struct BlockCandidates {
  std::int64_t first = 0, end = 0;
  std::int64_t most = 0;
  bool by_mass = false;  // fewer may be enough

  /// The rows read everything.
  [[nodiscard]] bool all() const { return end == first || (!by_mass && most == end - first); }
};

/// For rows whose block starts at `position`, a multiple of kQueryBlock. Where they may leave something out, so may all
/// later ones.
BlockCandidates block_candidates(const BlockSelection& selection, std::int64_t position);

/// What tells draws by lot apart, beside the block.
struct BlockLot {
  std::int64_t position = 0;
  std::uint32_t layer = 0, kv_head = 0;
};

class BlockChooser {
 public:
  /// Blocks of keys that rows read, ascending, of the `blocks` before their own. `shares` [heads][stride] has for each
  /// head that reads together with others what part of its attention each of these blocks has, from the first on; what
  /// is missing to 1 is in the rows' own positions. It is null for other choices than xattention.
  ///
  /// Each head asks for the blocks that have the largest shares, of equal ones the earlier, until what it reads has
  /// the mass that is wanted. All read what any of them asks for; where that is too much, those blocks of which some
  /// head has the most. NaN is no share. Valid until the next call.
  const std::vector<std::int32_t>& choose(const BlockSelection& selection, const BlockCandidates& candidates,
                                          std::int64_t blocks, const float* shares, std::int64_t heads,
                                          std::int64_t stride, const BlockLot& lot);

 private:
  void ask(const BlockSelection& selection, const BlockCandidates& candidates, std::int64_t blocks,
           const float* shares);

  std::vector<float> worth_;          // of the candidates
  std::vector<std::uint8_t> wanted_;  // of the candidates
  std::vector<std::int32_t> order_, blocks_;
};

}  // namespace millrace
