#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kv/prefix_world.h"

namespace millrace {
namespace {

using prefix_world::kPage;
using prefix_world::Tokens;
using prefix_world::World;

TEST(PageTable, AppendSharesAPageAndClearGivesAllBack) {
  PagePool pool(4);
  PageTable owner(pool, 16);
  ASSERT_TRUE(owner.grow(32));
  PageTable other(pool, 16);
  other.append(-1);
  other.append(owner.entries()[1]);
  EXPECT_EQ(pool.references(owner.entries()[1]), 2);
  EXPECT_TRUE(other.grow(48));
  EXPECT_EQ(other.entries()[0], -1);
  EXPECT_EQ(pool.free_count(), 1);
  owner.clear();
  EXPECT_TRUE(owner.entries().empty());
  EXPECT_EQ(pool.free_count(), 2) << "the other table still holds one of the two";
  other.trim_below(32);
  EXPECT_EQ(pool.free_count(), 3);
  other.clear();
  EXPECT_EQ(pool.free_count(), 4);
  EXPECT_TRUE(other.grow(64)) << "a cleared table is as good as new";
}

TEST(PageTableDeathTest, AGapIsOnlyPossibleBelowAllPages) {
  PagePool pool(2);
  PageTable table(pool, 16);
  ASSERT_TRUE(table.grow(1));
  EXPECT_DEATH(table.append(-1), "a gap above");
}

TEST(PrefixCache, FindsTheLongestBeginningAndAPartToCopy) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  const auto a = w.insert(root, {1, 2, 3, 4});
  const auto b = w.insert(a, {5, 6, 7, 8});
  auto match = w.cache.match(root, Tokens{1, 2, 3, 4, 5, 6, 9, 9, 9}, 2);
  EXPECT_EQ(match.rows, (std::vector<PrefixCache::Node>{a}));
  EXPECT_EQ(match.partial, b);
  EXPECT_EQ(match.partial_tokens, 2);
  match = w.cache.match(root, Tokens{1, 2, 3, 4, 5, 6, 7, 8}, 2);
  EXPECT_EQ(match.rows, (std::vector<PrefixCache::Node>{a, b}));
  EXPECT_EQ(match.partial, PrefixCache::kNone);
  match = w.cache.match(root, Tokens{1, 2, 3}, 2);
  EXPECT_TRUE(match.rows.empty());
  EXPECT_EQ(match.partial, a);
  EXPECT_EQ(match.partial_tokens, 3);
  match = w.cache.match(root, Tokens{2, 2, 3, 4}, 2);
  EXPECT_TRUE(match.rows.empty());
  EXPECT_EQ(match.partial, PrefixCache::kNone);
  EXPECT_EQ(w.cache.find(root, Tokens{1, 2, 3, 4}), a);
  EXPECT_EQ(w.cache.find(root, Tokens{1, 2, 3, 5}), PrefixCache::kNone);
}

TEST(PrefixCache, ForgetsWhatAStepWasToFill) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  const auto a = w.insert(root, {1, 2, 3, 4}, 1);
  const auto b = w.insert(a, {5, 6, 7, 8}, 3), part = w.insert(b, {9}, 3), c = w.insert(a, {5, 5, 5, 5}, 2);
  for (const auto node : {part, b}) w.cache.unlock(node);
  w.cache.forget(3);
  w.cache.check();
  EXPECT_EQ(w.cache.rows(), 2);
  EXPECT_EQ(w.free_pages(), 6);
  EXPECT_EQ(w.cache.find(a, Tokens{5, 6, 7, 8}), PrefixCache::kNone);
  EXPECT_EQ(w.cache.find(a, Tokens{5, 5, 5, 5}), c);
  // One that is locked, and has a row behind it that was filled before: neither is found, until it is filled again.
  w.cache.forget(1);
  w.cache.check();
  EXPECT_EQ(w.free_pages(), 8);
  const auto again = w.insert(root, {1, 2, 3, 4}, 4);
  EXPECT_EQ(again, a) << "it was locked";
  const auto d = w.insert(a, {5, 6, 7, 8}, 4);
  for (const auto node : {d, c, a, a}) w.cache.unlock(node);
  const auto second = w.insert(root, {1, 2, 3, 4}, 5);  // takes the place of what nobody uses
  EXPECT_EQ(second, a);
  w.cache.unlock(a);
  w.cache.forget(5);
  w.cache.check();
  EXPECT_TRUE(w.cache.match(root, Tokens{1, 2, 3, 4, 5, 6, 7, 8}, 6).rows.empty());
  EXPECT_EQ(w.free_pages(), 7);
  w.cache.unlock(w.insert(root, {1, 2, 3, 4}, 6));
  EXPECT_EQ(w.cache.match(root, Tokens{1, 2, 3, 4, 5, 6, 7, 8}, 7).rows, (std::vector<PrefixCache::Node>{a, d}));
  while (w.cache.evict()) w.cache.check();
  EXPECT_EQ(w.free_pages(), 8);
}

