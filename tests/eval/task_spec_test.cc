#include "eval/task_spec.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(TaskSpec, NamesAndArguments) {
  const auto blimp = parse_task_spec("blimp:a folder,b.jsonl");
  ASSERT_TRUE(blimp.ok());
  EXPECT_EQ(blimp->name, "blimp");
  EXPECT_EQ(blimp->paths, (std::vector<std::string>{"a folder", "b.jsonl"}));
  EXPECT_EQ(parse_task_spec("piqa:x.jsonl,labels.lst")->paths.size(), 2u);
  EXPECT_EQ(parse_task_spec("key_value:512,2048")->lengths, (std::vector<std::int64_t>{512, 2048}));
  EXPECT_TRUE(parse_task_spec("key_value")->lengths.empty());
  const auto needle = parse_task_spec("needle:100,book.txt,300");
  EXPECT_EQ(needle->lengths, (std::vector<std::int64_t>{100, 300}));
  EXPECT_EQ(needle->paths, std::vector<std::string>{"book.txt"});
  EXPECT_EQ(parse_task_spec("lambada:C:/with a colon")->paths.front(), "C:/with a colon");
  EXPECT_EQ(parse_task_spec("blimp:2048")->paths.front(), "2048");  // a file may be named so
}

TEST(TaskSpec, WhatIsWrongIsSaid) {
  const auto wrong = [](const char* text, const char* expected) {
    const auto spec = parse_task_spec(text);
    ASSERT_FALSE(spec.ok()) << text;
    EXPECT_NE(spec.error().message.find(expected), std::string::npos) << spec.error().message;
  };
  wrong("", "blimp");
  wrong("blimb:x", "lambada:FILE");
  wrong("blimp", "needs a file; write blimp:");
  wrong("blimp:", "write blimp:");
  wrong("lambada:a,b", "\"b\" is no argument");
  wrong("key_value:512,x", "\"x\" is no argument");
  wrong("key_value:0", "no number of tokens");
  wrong("key_value:99999999999999999999", "no number of tokens");
  wrong("needle:512,,1024", "empty");
}

}  // namespace
}  // namespace millrace
