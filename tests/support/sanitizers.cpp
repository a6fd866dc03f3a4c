// What the sanitizers need to know in every program of a tree configured with -DHANOK_SANITIZE=...: part of each
// program, so that ranks under mpirun and probes of oracle scripts have it without an environment.
// Suppressed is only what third parties do; each line says why.
#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
extern "C" const char* __asan_default_options() {
  // Torch and Open MPI unload and interpose: no finding of ours is lost with these two.
  return "detect_odr_violation=0:detect_stack_use_after_return=1:malloc_context_size=20";
}
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libopen-pal\n"  // Open MPI keeps its parameter tables to the end of the process
         "leak:libopen-rte\n"  // the same
         "leak:libmpi.so\n"    // the same
         "leak:libpmix\n"      // Open MPI's process manager, the same
         "leak:mca_\n"         // its plug-ins, the same
         "leak:libevent\n"     // its event loop, the same
         "leak:libhwloc\n"     // its picture of the machine, the same
         "leak:vasprintf\n"  // its messages; who called cannot be told without frame pointers, and nothing of ours does
         "leak:libtorch_cpu\n";  // registries of operators live to the end of the process
}
/// Instead of the C library's: Open MPI unloads its plug-ins, and what they have leaked would then have no name.
extern "C" int dlclose(void*) {
  return 0;
}
#endif

#ifdef __SANITIZE_THREAD__
extern "C" const char* __tsan_default_options() {
  return "ignore_noninstrumented_modules=1:history_size=4:second_deadlock_stack=1";
}
extern "C" const char* __tsan_default_suppressions() {
  // How OpenMP's threads wait for each other cannot be seen; what they share inside one parallel loop is then not
  // checked.
  return "race:gomp_thread_start\nrace:libgomp\n";
}
#endif

#ifdef HANOK_FUZZ
// One counter for each branch that instrumented code has taken: what tests/fuzz is guided by.
extern "C" {
uint8_t hanok_branches[1 << 16];
void __sanitizer_cov_trace_pc() {
  auto pc = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  pc ^= pc >> 16;
  ++hanok_branches[(pc * 0x9E3779B1u >> 8) & 0xffff];
}
}
#endif