/// Two sets that begin alike have no row in common, and a set that has lost its end is not found.
TEST(PrefixCache, RowsOfASetAreFoundTogether) {
  World w(8, 1, 0, 2);
  const auto root = w.cache.lock_root("m");
  const Tokens first{1, 2, 3, 4, 5, 6, 7, 8}, other{1, 2, 3, 4, 5, 6, 7, 9}, second{9, 9, 9, 9, 8, 8, 8, 8};
  const auto a = w.insert(root, first), b = w.insert(a, first);
  const auto c = w.insert(root, other), d = w.insert(c, other);
  const auto e = w.insert(b, second), f = w.insert(e, second);
  EXPECT_NE(a, c);
  using Nodes = std::vector<PrefixCache::Node>;
  EXPECT_EQ(w.cache.match(root, first, 2).rows, (Nodes{a, b}));
  EXPECT_EQ(w.cache.match(root, other, 2).rows, (Nodes{c, d}));
  EXPECT_TRUE(w.cache.match(root, Tokens{1, 2, 3, 4, 5, 6, 7}, 2).rows.empty());
  Tokens both = first;
  both.insert(both.end(), second.begin(), second.end());
  EXPECT_EQ(w.cache.match(root, both, 2).rows, (Nodes{a, b, e, f}));
  both[9] = 0;
  const auto match = w.cache.match(root, both, 2);
  EXPECT_EQ(match.rows, (Nodes{a, b}));
  EXPECT_EQ(match.partial, PrefixCache::kNone);
  both[9] = 9;
  w.cache.unlock(f);
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.cache.match(root, both, 2).rows, (Nodes{a, b}));
  EXPECT_EQ(w.cache.find(b, second), e);
  w.cache.check();
}

TEST(PrefixCache, APartIsNotCopiedInTheStepThatFillsIt) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  w.insert(root, {1, 2, 3}, 7);
  w.insert(root, {1, 2, 9, 9}, 6);
  auto match = w.cache.match(root, Tokens{1, 2, 3, 4}, 7);
  EXPECT_EQ(match.coming_tokens, 3);
  match = w.cache.match(root, Tokens{1, 2, 3, 4}, 8);
  EXPECT_EQ(match.coming_tokens, 0);
  EXPECT_EQ(match.partial_tokens, 3);
}

TEST(PrefixCache, TreesAreApartAndGoWithTheirLastRow) {
  World w(4);
  const auto mine = w.cache.lock_root("mine");
  const auto row = w.insert(mine, {1, 2, 3, 4});
  const auto yours = w.cache.lock_root("yours");
  EXPECT_NE(mine, yours);
  EXPECT_TRUE(w.cache.match(yours, Tokens{1, 2, 3, 4, 5}, 2).rows.empty());
  w.cache.unlock(yours);
  w.cache.unlock(row);
  w.cache.unlock(mine);
  // Names come and go without anything being kept of them.
  for (int i = 0; i < 1000; ++i) w.cache.unlock(w.cache.lock_root("salt " + std::to_string(i)));
  const auto again = w.cache.lock_root("mine");
  EXPECT_EQ(w.cache.match(again, Tokens{1, 2, 3, 4, 5}, 2).rows.size(), 1u);
  EXPECT_LT(again, 4) << "entries are used again";
  w.cache.unlock(again);
  EXPECT_TRUE(w.cache.evict());
  EXPECT_FALSE(w.cache.evict());
  EXPECT_EQ(w.free_pages(), 4);
  w.cache.check();
}

TEST(PrefixCache, EvictsLeavesFirstAndTheLeastRecentlyUsedOfThem) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  const auto a = w.insert(root, {1, 1, 1, 1});
  const auto b = w.insert(a, {2, 2, 2, 2});
  const auto c = w.insert(root, {3, 3, 3, 3});
  EXPECT_FALSE(w.cache.evict()) << "all are locked";
  w.cache.unlock(b);
  w.cache.unlock(a);
  w.cache.unlock(c);
  w.cache.lock(a);  // used again, and with it nothing else
  w.cache.unlock(a);
  EXPECT_EQ(w.cache.evictable(), 3);
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.cache.find(a, Tokens{2, 2, 2, 2}), PrefixCache::kNone);
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.cache.find(root, Tokens{3, 3, 3, 3}), PrefixCache::kNone);
  EXPECT_EQ(w.cache.find(root, Tokens{1, 1, 1, 1}), a);
  w.cache.check();
}

