#include "parallel/progress_board.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace hanok {
namespace {

size_t bytes_of(size_t ranks) {
  return ranks * ProgressBoard::kLines * sizeof(std::atomic<int64_t>);
}

}  // namespace

ProgressBoard::ProgressBoard(const std::string& path, const std::vector<int>& world_ranks, int index)
    : world_ranks_(world_ranks) {
  static_assert(std::atomic<int64_t>::is_always_lock_free);
  const int file = ::open(path.c_str(), index == 0 ? O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC : O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) return;
  const size_t size = bytes_of(world_ranks.size());
  // A file of zeros. The space is taken now: a page that a full disk cannot give would end the process later.
  const bool has_room = index != 0 || ::posix_fallocate(file, 0, static_cast<off_t>(size)) == 0;
  void* const memory = has_room ? ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  ::close(file);
  if (!has_room) ::unlink(path.c_str());
  if (memory != MAP_FAILED) cells_ = static_cast<std::atomic<int64_t>*>(memory);
}

ProgressBoard::~ProgressBoard() {
  if (cells_ != nullptr) ::munmap(cells_, bytes_of(world_ranks_.size()));
}

std::atomic<int64_t>* ProgressBoard::cell(int world_rank, int line) const {
  const auto found = std::find(world_ranks_.begin(), world_ranks_.end(), world_rank);
  if (cells_ == nullptr || found == world_ranks_.end() || line >= kLines) return nullptr;
  return cells_ + (found - world_ranks_.begin()) * kLines + line;
}

ProgressLine::ProgressLine(std::shared_ptr<const ProgressBoard> board, int line, std::vector<int> ranks, int own_rank)
    : board_(std::move(board)), line_(line), ranks_(std::move(ranks)), own_rank_(own_rank) {}

void ProgressLine::advance(int64_t sequence) const {
  if (std::atomic<int64_t>* const own = board_->cell(own_rank_, line_)) own->store(sequence, std::memory_order_relaxed);
}

std::vector<int> ProgressLine::awaited(int64_t sequence) const {
  std::vector<int> others, late;
  for (const int rank : ranks_) {
    if (rank == own_rank_) continue;
    others.push_back(rank);
    const std::atomic<int64_t>* const cell = board_->cell(rank, line_);
    if (cell == nullptr || cell->load(std::memory_order_relaxed) < sequence) late.push_back(rank);
  }
  return late.empty() ? others : late;
}

}  // namespace hanok
