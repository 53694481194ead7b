// An embedding as JSON.
#pragma once

#include <span>
#include <string>

namespace millrace {

/// Appends `embedding` as a list of numbers, or in base64 as a string: 32-bit floats, least byte first. `normalize`:
/// scaled to length 1, as OpenAI's are; a null vector stays.
void append_embedding(std::string& out, std::span<const float> embedding, bool normalize, bool base64);

}  // namespace millrace