TEST(PrefixCache, ARowThatIsInUseKeepsItsPagesAndAnUnusedOneTakesTheNewOnes) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  const auto row = w.insert(root, {1, 2, 3, 4}, 1);
  const std::int32_t first = w.cache.pages(row)[0];
  const Tokens mine = w.new_pages();
  EXPECT_EQ(w.cache.insert(root, Tokens{1, 2, 3, 4}, mine, 2), row);
  EXPECT_EQ(w.cache.pages(row)[0], first);
  EXPECT_EQ(w.cache.step(row), 1);
  w.cache.unlock(row);
  w.cache.unlock(row);
  EXPECT_EQ(w.free_pages(), 6);
  EXPECT_EQ(w.cache.insert(root, Tokens{1, 2, 3, 4}, mine, 3), row);
  EXPECT_EQ(w.cache.pages(row)[0], mine[0]);
  EXPECT_EQ(w.cache.step(row), 3);
  EXPECT_EQ(w.free_pages(), 7) << "the page that nobody used is free";
  EXPECT_EQ(w.cache.evictable(), 0);
  w.release(mine);
}

TEST(PrefixCache, APartHasOneOwner) {
  World w(8);
  const auto root = w.cache.lock_root("m");
  const auto part = w.insert(root, {1, 2}, 1);
  EXPECT_EQ(w.insert(root, {1, 2}, 1), PrefixCache::kNone) << "somebody fills it";
  EXPECT_EQ(w.free_pages(), 7);
  w.cache.drop_partial(part);
  EXPECT_EQ(w.free_pages(), 8);
  const auto old = w.insert(root, {1, 2}, 2);
  w.cache.unlock(old);
  EXPECT_EQ(w.insert(root, {1, 2}, 3), old) << "nobody fills it any more";
  EXPECT_EQ(w.cache.step(old), 3);
  w.cache.check();
}

TEST(PrefixCache, WithAWindowRowsGoFromUnderTheirChildrenAndComeBack) {
  World w(8, 2, 8);  // a window of two rows
  const auto root = w.cache.lock_root("m");
  std::vector<PrefixCache::Node> rows;
  for (std::int32_t i = 0; i < 4; ++i) rows.push_back(w.insert(i == 0 ? root : rows.back(), Tokens(kPage, i)));
  w.cache.unlock(rows[0]);
  w.cache.unlock(rows[1]);
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.cache.pages(rows[0])[0], -1);
  EXPECT_EQ(w.free_pages(), 5);
  const Tokens all = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4};
  EXPECT_EQ(w.cache.match(root, all, 2).rows, rows) << "two rows are all that the next token sees";
  EXPECT_EQ(w.cache.find(root, Tokens(kPage, 0)), PrefixCache::kNone);
  EXPECT_TRUE(w.cache.match(root, std::span(all).first(9), 2).rows.empty()) << "here it would see the row that is gone";
  ASSERT_TRUE(w.cache.evict());
  EXPECT_EQ(w.cache.match(root, all, 2).rows.size(), 4u);
  EXPECT_EQ(w.insert(root, Tokens(kPage, 0), 5), rows[0]) << "computed again";
  EXPECT_GE(w.cache.pages(rows[0])[1], 0);
  w.cache.check();
  for (int i = 3; i >= 2; --i) w.cache.unlock(rows[static_cast<std::size_t>(i)]);
  w.cache.unlock(rows[0]);
  w.cache.unlock(root);
  while (w.cache.evict()) w.cache.check();
  EXPECT_EQ(w.free_pages(), 8);
  EXPECT_EQ(w.cache.rows(), 0);
}

// --- random lives against a model that is a plain list of rows ---

struct ModelRow {
  Tokens path;  // all tokens from the root to the end of this row
  std::size_t filled = 0;
  int users = 0;
  bool hollow = false;
  std::int64_t used = 0;  // when it was unlocked last
  std::int64_t step = 0;
};

/// Everything that a PrefixCache of one tree should know.
class Model {
 public:
  Model(std::int64_t window) : window_(window) {}

