// Any bytes as a line of a batch file, and as a line of the output that an earlier run left.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/api_json.h"
#include "server/batch_line.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const BatchLine read = read_batch_line(line);
  require(read.problem || Json::accept(read.body));
  const BatchKey key{.number = size, .hash = batch_line_hash(line)};
  const std::string record =
      batch_record(key, read.custom_id, 200, read.problem ? read.problem->json() : "{}", read.problem);
  // A record is one line of JSON, and a run that goes on knows it again.
  require(record.find('\n') + 1 == record.size() && Json::accept(record));
  const auto again = read_batch_record(record);
  require(again && again->number == key.number && again->hash == key.hash);
  for (std::size_t cut = 0; cut < record.size(); ++cut) require(may_be_batch_record(record.substr(0, cut)));
  (void)batch_record_custom_id(record);
  // What others wrote.
  if (read_batch_record(line)) (void)batch_record_custom_id(line);
  (void)may_be_batch_record(line);
  return 0;
}
