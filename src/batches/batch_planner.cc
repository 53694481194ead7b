#include "batches/batch_planner.h"

#include <algorithm>
#include <cmath>

namespace millrace {

namespace {

constexpr double kHour = 3600.0;

/// Spare time of a group of nodes in one hour.
struct Room {
  double usd = 0.0;    // of a unit of work
  double begin = 0.0;  // seconds from now
  double units = 0.0;  // that fit
  std::uint32_t group = 0, hour = 0;
};

}  // namespace

double batch_seconds(const NodeSpeed& speed, std::int64_t places, double prompt_tokens, double answer_tokens) {
  return prompt_tokens / speed.prefill +
         answer_tokens * (speed.step / static_cast<double>(places) + speed.step_per_sequence);
}

BatchPlan plan_batch(UnixSeconds now, std::span<const BatchNodes> nodes, std::span<const BatchLines> lines,
                     const BatchPlanOptions& options) {
  const double to_edge = kHour - (now.count() - kHour * std::floor(now.count() / kHour));
  BatchPlan plan{.until = now + UnixSeconds(to_edge), .seconds = std::vector<double>(nodes.size(), 0.0)};
  // Work is counted in parts of all of it, whose mixture of prompts and answers all parts are taken to have.
  double prompts = 0.0, answers = 0.0;
  for (const BatchLines& line : lines) {
    prompts += line.prompt_tokens;
    answers += line.answer_tokens;
  }
  const double all = prompts + answers;
  if (all <= 0.0) return plan;
  struct Due {
    double by, units;  // seconds from now
  };
  std::vector<Due> dues;
  double last = to_edge;
  for (const BatchLines& line : lines) {
    const double left = line.deadline.count() - now.count();
    const double by =
        std::max(left - std::max(options.early_seconds, options.early_share * left), std::min(left, kHour));
    dues.push_back({by > 0.0 ? by : kHour, (line.prompt_tokens + line.answer_tokens) / all});
    last = std::max(last, dues.back().by);
  }
  std::ranges::stable_sort(dues, {}, &Due::by);
  const auto hours = 1 + static_cast<std::uint32_t>(std::ceil((last - to_edge) / kHour));
  std::vector<Room> rooms;
  for (std::uint32_t group = 0; group < nodes.size(); ++group) {
    const BatchNodes& node = nodes[group];
    const double seconds = batch_seconds(node.speed, node.places, prompts, answers);  // of a unit
    if (node.spare <= 0.0 || seconds <= 0.0) continue;
    for (std::uint32_t hour = 0; hour < hours; ++hour) {
      const double begin = hour == 0 ? 0.0 : to_edge + kHour * (hour - 1);
      const double length = hour == 0 ? to_edge : kHour;
      const NodePrice price{.usd_per_hour = options.rent_counts ? node.usd_per_hour : 0.0,
                            .watts = node.watts,
                            .pue = node.pue,
                            .usd_per_kwh = node.tariff.at(now + UnixSeconds(begin + length / 2))};
      rooms.push_back(
          {usd_per_second(price) * seconds, begin, length * node.spare * options.use_of_spare / seconds, group, hour});
    }
  }
  std::ranges::sort(rooms, [](const Room& a, const Room& b) {
    return a.usd != b.usd ? a.usd < b.usd : a.hour != b.hour ? a.hour < b.hour : a.group < b.group;
  });
  const auto length_of = [&](const Room& room) { return room.hour == 0 ? to_edge : kHour; };
  for (Due& due : dues) {
    for (Room& room : rooms) {
      if (due.units <= 0.0) break;
      if (room.units <= 0.0 || room.begin >= due.by) continue;
      // Of the hour in which it is due the part before that.
      const double part = std::min(1.0, (due.by - room.begin) / length_of(room));
      const double units = std::min(due.units, room.units * part);
      due.units -= units;
      room.units -= units;
      if (room.hour == 0) {
        const BatchNodes& node = nodes[room.group];
        plan.seconds[room.group] += units * batch_seconds(node.speed, node.places, prompts, answers);
      }
    }
    plan.late = plan.late || due.units > 1e-9;
  }
  return plan;
}

}  // namespace millrace
