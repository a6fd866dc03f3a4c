#include <c10/util/Exception.h>
#include <mpi.h>

#include <iostream>
#include <new>

#include "base/error.h"
#include "launch/bootstrap.h"
#include "launch/command.h"

namespace {

const std::string kHostMemory =
    "host memory: got a refused allocation, expected room for it; this rank; lower rows_per_micro_batch, seq_len, "
    "data.prefetch_steps or data.pack_window, or take a smaller model";

int run(int argc, char** argv) {
  const hanok::Arguments arguments = hanok::parse_arguments(argc, argv);
  if (arguments.help) return hanok::print_help();
  if (arguments.version) return hanok::print_version();
  for (const auto& command : hanok::commands())
    if (arguments.command == command.name) return command.run(arguments);
  return hanok::train(arguments);
}

}  // namespace

// The only place that catches. What a kind of error means for the exit code is base/error.cpp's table.
int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  try {
    const int code = run(argc, argv);
    MPI_Finalize();
    return code;
  } catch (const hanok::Error& error) {
    hanok::end_all_ranks(hanok::exit_code(error.kind()), error.what());
  } catch (const c10::OutOfMemoryError& error) {
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kDevice),
                         std::string("GPU memory: ") + error.what_without_backtrace() +
                             "; lower rows_per_micro_batch or seq_len, set recompute: full, or raise parallel.tp");
  } catch (const std::bad_alloc&) {
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kDevice), kHostMemory);
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    const bool is_host_memory = text.find("DefaultCPUAllocator") != std::string::npos;
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kDevice),
                         is_host_memory ? kHostMemory : "libtorch: " + text);
  } catch (const std::exception& error) {
    hanok::end_all_ranks(1, std::string("unexpected: ") + error.what());
  }
}
