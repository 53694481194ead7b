#include "core/fnv.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

std::uint64_t hash_of(std::string_view text) {
  Fnv1a hash;
  hash.add(text);
  return hash.value();
}

TEST(Fnv1a, IsTheOneOfTheSource) {
  EXPECT_EQ(hash_of(""), 0xcbf29ce484222325u);
  EXPECT_EQ(hash_of("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(hash_of("foobar"), 0x85944171f73967e8u);
  EXPECT_EQ(hash_of("\xff"), 0xaf64724c8602eb6eu);  // bytes have no sign
}

TEST(Fnv1a, GoesOnWhereItWas) {
  Fnv1a hash;
  hash.add("foo");
  hash.add("bar");
  EXPECT_EQ(hash.value(), hash_of("foobar"));
  Fnv1a of_values;
  of_values.add(std::uint64_t{'a'});
  EXPECT_EQ(of_values.value(), hash_of("a"));
}

}  // namespace
}  // namespace millrace
