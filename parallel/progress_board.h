// Where the ranks of one host are, in memory that they share: so that one that waits in vain can say for whom.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace hanok {

/// One table for the ranks of a host: the number of the newest collective that each has called, by communicator.
class ProgressBoard {
 public:
  static constexpr int kLines = 8192;  // communicators; more have no line

  /// `path`: of a file that all ranks of the host name alike. The first rank makes it; the others open it afterwards.
  /// `world_ranks`: of this host; `index`: this rank among them. A board that cannot be made shows nothing.
  ProgressBoard(const std::string& path, const std::vector<int>& world_ranks, int index);
  ~ProgressBoard();
  ProgressBoard(const ProgressBoard&) = delete;
  ProgressBoard& operator=(const ProgressBoard&) = delete;

  /// Null: it cannot be known.
  std::atomic<int64_t>* cell(int world_rank, int line) const;

 private:
  std::vector<int> world_ranks_;
  std::atomic<int64_t>* cells_ = nullptr;  // [ranks of this host, kLines]
};

/// The line of one communicator.
class ProgressLine {
 public:
  ProgressLine(std::shared_ptr<const ProgressBoard> board, int line, std::vector<int> ranks, int own_rank);
  /// This rank has called its collective of this number.
  void advance(int64_t sequence) const;
  /// World ranks that have not come to that collective, as far as is known here. All others, if all have: what they
  /// came for did not end.
  std::vector<int> awaited(int64_t sequence) const;

 private:
  std::shared_ptr<const ProgressBoard> board_;
  int line_;
  std::vector<int> ranks_;
  int own_rank_;  // of the world
};

}  // namespace hanok
