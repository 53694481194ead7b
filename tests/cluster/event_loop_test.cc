// The loop of a gateway or a node: calls of other threads, timers.
#include "cluster/event_loop.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace millrace {
namespace {

TEST(EventLoopTest, CallsOfOtherThreadsComeInTheirOrder) {
  EventLoop loop;
  int last = -1;
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) {
      loop.post([&, i] {
        EXPECT_EQ(last, i - 1);
        last = i;
      });
    }
    loop.post([&] { loop.stop(); });
  });
  loop.run();
  other.join();
  EXPECT_EQ(last, 999);
}

TEST(EventLoopTest, TimersComeInTheirOrderAndCancelledOnesNever) {
  EventLoop loop;
  std::vector<int> came;
  loop.after(std::chrono::milliseconds(20), [&] {
    came.push_back(2);
    loop.stop();
  });
  loop.after(std::chrono::milliseconds(5), [&] { came.push_back(1); });
  loop.cancel(loop.after(std::chrono::milliseconds(10), [&] { came.push_back(9); }));
  loop.run();
  EXPECT_EQ(came, (std::vector{1, 2}));
  EXPECT_GE(loop.now(), std::chrono::milliseconds(20));
}

}  // namespace
}  // namespace millrace
