// One group of ranks that talk to each other.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/tensor.h"

namespace hanok {

enum class Reduce { kSum, kMax, kMin };

/// all_to_all: rows (dim 0) sent to and received from each rank of the group.
struct Splits {
  std::vector<int64_t> send;
  std::vector<int64_t> receive;
};

/// All counts are elements, taken from the tensor; tensors are contiguous, with the same dtype and shape on every rank
/// (all_to_all: as Splits says). Order: an operation starts after earlier work on the current stream, and later work on
/// that stream sees its result. Every rank of the group calls the same operations in the same order. A group of size 1
/// returns at once. Float sums of the thread and MPI back-ends are added in rank order (bf16 and f16 in f32, rounded
/// once): bitwise repeatable, and equal in both. A sum of bool is "any". In place: the shard of all_gather and
/// reduce_scatter may be this rank's block of the larger tensor; otherwise inputs and outputs do not overlap. No
/// operation is recorded by autograd: see collectives.h. errors: kShape for arguments that do not fit, before anything
/// is sent;
///         kComm, message = operation, group name, sequence number, element count, dtype, back-end text;
///         kComm as well when a peer is gone or the wait exceeds the stall timeout.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;  // inside this group
  virtual int size() const = 0;
  virtual std::string_view name() const = 0;                      // "tp[4 5]"
  virtual void all_reduce(Tensor& x, Reduce op) = 0;              // a mean is a sum and a division the caller can see
  virtual void all_gather(Tensor& out, const Tensor& shard) = 0;  // out [size * n, ...]
  virtual void reduce_scatter(Tensor& shard, const Tensor& in) = 0;  // in [size * n, ...], sum
  virtual void all_to_all(Tensor& out, const Tensor& in, const Splits& splits) = 0;
  virtual void broadcast(Tensor& x, int root) = 0;
  virtual void send(const Tensor& x, int to) = 0;
  virtual void recv(Tensor& x, int from) = 0;
  /// send that returns at once: x travels when the peer takes it, and is not written to until then. Offers to one peer
  /// are taken in their order, and meet take() only. On GPUs the first offer or take of a group is collective over it.
  virtual void offer(const Tensor& x, int to) = 0;
  virtual void take(Tensor& x, int from) = 0;
  virtual void barrier() = 0;
};

}  // namespace hanok
