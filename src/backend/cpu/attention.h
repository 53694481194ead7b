// Attention on the CPU: the plan of a batch, the choice of blocks and pages, and the tasks on the pool's threads.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attend_plan.h"
#include "backend/cpu/block_selector.h"
#include "backend/cpu/hyper_attender.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/mass_adder.h"
#include "backend/cpu/moved_attender.h"
#include "backend/cpu/page_selector.h"
#include "backend/cpu/read_counter.h"
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
        hyper_(kernels, pool, scratch),
        moved_(pool, scratch, masses_, reads_) {}

  // Parts of it point to each other.
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  /// Whether queries and weights are rounded to bf16: where keys and values are rounded too, and the level can.
  [[nodiscard]] bool rounds(KvFormat format) const {
    return format != KvFormat::f32 && kernels_->products.attend_rounded != nullptr;
  }

  /// Backend::attend().
  void attend(const ForwardBatch& batch, const AttendArgs& args);

  [[nodiscard]] const AttendCounts& counts() const { return reads_.counts(); }

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
  void run(AttendTask task, int thread);
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
  MassAdder masses_;
  ReadCounter reads_;
  MovedAttender moved_;
};

}  // namespace millrace
