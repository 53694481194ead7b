// Identifiers that nobody can guess or meets twice.
#pragma once

#include <cstddef>
#include <string>

namespace millrace {

/// `count` random letters and digits. Any thread.
std::string random_letters(std::size_t count);

}  // namespace millrace
