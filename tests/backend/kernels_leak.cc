// What isa_symbols.cmake must find: an inline function with external linkage in a file of kernels.
namespace millrace {

inline int leaked(int value) {
  return 3 * value;
}

int (*volatile leak)(int) = leaked;

}  // namespace millrace
