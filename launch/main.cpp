#include <c10/util/Exception.h>
#include <fcntl.h>
#include <mpi.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <new>

#include "base/error.h"
#include "base/log.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/out_of_memory.h"
#include "trainer/data.h"

namespace {

const std::string kHostMemory =
    "host memory: got a refused allocation, expected room for it; this rank; lower rows_per_micro_batch, seq_len, "
    "data.prefetch_steps or data.pack_window, or take a smaller model";

// The libraries take up to a second to set themselves up before main() begins; glibc calls this before they do.
// MPI_Init leaves handlers that are there alone.
[[gnu::section(".preinit_array"), gnu::used]] void (*catch_signals_first)() = hanok::install_signal_handlers;

/// A standard stream that the caller closed would be the number of the next file, and lines for people would end in it.
void open_missing_streams() {
  for (int stream = 0; stream <= 2; ++stream)
    if (::fcntl(stream, F_GETFD) < 0 && ::open("/dev/null", stream == 0 ? O_RDONLY : O_WRONLY) < 0) _exit(1);
}

/// `head -1` has what it wanted.
bool reader_left() {
  pollfd output{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  return ::poll(&output, 1, 0) == 1 && (output.revents & (POLLERR | POLLHUP)) != 0;
}

/// errors: kIo if what was printed did not all arrive; a WARNING where it was not the answer that was asked for
void check_output(bool is_answer) {
  std::cout.flush();
  errno = 0;
  const bool is_flushed = std::fflush(stdout) == 0;
  const int cause = errno;  // of an earlier write it is forgotten
  if ((is_flushed && !std::ferror(stdout) && std::cout) || reader_left()) return;
  const hanok::Error fault(
      hanok::ErrorKind::kIo,
      hanok::concat("standard output: got '",
                    is_flushed ? "an error of a write" : std::generic_category().message(cause),
                    "', expected all that was printed to be taken; it is cut short; make room where it goes to, then "
                    "start again"));
  if (is_answer) throw fault;
  HANOK_LOG(WARNING) << fault.what();
}

int run(int argc, char** argv) {
  const hanok::Arguments arguments = hanok::parse_arguments(argc, argv);
  if (arguments.help || arguments.version) {
    hanok::let_signals_end_the_program();
    const int code = arguments.help ? hanok::print_help() : hanok::print_version();
    check_output(/*is_answer=*/true);
    return code;
  }
  const hanok::Command& command = hanok::command_of(arguments);
  if (!command.stops_in_order) hanok::let_signals_end_the_program();
  const int code = command.run(arguments);
  check_output(command.answers);
  return code;
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
  } catch (const hanok::Stopped&) {
    hanok::end_stopped(
        "what was packed so far is kept, and nothing else was written; the same command goes on from there");
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
