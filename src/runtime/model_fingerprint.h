// What tells a model's files from another's, for what was measured of them.
#pragma once

#include <string>

#include "model/checkpoint/checkpoint.h"

namespace millrace {

/// 16 hexadecimal digits: a hash of the config and of each tensor's name, shape, format and first bytes. Reads a page
/// of a tensor at most. Without tensors (--dummy) of the config alone. It tells models apart that somebody mixed up,
/// not such as somebody made to look alike.
std::string model_fingerprint(const Checkpoint& checkpoint);

}  // namespace millrace
