// The reference backend: scalar, one thread, f32 sums in ascending order, no approximation of any function. It is slow
// and right: the oracle for every operation and format of every other backend.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace millrace {

std::unique_ptr<Backend> make_reference_backend();

}  // namespace millrace
