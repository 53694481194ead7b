#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace millrace {
namespace {

/// Feeds the pieces; returns all that came out, "|" where the stream stopped.
std::string run(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings matcher(stops);
  std::string out;
  for (const std::string& piece : pieces) {
    out += matcher.push(piece);
    if (matcher.stopped()) return out + "|";
  }
  return out + matcher.finish();
}

TEST(StopStrings, NoneLetsEverythingThroughAtOnce) {
  StopStrings matcher({""});
  EXPECT_EQ(matcher.push("abc"), "abc");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopStrings, FoundInsideAndAcrossPieces) {
  EXPECT_EQ(run({"END"}, {"xENDy"}), "x|");
  EXPECT_EQ(run({"END"}, {"x", "E", "N", "D", "y"}), "x|");
  EXPECT_EQ(run({"END"}, {"xEN", "Emy"}), "xENEmy");
  EXPECT_EQ(run({"aab"}, {"a", "a", "a", "b"}), "a|");
}

TEST(StopStrings, WhatIsHeldBackComesOutAtTheEnd) {
  StopStrings matcher({"\n\n"});
  EXPECT_EQ(matcher.push("line\n"), "line");
  EXPECT_EQ(matcher.finish(), "\n");
}

TEST(StopStrings, TheOneThatEndsFirstWins) {
  EXPECT_EQ(run({"bcd", "c"}, {"abcd"}), "ab|");
  EXPECT_EQ(run({"c", "abc"}, {"xabc"}), "x|");
}

TEST(StopStrings, AnyCutOfTheTextGivesTheSame) {
  const std::string text = "the quick brown fox <stop> and more";
  for (std::size_t a = 0; a <= text.size(); ++a) {
    for (std::size_t b = a; b <= text.size(); ++b) {
      EXPECT_EQ(run({"<stop>", "<st!"}, {text.substr(0, a), text.substr(a, b - a), text.substr(b)}),
                "the quick brown fox |");
    }
  }
}

}  // namespace
}  // namespace millrace
