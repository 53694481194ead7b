// Attention on the CPU: the plan of a batch, the choice of blocks and pages, and the tasks on the pool's threads.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attend_plan.h"
#include "backend/cpu/block_selector.h"
#include "backend/cpu/hyper_attender.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/page_selector.h"
#include "backend/cpu/thread_scratch.h"
#include "core/thread_pool.h"

namespace millrace {

class Attention {
 public:
  /// All must outlive it.
  Attention(const KernelTable& kernels, ThreadPool& pool, ThreadScratch& scratch)
      : kernels_(&kernels),
        pool_(&pool),
        scratch_(&scratch),
        block_selector_(kernels, pool),
        page_selector_(kernels, pool),
        hyper_(kernels, pool, scratch) {}

  /// Whether queries and weights are rounded to bf16: where keys and values are rounded too, and the level can.
  [[nodiscard]] bool rounds(KvFormat format) const {
    return format != KvFormat::f32 && kernels_->products.attend_rounded != nullptr;
  }

  /// Backend::attend().
  void attend(const ForwardBatch& batch, const AttendArgs& args);

  /// What the batch's rows have stored is there: keeps what the layer needs of its keys.
  void keep_of_keys(const ForwardBatch& batch, const RopeStoreArgs& args) {
    if (args.kv.key_bounds != nullptr) bound_keys(batch, args);
    if (args.kv.key_buckets != nullptr) hyper_.keep_buckets(batch, args);
  }

 private:
  /// Bounds of the keys in pages that the batch has filled: no row chooses from others.
  void bound_keys(const ForwardBatch& batch, const RopeStoreArgs& args);
  [[nodiscard]] std::int32_t heads_together(std::int64_t blocks, std::int32_t kv_heads) const;
  void attend_blocks(const AttendArgs& args, std::span<const AttendTask> blocks);
  void attend_chosen(const AttendArgs& args, std::span<const AttendTask> tasks);
  /// Makes ready for tasks of the batch that are measured.
  void begin_masses(const ForwardBatch& batch, const AttendArgs& args);
  void run(AttendTask task, int thread);
  void add_masses(const AttendTask& task, std::size_t sequence, int thread);
  [[nodiscard]] AttendKernel kernel(const AttendArgs& args) const {
    return rounds(args.kv.format) ? kernels_->products.attend_rounded : kernels_->attend;
  }

  const KernelTable* kernels_;
  ThreadPool* pool_;
  ThreadScratch* scratch_;
  // Kept between calls so that steps do not allocate.
  AttendPlan plan_;
  BlockSelector block_selector_;
  PageSelector page_selector_;
  HyperAttender hyper_;
  std::vector<BoundTask> bound_tasks_;
  const ForwardBatch* measured_ = nullptr;  // where some rows of the batch are
  std::vector<std::int32_t> sequence_of_row_;
  struct MassScratch {
    std::vector<float> pages, largest;
    std::vector<std::uint64_t> sums;
  };
  std::vector<MassScratch> mass_scratch_;  // of each thread
};

}  // namespace millrace
