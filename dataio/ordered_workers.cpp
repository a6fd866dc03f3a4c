#include "dataio/ordered_workers.h"

#include <ATen/Parallel.h>
#include <omp.h>

namespace hanok {

void compute_single_threaded() {
  // ATen sets a thread's OpenMP width the first time it asks for it, and at::set_num_threads would change all threads.
  at::internal::lazy_init_num_threads();
  omp_set_num_threads(1);
}

}  // namespace hanok
