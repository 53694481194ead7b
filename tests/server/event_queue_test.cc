#include "server/event_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace millrace {
namespace {

TokenEvent event_of(std::string text, std::int32_t choice = 0, FinishReason finish = FinishReason::none) {
  TokenEvent event;
  event.request = 7;
  event.choice = choice;
  event.text = std::move(text);
  event.finish = finish;
  return event;
}

TEST(EventQueue, KeepsOrderAndWakesOnceUntilTaken) {
  int wakes = 0;
  EventQueue queue(1 << 20, [&] { ++wakes; });
  for (int i = 0; i < 5; ++i) EXPECT_EQ(queue.push(3, event_of(std::to_string(i))), Demand::more);
  EXPECT_EQ(wakes, 1);
  std::vector<EventQueue::Item> items;
  std::vector<EventQueue::Paused> resume;
  queue.take(1, items, resume);  // at least one, and no more than asked for
  ASSERT_EQ(items.size(), 1U);
  EXPECT_EQ(wakes, 2) << "something is left, and nothing may ever be pushed again";
  queue.take(1 << 20, items, resume);
  ASSERT_EQ(items.size(), 5U);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(items[static_cast<std::size_t>(i)].event.text, std::to_string(i));
  EXPECT_EQ(items[0].request, 3U);
  EXPECT_TRUE(resume.empty());
  queue.push(3, event_of("x"));
  EXPECT_EQ(wakes, 3);
}

TEST(EventQueue, KeepsTheSummaryBeyondTheCall) {
  EventQueue queue(1 << 20, [] {});
  {
    const RequestSummary summary{.prompt_tokens = 5};
    TokenEvent event = event_of("", 0, FinishReason::stop);
    event.summary = &summary;
    queue.push(0, event);
  }
  std::vector<EventQueue::Item> items;
  std::vector<EventQueue::Paused> resume;
  queue.take(1 << 20, items, resume);
  EXPECT_EQ(items.at(0).event.summary, nullptr);
  EXPECT_EQ(items.at(0).summary->prompt_tokens, 5);
}

TEST(EventQueue, PausesAboveTheBoundAndResumesBelowHalf) {
  EventQueue queue(10'000, [] {});
  const std::string text(2000, 'x');
  std::vector<bool> paused;
  for (int i = 0; i < 8; ++i) paused.push_back(queue.push(0, event_of(text, i % 2)) == Demand::pause);
  EXPECT_FALSE(paused[0]);
  EXPECT_TRUE(paused[6] && paused[7]);
  // The last event of a choice asks for nothing.
  EXPECT_EQ(queue.push(0, event_of(text, 1, FinishReason::stop)), Demand::more);
  std::vector<EventQueue::Item> items;
  std::vector<EventQueue::Paused> resume;
  queue.take(8000, items, resume);
  EXPECT_TRUE(resume.empty());  // still more than half
  while (items.size() < 9) queue.take(1, items, resume);
  ASSERT_EQ(resume.size(), 2U);  // each choice once
  EXPECT_EQ(resume[0].request, 7U);
  EXPECT_NE(resume[0].choice, resume[1].choice);
}

TEST(EventQueue, ClosedItDropsAndIsSilent) {
  int wakes = 0;
  EventQueue queue(100, [&] { ++wakes; });
  queue.push(0, event_of(std::string(1000, 'x')));
  queue.close();
  EXPECT_EQ(queue.push(0, event_of(std::string(1000, 'x'))), Demand::more);
  std::vector<EventQueue::Item> items;
  std::vector<EventQueue::Paused> resume;
  queue.take(1000, items, resume);
  EXPECT_TRUE(items.empty());
  EXPECT_EQ(wakes, 1);
}

TEST(EventQueue, LosesNothingBetweenThreads) {
  constexpr int kEvents = 20'000;
  std::atomic<int> wakes = 0;
  EventQueue queue(4000, [&] { ++wakes; });
  std::thread stepping([&] {
    for (int i = 0; i < kEvents; ++i) queue.push(0, event_of(std::to_string(i)));
  });
  std::vector<EventQueue::Item> items;
  std::vector<EventQueue::Paused> resume;
  int seen = 0;
  while (items.size() < kEvents) {
    while (wakes.load() == seen && items.size() < kEvents) std::this_thread::yield();  // only a wake says there is more
    seen = wakes.load();
    std::size_t before = 0;
    do {
      before = items.size();
      queue.take(1000, items, resume);
    } while (items.size() > before);
  }
  stepping.join();
  for (int i = 0; i < kEvents; ++i) ASSERT_EQ(items[static_cast<std::size_t>(i)].event.text, std::to_string(i));
}

}  // namespace
}  // namespace millrace
