// Rows of prompts whose attention is approximate where it is far (HyperAttention, docs/sparsity.md).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/key_records.h"
#include "backend/cpu/thread_scratch.h"
#include "backend/selected_pages.h"
#include "core/thread_pool.h"
#include "kv/hyper_choice.h"

namespace millrace {

/// What a row reads exactly, a kernel takes in from a page table of that, and leaves its state. Then, for a chunk of
/// rows and some kv heads at a time: the keys of all that they approximate are put in the order of their
/// buckets, queries that read the same block of them are brought together, and the kernel goes on, for these, from a
/// table of the block and the samples. Kept between calls so that steps do not allocate.
class HyperAttender {
 public:
  /// All must outlive it.
  HyperAttender(const KernelTable& kernels, ThreadPool& pool, ThreadScratch& scratch)
      : kernels_(&kernels), pool_(&pool), scratch_(&scratch) {}

  /// Attention of the rows of the batch that approximate; each thread's scratch must do for tasks of `task_rows` rows.
  /// Returns how many positions all queries have read.
  double attend(const ForwardBatch& batch, const AttendArgs& args, AttendKernel kernel, std::int64_t task_rows);

  /// Buckets of the keys of prompts that the batch has stored.
  void keep_buckets(const ForwardBatch& batch, const RopeStoreArgs& args);

 private:
  /// Rows of one sequence and one chunk.
  struct Piece {
    std::int64_t row = 0, rows = 0;  // of the batch
    std::int64_t position = 0;       // of the first
    const std::int32_t* page_table = nullptr;
    HyperChunk chunk;
    std::int64_t near_table = 0;  // where in near_tables_ its table is

    [[nodiscard]] std::int64_t near_position() const {  // in that table
      return chunk.begin + position - chunk.end;
    }
  };

  /// What is known of the approximated positions for a kv head.
  struct Head {
    std::vector<std::uint8_t> buckets;  // by position, as all here from chunk.begin on
    std::vector<std::int32_t> ranks;    // by position
    std::vector<std::int32_t> order;    // positions by rank
    BucketBegins begins = {};
    std::vector<KeySample> samples;
    std::vector<std::int32_t> blocks;   // of each query: row of the piece, times heads of the kv head, plus head
    std::vector<std::int32_t> queries;  // of the batch (AttendTask::queries), by block
    std::vector<std::int32_t> query_begins, next;  // of each block, and their number
    std::vector<std::uint8_t> wanted;              // by rank: whether somebody reads it
  };

  /// Queries that read the same block.
  struct FarTask {
    std::int32_t kv_head = 0, head = 0;  // which of heads_ has it
    std::int32_t block = 0;
    std::int32_t first = 0, count = 0;  // of the head's queries
  };

  void find_pieces(const ForwardBatch& batch);
  void attend_near();
  void attend_far(const Piece& piece);
  void reserve(const Piece& piece);
  void attend_heads(const Piece& piece, std::int64_t first, std::int64_t heads);
  void order_keys(const Piece& piece, std::int64_t kv_head, Head& head) const;
  void find_blocks(const Piece& piece, std::int64_t kv_head, std::int64_t first_row, std::int64_t end_row,
                   Head& head) const;
  void order_queries(const Piece& piece, std::int64_t kv_head, Head& head) const;
  void scatter_pages(const Piece& piece, std::int64_t kv_head, std::int64_t head, std::int64_t first, std::int64_t end,
                     int thread) const;
  template <typename RankOf>
  std::int64_t fill_pages(const Piece& piece, std::int64_t kv_head, std::int64_t head, std::int64_t count,
                          std::int64_t page, RankOf&& rank_of);
  void run(const Piece& piece, const FarTask& task, int thread);
  /// Of heads_; behind the last stand a record of zeros, and one for each thread that is not read.
  [[nodiscard]] std::byte* records_at(std::int64_t head) const;

  [[nodiscard]] const double* planes(const KeyHash& hash, std::int32_t kv_heads, std::int32_t head_dim);

  struct Planes {
    KeyHash hash;
    std::int32_t kv_heads = 0, head_dim = 0;
    std::vector<double> numbers;  // [kv_heads][head_dim][kHashLanes]
  };

  const KernelTable* kernels_;
  ThreadPool* pool_;
  ThreadScratch* scratch_;
  std::vector<Planes> planes_;  // by layer
  std::vector<float> keys_;     // of each thread

  // Of a call.
  const AttendArgs* args_ = nullptr;
  AttendKernel kernel_ = nullptr;
  std::int64_t task_rows_ = 0, group_ = 0;
  const double* plane_numbers_ = nullptr;
  std::vector<Piece> pieces_;
  std::vector<std::int32_t> near_tables_;
  std::vector<float> state_;
  std::vector<AttendTask> near_tasks_;

  // Of a piece and some kv heads.
  AttendArgs far_args_ = {};  // whose pages are those of pages_
  std::optional<KeyRecords> records_of_;
  std::int64_t count_ = 0, blocks_ = 0;  // of approximated positions
  std::int64_t together_ = 0;            // kv heads, at most
  std::int64_t block_pages_ = 0, sample_pages_ = 0;
  std::vector<Head> heads_;
  std::vector<FarTask> far_tasks_;
  ThreadScratch records_{1};          // [heads][count_ by rank]
  ThreadScratch pages_{1};            // of the samples of each head, then of a block of each thread
  std::vector<float> biases_;         // [threads][positions of a block and the samples]
  std::vector<std::int32_t> tables_;  // [threads][pages of these]
};

}  // namespace millrace
