#include "trainer/agree.h"

#include <cstring>

namespace hanok {

std::string broadcast_text(const std::string& text, int root, Comm& control) {
  Tensor size = at::scalar_tensor(static_cast<int64_t>(text.size()), at::kLong);
  control.broadcast(size, root);
  Tensor bytes = at::zeros({size.item<int64_t>()}, at::kByte);
  if (bytes.numel() == 0) return "";
  if (control.rank() == root) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  control.broadcast(bytes, root);
  return std::string(static_cast<const char*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel()));
}

std::optional<Error> first_failure(const std::optional<Error>& own, Comm& control) {
  // Counted down, so that the largest number is the lowest rank.
  Tensor failed = at::scalar_tensor(int64_t{own ? control.size() - control.rank() : 0}, at::kLong);
  control.all_reduce(failed, Reduce::kMax);
  if (failed.item<int64_t>() == 0) return std::nullopt;
  const int root = control.size() - static_cast<int>(failed.item<int64_t>());
  Tensor kind = at::scalar_tensor(static_cast<int64_t>(own ? own->kind() : ErrorKind::kIo), at::kLong);
  control.broadcast(kind, root);
  const std::string message = broadcast_text(own ? own->what() : "", root, control);
  const std::string who = control.size() > 1 ? concat("rank ", root, ": ") : "";
  return Error(static_cast<ErrorKind>(kind.item<int64_t>()), who + message);
}

std::optional<Error> failure_of(Comm& control, const std::function<void()>& body) {
  std::optional<Error> own;
  try {
    body();
  } catch (const Error& error) {
    own = error;
  }
  return first_failure(own, control);
}

void run_together(Comm& control, const std::function<void()>& body) {
  if (const auto failure = failure_of(control, body)) throw *failure;
}

}  // namespace hanok
