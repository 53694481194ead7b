# A room is a folder of src/ and a build target of the same name, millrace_<room>. Its dependencies are declared here and
# nowhere else, so the layering of docs/architecture.md shows in the build; tools/check_layers checks the includes.
#
#   millrace_room(kv SOURCES page_pool.cc DEPS core)

function(millrace_compile_options target)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion;-fno-math-errno;-ffp-contract=off>"
                                           "$<$<COMPILE_LANGUAGE:CUDA>:-O3>")
  if(MILLRACE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${MILLRACE_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${MILLRACE_SANITIZE})
  endif()
  if(MILLRACE_FUZZERS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)  # counts branches for libFuzzer
  endif()
endfunction()

# For rooms with coroutines, after millrace_room(): clang 14 stops at them with "Cannot represent a difference across
# sections" while its sanitizer checks the types of called functions.
function(millrace_coroutines name)
  if(MILLRACE_SANITIZE AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(millrace_${name} PRIVATE -fno-sanitize=function)
  endif()
endfunction()

function(millrace_room name)
  cmake_parse_arguments(ROOM "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  set(target millrace_${name})
  add_library(${target} STATIC ${ROOM_SOURCES})
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  foreach(dep IN LISTS ROOM_DEPS)
    target_link_libraries(${target} PUBLIC millrace_${dep})
  endforeach()
  target_link_libraries(${target} PUBLIC ${ROOM_LIBS})
  millrace_compile_options(${target})
endfunction()

# millrace_test(kv SOURCES page_pool_test.cc DEPS kv): one GoogleTest binary a room, named test_<room>. NEEDS_DATA is the
# GoogleTest filter of tests that read ../shared/data, which is not part of the project: a test of their own for ctest,
# <room>_data, which it reports as skipped where the data is absent.
function(millrace_test name)
  cmake_parse_arguments(TEST "" "NEEDS_DATA" "SOURCES;DEPS;LIBS" ${ARGN})
  set(target test_${name})
  set(seconds 600)
  if(MILLRACE_SANITIZE)
    set(seconds 1800)  # they take ten times as long
  endif()
  add_executable(${target} ${TEST_SOURCES})
  foreach(dep IN LISTS TEST_DEPS)
    target_link_libraries(${target} PRIVATE millrace_${dep})
  endforeach()
  target_link_libraries(${target} PRIVATE GTest::gtest GTest::gtest_main ${TEST_LIBS})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(${target} PRIVATE MILLRACE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  millrace_compile_options(${target})
  if(TEST_NEEDS_DATA)
    add_test(NAME ${name} COMMAND ${target} --gtest_filter=-${TEST_NEEDS_DATA})
    add_test(NAME ${name}_data COMMAND ${target} --gtest_filter=${TEST_NEEDS_DATA})
    set_tests_properties(${name}_data PROPERTIES WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} TIMEOUT ${seconds}
                                                 SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
  else()
    add_test(NAME ${name} COMMAND ${target})
  endif()
  set_tests_properties(${name} PROPERTIES WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} TIMEOUT ${seconds})
endfunction()
