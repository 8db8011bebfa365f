# Run by the test package.consumer. Only the component `sdk` is installed: what it needs is built
# with the client, so this builds nothing of the tree again.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN} ended with ${result}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${WORK_DIR}/prefix --component sdk
  --config ${CONFIG})
# A public header may include only the standard library and Abseil.
file(GLOB headers ${WORK_DIR}/prefix/include/sketchkv/*.h)
foreach(header IN LISTS headers)
  file(STRINGS ${header} foreign REGEX "^#include \"[^\"]*\"")
  list(FILTER foreign EXCLUDE REGEX "\"(absl|sketchkv)/")
  if(foreign)
    message(FATAL_ERROR "${header} has ${foreign}")
  endif()
endforeach()
run(${CMAKE_COMMAND} -S ${CONSUMER_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
  -D CMAKE_PREFIX_PATH=${WORK_DIR}/prefix -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
  -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_CXX_FLAGS=${CXX_FLAGS})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer)
