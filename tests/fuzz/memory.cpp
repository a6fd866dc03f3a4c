// Under AddressSanitizer through its hooks, otherwise by functions that stand in front of glibc's. Fuzzing is done by
// one thread: the counters of other threads stay at zero.
#include "tests/fuzz/memory.h"

#include <malloc.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
// GCC installs no sanitizer/allocator_interface.h.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));
extern "C" size_t __sanitizer_get_allocated_size(const volatile void*);
#endif

namespace hanok::fuzz {
namespace {

// Plain integers: they are used before any constructor has run.
thread_local int64_t held = 0, peak = 0;

void add(size_t bytes) {
  held += static_cast<int64_t>(bytes);
  peak = std::max(peak, held);
  if (held > static_cast<int64_t>(kMaxHeldBytes)) std::abort();  // the runner's handler writes the input
}

}  // namespace

void reset_peak() {
  held = peak = 0;
}
size_t peak_bytes() {
  return static_cast<size_t>(peak);
}

#ifdef __SANITIZE_ADDRESS__

void count_allocations() {
  __sanitizer_install_malloc_and_free_hooks([](const volatile void*, size_t size) { add(size); },
                                            [](const volatile void* p) {
                                              if (p) held -= static_cast<int64_t>(__sanitizer_get_allocated_size(p));
                                            });
}

#else

void count_allocations() {}

namespace {
void* counted(void* p) {
  if (p) add(malloc_usable_size(p));
  return p;
}
}  // namespace

#endif

}  // namespace hanok::fuzz

#ifndef __SANITIZE_ADDRESS__
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

void* malloc(size_t size) {
  return hanok::fuzz::counted(__libc_malloc(size));
}
void* calloc(size_t count, size_t size) {
  return hanok::fuzz::counted(__libc_calloc(count, size));
}
void* realloc(void* p, size_t size) {
  if (p) hanok::fuzz::held -= static_cast<int64_t>(malloc_usable_size(p));
  void* q = __libc_realloc(p, size);
  if (!q && p && size > 0) hanok::fuzz::held += static_cast<int64_t>(malloc_usable_size(p));
  return hanok::fuzz::counted(q);
}
void* memalign(size_t alignment, size_t size) {
  return hanok::fuzz::counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(size_t alignment, size_t size) {
  return memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  void* p = memalign(alignment, size);
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}
void free(void* p) {
  if (p) hanok::fuzz::held -= static_cast<int64_t>(malloc_usable_size(p));
  __libc_free(p);
}
}
#endif
