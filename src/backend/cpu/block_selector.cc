#include "backend/cpu/block_selector.h"

#include <algorithm>

#include "backend/cpu/parallel.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr std::int64_t kPagesOfBlock = kKeyBlock / kCell;
constexpr std::int64_t kTaskPages = 256;  // whose keys a task scores at least: it lays out the queries first
constexpr std::int64_t kMostScores =
    1 << 22;  // that are kept at a time: 16 MiB, and more only where one block needs it

}  // namespace

void BlockSelector::begin(const ForwardBatch& batch, const AttendArgs& args, bool rounded, std::int64_t task_rows) {
  args_ = &args;
  rounded_ = rounded;
  task_rows_ = task_rows;
  blocks_.clear();
  done_ = 0;
  pages_ = 0;
  cuts_ = (kQueryBlock + task_rows - 1) / task_rows;
  for (const SequenceRows& sequence : batch.sequences) {
    const RowParts parts = parts_of(args, sequence);
    for (std::int64_t first = parts.prompt_all; first < parts.prompt_end;) {
      const PromptBlock block = prompt_block(args, sequence, first);
      const std::int64_t position = sequence.first_place(args.kv.group) + first,
                         end = sequence.first_place(args.kv.group) + block.end;
      MILLRACE_CHECK(
          position % kQueryBlock == 0 && (end % kQueryBlock == 0 || end == sequence.answer_place(args.kv.group)),
          "rows {} to {} of a prompt of {} are no whole blocks", position, end, sequence.answer_place(args.kv.group));
      blocks_.push_back({.row = sequence.first_row + first,
                         .rows = block.rows(),
                         .position = position,
                         .page_table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)].data(),
                         .candidates = block.candidates});
      pages_ = std::max(pages_, (end + kCell - 1) / kCell);
      first = block.end;
    }
  }
  MILLRACE_CHECK(blocks_.empty() || (args.window == 0 && args.kv.page_tokens == kCell),
                 "blocks are selected in a layer with a window of {} and pages of {}", args.window,
                 args.kv.page_tokens);
}

double BlockSelector::scores_read() const {
  if (args_->prompt_selection->choice != BlockChoice::xattention) return 0.0;
  double positions = 0.0;
  for (const Block& block : blocks_) positions += static_cast<double>(block.rows * block.full_pages() * kCell);
  return positions * args_->heads / (2 * kCell);
}

std::span<const AttendTask> BlockSelector::next() {
  if (done_ == blocks_.size()) return {};
  const std::int64_t columns = cell_columns(args_->heads / args_->kv_heads),
                     most = std::max<std::int64_t>(1, kMostScores / (args_->kv_heads * columns * pages_));
  const std::size_t count = std::min(blocks_.size() - done_, static_cast<std::size_t>(most));
  const std::span<Block> blocks = std::span<Block>(blocks_).subspan(done_, count);
  done_ += count;
  if (args_->prompt_selection->choice == BlockChoice::xattention) score(blocks);
  choose(blocks);
  return tasks_;
}

void BlockSelector::score(std::span<Block> blocks) {
  const AttendArgs& args = *args_;
  const std::int64_t group = args.heads / args.kv_heads, columns = cell_columns(group);
  sets_.clear();
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const bool follows = b > 0 && blocks[b].page_table == blocks[b - 1].page_table &&
                         blocks[b].row == blocks[b - 1].row + kQueryBlock && sets_.back().blocks < kCellBlocks;
    if (follows) {
      ++sets_.back().blocks;
    } else {
      sets_.push_back({b, 1});
    }
  }
  scores_.resize(blocks.size() * static_cast<std::size_t>(args.kv_heads * pages_ * columns));
  float* next = scores_.data();
  for (const Set& set : sets_) {
    const std::int64_t stride = static_cast<std::int64_t>(set.blocks) * columns;
    for (std::size_t b = 0; b < set.blocks; ++b) {
      blocks[set.first + b].scores = next + static_cast<std::int64_t>(b) * columns;
      blocks[set.first + b].score_stride = stride;
    }
    next += args.kv_heads * pages_ * stride;
  }

  const std::int64_t count = static_cast<std::int64_t>(sets_.size()) * args.kv_heads;
  const std::int64_t scratch = cell_scratch(group, args.head_dim);
  scratch_.resize(static_cast<std::size_t>(pool_->threads() * scratch) + kPanelRows);
  auto* const aligned = reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(scratch_.data()) + 63) / 64 * 64);
  // As many tasks as keep the threads busy, no smaller than pays.
  const std::int64_t wanted = (4 * pool_->threads() + count - 1) / count,
                     pieces = std::clamp<std::int64_t>(pages_ / kTaskPages, 1, wanted),
                     pages = (pages_ + pieces - 1) / pieces;
  const auto run = rounded_ ? kernels_->products.score_cells_rounded : kernels_->score_cells;
  for_each(*pool_, count * pieces, pages * columns * args.head_dim * kCell, kParallelProducts,
           [&](std::int64_t task, int thread) {
             const Set& set = sets_[static_cast<std::size_t>(task / pieces / args.kv_heads)];
             const std::int64_t kv_head = task / pieces % args.kv_heads, first = task % pieces * pages;
             const Block& block = blocks[set.first];
             const Block& last = blocks[set.first + set.blocks - 1];
             const std::int64_t end = std::min(last.full_pages(), first + pages);
             if (first >= end) return;
             run({.args = &args,
                  .page_table = block.page_table,
                  .batch_row = block.row,
                  .rows = last.row + last.rows - block.row,
                  .kv_head = static_cast<std::int32_t>(kv_head),
                  .first = first,
                  .end = end,
                  .scores = block.scores + (kv_head * pages_ + first) * block.score_stride,
                  .scratch = aligned + thread * scratch});
           });
}