  ModelRow* row(const Tokens& path) {
    for (ModelRow& r : rows_) {
      if (r.path == path) return &r;
    }
    return nullptr;
  }
  ModelRow& add(const Tokens& path, std::size_t filled, std::int64_t step) {
    rows_.push_back({.path = path, .filled = filled, .users = 0, .hollow = false, .used = 0, .step = step});
    return rows_.back();
  }
  bool has_children(const Tokens& path) {
    return std::ranges::any_of(rows_, [&](const ModelRow& r) {
      return r.path.size() > path.size() && r.path.size() - r.filled == path.size() &&
             std::equal(path.begin(), path.end(), r.path.begin());
    });
  }
  void remove(const Tokens& path) {
    std::erase_if(rows_, [&](const ModelRow& r) { return r.path == path; });
    prune();
  }
  void prune() {  // rows without pages, users and children
    while (true) {
      const auto found = std::ranges::find_if(
          rows_, [&](const ModelRow& r) { return r.hollow && r.users == 0 && !has_children(r.path); });
      if (found == rows_.end()) return;
      rows_.erase(found);
    }
  }
  bool evict() {
    ModelRow* oldest = nullptr;
    for (ModelRow& r : rows_) {
      if (r.users == 0 && !r.hollow && (oldest == nullptr || r.used < oldest->used)) oldest = &r;
    }
    if (oldest == nullptr) return false;
    oldest->hollow = true;
    prune();
    return true;
  }
  /// Whole rows that can be taken for `tokens`.
  std::size_t usable(const Tokens& tokens) {
    std::size_t best = 0;
    for (std::size_t rows = 1; rows * kPage <= tokens.size(); ++rows) {
      std::size_t with = 0;
      bool known = true;
      for (std::size_t i = 1; i <= rows; ++i) {
        const ModelRow* r = row(Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(i * kPage)));
        if (r == nullptr) known = false;
        with = r == nullptr || r->hollow ? 0 : with + 1;
      }
      if (!known) break;
      if (with == rows || (window_ > 0 && static_cast<std::int64_t>(with) * kPage >= window_)) best = rows;
    }
    return best;
  }
  std::deque<ModelRow>& rows() { return rows_; }

 private:
  std::int64_t window_;
  std::deque<ModelRow> rows_;
};

/// Sequences that lock from the root down, publish, pass by windows, and leave.
struct Holder {
  Tokens tokens;
  std::vector<PrefixCache::Node> nodes;
  std::vector<Tokens> pages;  // [nodes] its own; none for rows that it took or that its window has passed
  std::size_t first = 0;
  PrefixCache::Node partial = PrefixCache::kNone;
  Tokens partial_path, partial_pages;
};

