#include "backend/cpu/read_counter.h"

#include <algorithm>

namespace millrace {

void ReadCounter::begin(const ForwardBatch& batch, const AttendArgs& args, int threads) {
  left_out_.assign(static_cast<std::size_t>(threads), {});
  for (const SequenceRows& sequence : batch.sequences) {
    for (std::int64_t i = 0; i < sequence.rows; ++i) {
      const std::int64_t seen = sequence.first_position + i + 1;
      counts_.all += static_cast<double>((args.window > 0 ? std::min(args.window, seen) : seen) * args.heads);
    }
  }
}

void ReadCounter::add(const AttendTask& task, std::int64_t heads) {
  const std::int64_t window = task.args->window;
  for (std::int64_t r = 0; r < task.rows; ++r) {
    const std::int64_t position = task.position + r;
    const std::int64_t first = std::max(task.begin, window > 0 ? std::max<std::int64_t>(0, position - window + 1) : 0);
    counts_.read += static_cast<double>(std::max<std::int64_t>(0, std::min(task.end, position + 1) - first) * heads);
  }
}

void ReadCounter::end() {
  for (const LeftOut& thread : left_out_) counts_.read -= 0.5 * static_cast<double>(thread.positions);
}

}  // namespace millrace