void BlockSelector::choose(std::span<const Block> blocks) {
  const AttendArgs& args = *args_;
  const std::int64_t group = args.heads / args.kv_heads;
  const std::int64_t count = static_cast<std::int64_t>(blocks.size()) * args.kv_heads;
  choosers_.resize(static_cast<std::size_t>(pool_->threads()));
  tables_.resize(static_cast<std::size_t>(count * pages_));
  entries_.resize(tables_.size());
  shares_.resize(static_cast<std::size_t>(count * group * (pages_ / kPagesOfBlock + 1)));
  tasks_.assign(static_cast<std::size_t>(count * cuts_), {});
  for_each(*pool_, count, pages_ * cell_columns(group) * 16, kParallelElements, [&](std::int64_t task, int thread) {
    choose(blocks[static_cast<std::size_t>(task / args.kv_heads)], task, task % args.kv_heads,
           choosers_[static_cast<std::size_t>(thread)]);
  });
  std::erase_if(tasks_, [](const AttendTask& task) { return task.rows == 0; });
}

/// `index`: of the block, times kv heads, plus the kv head.
void BlockSelector::choose(const Block& block, std::int64_t index, std::int64_t kv_head, BlockChooser& chooser) {
  const AttendArgs& args = *args_;
  const BlockSelection& selection = *args.prompt_selection;
  const std::int64_t group = args.heads / args.kv_heads, stride = pages_ / kPagesOfBlock + 1;
  float* const shares = shares_.data() + index * group * stride;
  const bool scored = selection.choice == BlockChoice::xattention;
  if (scored) {
    kernels_->weigh_cells({.scores = block.scores + kv_head * pages_ * block.score_stride,
                           .score_stride = block.score_stride,
                           .pages = block.full_pages(),
                           .history = block.history(),
                           .rows = block.rows,
                           .group = group,
                           .scale = args.scale,
                           .shares = shares,
                           .stride = stride});
  }
  const std::vector<std::int32_t>& chosen =
      chooser.choose(selection, block.candidates, block.position / kKeyBlock, scored ? shares : nullptr, group, stride,
                     {block.position, args.layer, static_cast<std::uint32_t>(kv_head)});
  std::int32_t* const table = tables_.data() + index * pages_;
  std::int32_t* const entries = entries_.data() + index * pages_;
  std::int64_t count = 0;
  const auto read = [&](std::int64_t page, std::int64_t pages) {
    for (const std::int64_t end = page + pages; page < end; ++page, ++count) {
      entries[count] = static_cast<std::int32_t>(page);
      table[count] = block.page_table[page];
    }
  };
  for (const std::int32_t of_keys : chosen) read(of_keys * kPagesOfBlock, kPagesOfBlock);
  // The rows' own positions come last, at the same places of their chunks.
  const std::int64_t own = count * kCell;
  read(block.history(), (block.rows + kCell - 1) / kCell);
  for (std::int64_t cut = 0; cut < cuts_ && cut * task_rows_ < block.rows; ++cut) {
    const std::int64_t row = cut * task_rows_, rows = std::min(task_rows_, block.rows - row);
    tasks_[static_cast<std::size_t>(index * cuts_ + cut)] = {.args = &args,
                                                             .page_table = table,
                                                             .batch_row = block.row + row,
                                                             .position = own + row,
                                                             .rows = rows,
                                                             .begin = 0,
                                                             .end = own + row + rows,
                                                             .kv_head = static_cast<std::int32_t>(kv_head),
                                                             .entries = entries};
  }
}

}  // namespace millrace
