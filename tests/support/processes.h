// What test programs over several processes share.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <algorithm>
#include <iostream>

#include "base/error.h"

namespace hanok {

/// Of this process, by its number among those of its machine. Where there are fewer, several processes share one, which
/// NCCL allows to those of hosts that differ by NCCL_HOSTID.
inline at::Device own_gpu() {
  MPI_Comm node;
  int rank = 0;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_free(&node);
  const int gpus = std::max<int>(1, at::detail::getCUDAHooks().deviceCount());
  return {at::kCUDA, static_cast<at::DeviceIndex>(rank % gpus)};
}

/// On ranks other than 0: only what failed.
class FailurePrinter : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) std::cerr << concat("rank ", rank_, ": ", result.summary(), "\n");
  }

 private:
  int rank_;
};

inline void print_as_one_of_several(int rank) {
  if (rank == 0) return;
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new FailurePrinter(rank));
}

}  // namespace hanok
