# SPDX-License-Identifier: Apache-2.0
# Target helpers: every folder of src/ is one library, every folder of tests/ one test binary.

add_library(quatrain_flags INTERFACE)
target_include_directories(quatrain_flags INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/src
                                                    ${CMAKE_CURRENT_SOURCE_DIR}/include)
# No contraction: the same bits whatever instruction set a file is compiled for.
target_compile_options(quatrain_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Wshadow
    -ffp-contract=off -fno-math-errno>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
if(QUATRAIN_SANITIZE)
  target_compile_options(quatrain_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${QUATRAIN_SANITIZE} -fno-omit-frame-pointer
      -fno-sanitize-recover=all>)
  target_link_options(quatrain_flags INTERFACE -fsanitize=${QUATRAIN_SANITIZE})
  target_compile_definitions(quatrain_flags INTERFACE QUATRAIN_SANITIZED=1)
endif()

# quatrain_library(NAME SOURCES a.cpp… DEPENDS lib…)
function(quatrain_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC quatrain_flags ${ARG_DEPENDS})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()

# quatrain_test(NAME SOURCES a_test.cpp… DEPENDS lib…): a GoogleTest binary run by ctest.
function(quatrain_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE quatrain_flags quatrain_alloc_guard ${ARG_DEPENDS}
                                        GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE QUATRAIN_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
endfunction()

# quatrain_fuzzer(NAME SOURCES x_fuzz.cpp DEPENDS lib…)
function(quatrain_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE quatrain_flags ${ARG_DEPENDS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