void random_life(std::uint32_t seed, std::int64_t window) {
  std::mt19937 random(seed);
  const auto pick = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
  World w(40, 2, window);
  Model model(window);
  const auto root = w.cache.lock_root("m");
  std::vector<Holder> holders;
  std::int64_t clock = 0;
  const auto path = [](const Tokens& tokens, std::size_t rows) {
    return Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(rows * kPage));
  };
  const auto unlock = [&](const Tokens& of, PrefixCache::Node node) {
    w.cache.unlock(node);
    ModelRow* r = model.row(of);
    if (--r->users == 0) r->used = ++clock;
    model.prune();
  };
  const auto leave = [&](Holder& h) {
    for (const Tokens& pages : h.pages) {
      if (!pages.empty()) w.release(pages);
    }
    if (h.partial != PrefixCache::kNone) {
      w.release(h.partial_pages);
      unlock(h.partial_path, h.partial);
    }
    while (h.nodes.size() > h.first) {
      unlock(path(h.tokens, h.nodes.size()), h.nodes.back());
      h.nodes.pop_back();
    }
  };
  for (std::int64_t step = 1; step <= 1500; ++step) {
    const std::uint32_t action = pick(8);
    if (holders.size() < 5 && action <= 1) {  // joins
      Holder h;
      h.tokens.resize(1 + pick(24));
      for (std::int32_t& token : h.tokens) token = static_cast<std::int32_t>(pick(2));
      const PrefixCache::Match match = w.cache.match(root, h.tokens, step);
      ASSERT_EQ(match.rows.size(), model.usable(h.tokens));
      h.nodes = match.rows;
      h.pages.resize(h.nodes.size());
      for (std::size_t i = 0; i < h.nodes.size(); ++i) {
        ModelRow* r = model.row(path(h.tokens, i + 1));
        ASSERT_NE(r, nullptr);
        ASSERT_EQ(w.cache.pages(h.nodes[i])[1] < 0, r->hollow);
        ASSERT_EQ(w.cache.can_be_evicted(h.nodes[i]), r->users == 0 && !r->hollow);
        w.cache.lock(h.nodes[i]);
        ++r->users;
      }
      if (match.partial != PrefixCache::kNone) {
        ASSERT_LT(w.cache.step(match.partial), step);
        const std::size_t known = h.nodes.size() * kPage;
        bool found = false;
        for (const ModelRow& r : model.rows()) {
          if (r.hollow || r.path.size() - r.filled != known || r.path.size() <= known) continue;
          std::size_t common = 0;
          while (common < r.path.size() && common < h.tokens.size() && r.path[common] == h.tokens[common]) ++common;
          found = found || common == known + static_cast<std::size_t>(match.partial_tokens);
        }
        ASSERT_TRUE(found);
      }
      holders.push_back(std::move(h));
    } else if (!holders.empty()) {
      const std::size_t i = pick(static_cast<std::uint32_t>(holders.size()));
      Holder& h = holders[i];
      const std::size_t next = h.nodes.size();
      const PrefixCache::Node parent = next == 0 ? root : h.nodes.back();
      const std::size_t rest = h.tokens.size() - next * kPage;
      if (action <= 4 && rest > 0) {  // publishes
        while (w.free_pages() == 0) {
          ASSERT_EQ(w.cache.evict(), model.evict());
          if (w.cache.evictable() == 0) break;
        }
        if (w.free_pages() == 0) continue;
        if (h.partial != PrefixCache::kNone) {
          w.cache.drop_partial(h.partial);
          w.release(h.partial_pages);
          model.remove(h.partial_path);
          h.partial = PrefixCache::kNone;
        }
        const std::size_t filled = std::min<std::size_t>(rest, kPage);
        const Tokens pages = w.new_pages();
        const Tokens row(h.tokens.begin() + static_cast<std::ptrdiff_t>(next * kPage),
                         h.tokens.begin() + static_cast<std::ptrdiff_t>(next * kPage + filled));
        const Tokens whole(h.tokens.begin(), h.tokens.begin() + static_cast<std::ptrdiff_t>(next * kPage + filled));
        ModelRow* known = model.row(whole);
        const bool taken = known != nullptr && known->users > 0 && !known->hollow;
        const std::int64_t old_step = known == nullptr ? 0 : known->step;
        if (known == nullptr) known = &model.add(whole, filled, step);
        const PrefixCache::Node node = filled == kPage ? w.cache.insert(parent, row, pages, step)
                                                       : w.cache.insert_partial(parent, row, pages, step);
        if (filled < kPage && taken) {
          ASSERT_EQ(node, PrefixCache::kNone);
          w.release(pages);
          continue;
        }
        ASSERT_EQ(w.cache.pages(node)[0] == pages[0], !taken);
        known->step = taken ? old_step : step;
        ASSERT_EQ(w.cache.step(node), known->step);
        known->hollow = false;
        ++known->users;
        if (filled == kPage) {
          h.nodes.push_back(node);
          h.pages.push_back(pages);
        } else {
          h.partial = node;
          h.partial_path = whole;
          h.partial_pages = pages;
        }
      } else if (action == 5 && window > 0 && h.first + 1 < h.nodes.size()) {  // a window passes a row
        if (!h.pages[h.first].empty()) w.release(std::exchange(h.pages[h.first], {}));
        unlock(path(h.tokens, h.first + 1), h.nodes[h.first]);
        ++h.first;
      } else if (action == 6) {
        leave(h);
        holders.erase(holders.begin() + static_cast<std::ptrdiff_t>(i));
      } else if (action == 7) {
        ASSERT_EQ(w.cache.evict(), model.evict());
      }
    }
    w.cache.check();
    std::int64_t with_pages = 0, evictable = 0;
    for (const ModelRow& r : model.rows()) {
      with_pages += r.hollow ? 0 : 1;
      evictable += r.users == 0 && !r.hollow ? 1 : 0;
    }
    ASSERT_EQ(w.cache.rows(), with_pages) << "step " << step;
    ASSERT_EQ(w.cache.evictable(), evictable) << "step " << step;
  }
  for (Holder& h : holders) leave(h);
  while (w.cache.evict()) {
    ASSERT_TRUE(model.evict());
  }
  EXPECT_EQ(w.free_pages(), 40);
  EXPECT_TRUE(model.rows().empty());
}

TEST(PrefixCache, RandomLivesAgreeWithAPlainList) {
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    random_life(seed, 0);
    if (HasFatalFailure()) return;
  }
}

TEST(PrefixCache, RandomLivesWithAWindowAgreeWithAPlainList) {
  for (std::uint32_t seed = 101; seed <= 120; ++seed) {
    SCOPED_TRACE(seed);
    random_life(seed, seed % 2 == 0 ? 8 : 6);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace millrace
