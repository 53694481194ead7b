// The loop of a gateway or a node: rounds, their ends, timers.
#include "cluster/event_loop.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace millrace {
namespace {

TEST(EventLoopTest, ARoundEndsWhenAllIsDoneThatWasToBeDone) {
  EventLoop loop;
  std::string log;
  for (int i = 0; i < 3; ++i) {
    loop.post([&] {
      log += 'p';
      if (log.size() == 1) {
        loop.after(Duration{0}, [&] {
          log += 't';
          loop.at_round_end([&] {
            log += 'f';
            loop.at_round_end([&] { log += 'g'; });
          });
        });
        loop.at_round_end([&] { log += 'e'; });
      }
    });
  }
  loop.post([&] { loop.stop(); });
  loop.run();
  EXPECT_EQ(log, "ppptefg");
}

TEST(EventLoopTest, WhereNoRoundIsItsEndIsNow) {
  EventLoop loop;
  int calls = 0;
  loop.at_round_end([&] { ++calls; });
  EXPECT_EQ(calls, 1);
  loop.post([&] { loop.stop(); });
  loop.run();
  loop.at_round_end([&] { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(EventLoopTest, WhatComesWithTheStopStillEndsItsRound) {
  EventLoop loop;
  bool ended = false;
  loop.post([&] {
    loop.stop();
    loop.at_round_end([&] { ended = true; });
  });
  loop.run();
  EXPECT_TRUE(ended);
}

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

}  // namespace
}  // namespace millrace
