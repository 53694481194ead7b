#include "bench/url.h"

#include <gtest/gtest.h>

namespace millrace::bench {
namespace {

TEST(Url, PartsAndDefaults) {
  const auto plain = parse_url("http://localhost:8000");
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->tls);
  EXPECT_EQ(plain->host, "localhost");
  EXPECT_EQ(plain->port, "8000");
  EXPECT_EQ(plain->path, "");
  EXPECT_EQ(plain->authority(), "localhost:8000");
  const auto secure = parse_url("https://example.org/api/v1/");
  ASSERT_TRUE(secure.ok());
  EXPECT_TRUE(secure->tls);
  EXPECT_EQ(secure->port, "443");
  EXPECT_EQ(secure->path, "/api");  // clients add /v1/... themselves
  EXPECT_EQ(secure->authority(), "example.org");
  const auto six = parse_url("http://[::1]:81/v1");
  ASSERT_TRUE(six.ok());
  EXPECT_EQ(six->host, "::1");
  EXPECT_EQ(six->path, "");
  EXPECT_EQ(six->authority(), "[::1]:81");
}

TEST(Url, WhatIsNone) {
  for (const char* text :
       {"", "localhost:8000", "ftp://host", "http://", "http://:80", "http://host:", "http://host:0",
        "http://host:65536", "http://host:8a", "http://user@host", "http://host?x=1", "http://host/#f", "http://[::1",
        "http://[::1]x", "http://ho st", "http://host\r\nX: y", "http://host/\"", "http://h\xc3\xb6st"}) {
    const auto url = parse_url(text);
    ASSERT_FALSE(url.ok()) << text;
    EXPECT_EQ(url.error().message.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace millrace::bench
