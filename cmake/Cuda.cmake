# Whether the CUDA backend is built: MILLRACE_HAVE_CUDA. Looked for, in this order: MILLRACE_CUDA_ROOT, CUDACXX, a toolkit
# that tools/bootstrap --cuda has put into build/cuda, the PATH, /usr/local/cuda. Builds with sanitizers have none: those
# cannot look into a driver.
set(MILLRACE_CUDA auto CACHE STRING "Build the CUDA backend: auto, on, off")
set(MILLRACE_CUDA_ROOT "" CACHE PATH "Folder of a CUDA toolkit, with bin/nvcc")
# 90a is 9.0 with its own matrix instructions; other devices from 9.0 on get what is made for 8.9.
set(MILLRACE_CUDA_ARCHS "75;80;86;89;90a" CACHE STRING "Compute capabilities to build for")

set(MILLRACE_NVCC_NEEDED 12.0)  # the oldest that knows C++20

# Sets `nvcc`, or `why_not` it is skipped. Nothing of it is kept in the cache: a toolkit that appears, moves or goes away
# is noticed by the next configuration.
function(millrace_find_nvcc)
  if(MILLRACE_CUDA_ROOT)
    find_program(nvcc nvcc PATHS ${MILLRACE_CUDA_ROOT}/bin NO_DEFAULT_PATH NO_CACHE)
    set(missing "no nvcc in ${MILLRACE_CUDA_ROOT}/bin (MILLRACE_CUDA_ROOT)")
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    find_program(nvcc NAMES $ENV{CUDACXX} NO_CACHE)
    set(missing "no $ENV{CUDACXX} (CUDACXX)")
  else()
    find_program(nvcc nvcc HINTS ${CMAKE_SOURCE_DIR}/build/cuda/bin PATHS /usr/local/cuda/bin NO_CACHE)
    set(missing "no nvcc found (tools/bootstrap --cuda takes one from PyPI)")
  endif()
  if(NOT nvcc)
    set(why_not ${missing} PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE said ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" release "${said}")
  if(NOT CMAKE_MATCH_1 OR CMAKE_MATCH_1 VERSION_LESS MILLRACE_NVCC_NEEDED)
    set(why_not "${nvcc} is not version ${MILLRACE_NVCC_NEEDED} or later (tools/bootstrap --cuda takes one from PyPI)"
        PARENT_SCOPE)
    return()
  endif()
  set(nvcc ${nvcc} PARENT_SCOPE)
  # CMake keeps what it learnt of a compiler in the build folder, and would go on with one that is no longer meant.
  if(NOT "${nvcc} ${CMAKE_MATCH_1}" STREQUAL "${MILLRACE_NVCC_BEFORE}")
    file(REMOVE ${CMAKE_PLATFORM_INFO_DIR}/CMakeCUDACompiler.cmake)
    set(MILLRACE_NVCC_BEFORE "${nvcc} ${CMAKE_MATCH_1}" CACHE INTERNAL "The nvcc of the last configuration")
  endif()
endfunction()

set(MILLRACE_HAVE_CUDA OFF)
if(MILLRACE_CUDA STREQUAL "off")
  message(STATUS "CUDA backend: off, as MILLRACE_CUDA says")
elseif(MILLRACE_SANITIZE OR MILLRACE_FUZZERS)
  message(STATUS "CUDA backend: off in builds with sanitizers")
else()
  unset(why_not)
  millrace_find_nvcc()
  if(NOT why_not)
    set(CMAKE_CUDA_COMPILER ${nvcc})
    set(CMAKE_CUDA_ARCHITECTURES ${MILLRACE_CUDA_ARCHS})
    enable_language(CUDA)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # CMake 3.25 does not know it of nvcc 13
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    set(MILLRACE_HAVE_CUDA ON)
    message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${MILLRACE_CUDA_ARCHS}")
  elseif(MILLRACE_CUDA STREQUAL "on")
    message(FATAL_ERROR "MILLRACE_CUDA is on: ${why_not}")
  else()
    message(STATUS "CUDA backend: skipped, ${why_not}")
  endif()
endif()
