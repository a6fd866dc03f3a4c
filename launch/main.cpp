#include <c10/util/Exception.h>
#include <fcntl.h>
#include <mpi.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <new>

#include "base/error.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/out_of_memory.h"

namespace {

const std::string kHostMemory =
    "host memory: got a refused allocation, expected room for it; this rank; lower rows_per_micro_batch, seq_len, "
    "data.prefetch_steps or data.pack_window, or take a smaller model";

/// A standard stream that the caller closed would be the number of the next file, and lines for people would end in it.
void open_missing_streams() {
  for (int stream = 0; stream <= 2; ++stream)
    if (::fcntl(stream, F_GETFD) < 0 && ::open("/dev/null", stream == 0 ? O_RDONLY : O_WRONLY) < 0) _exit(1);
}

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
  open_missing_streams();
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  try {
    const int code = run(argc, argv);
    MPI_Finalize();
    return code;
  } catch (const hanok::Error& error) {
    hanok::end_all_ranks(hanok::exit_code(error.kind()), error.what());
  } catch (const c10::OutOfMemoryError&) {
    hanok::end_all_ranks(
        hanok::exit_code(hanok::ErrorKind::kDevice),
        hanok::out_of_memory_text(
            hanok::last_refused_allocation(), {}, hanok::concat("rank ", hanok::world_rank()), {"--set eval.rows=1"}));
  } catch (const std::bad_alloc&) {
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kDevice), kHostMemory);
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    const bool is_host_memory = text.find("DefaultCPUAllocator") != std::string::npos;
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kDevice),
                         is_host_memory ? kHostMemory : "libtorch: " + text);
  } catch (const std::filesystem::filesystem_error& error) {
    hanok::end_all_ranks(hanok::exit_code(hanok::ErrorKind::kIo),
                         "path: got \"" + error.code().message() + "\", expected one that can be used; " +
                             error.path1().string() + "; correct the path in the config");
  } catch (const std::exception& error) {
    hanok::end_all_ranks(1, std::string("unexpected: ") + error.what());
  }
}
