// Files of tests/fixtures/text, and the hashes that stand for long expected texts.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace millrace::test {

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string fixture(const std::string& name) {
  return read_file(std::string(MILLRACE_SOURCE_DIR) + "/tests/fixtures/text/" + name);
}

inline Tokenizer fixture_tokenizer(const std::string& kind) {
  auto tokenizer = Tokenizer::from_json(fixture(kind + "/tokenizer.json"));
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return std::move(tokenizer).value();
}

/// FNV-1a, as in tools/conformance/text_fixtures.py.
inline std::uint32_t hash32(std::string_view bytes) {
  std::uint32_t hash = 0x811C9DC5U;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x01000193U;
  return hash;
}

inline std::uint64_t hash64(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
  return hash;
}

/// What strftime_now tells in the fixtures.
inline LocalTime fixture_time() {
  const auto now = nlohmann::json::parse(fixture("conversations.json"))["now"];
  LocalTime local;
  local.time.tm_year = now["year"].get<int>() - 1900;
  local.time.tm_mon = now["month"].get<int>() - 1;
  local.time.tm_mday = now["day"].get<int>();
  local.time.tm_hour = now["hour"].get<int>();
  local.time.tm_min = now["minute"].get<int>();
  local.time.tm_sec = now["second"].get<int>();
  local.time.tm_wday = now["weekday_from_sunday"].get<int>();
  local.time.tm_yday = now["day_of_year"].get<int>() - 1;
  local.microsecond = now["microsecond"].get<std::int32_t>();
  return local;
}

}  // namespace millrace::test
