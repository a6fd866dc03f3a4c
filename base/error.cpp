#include "base/error.h"

namespace hanok {

namespace {
struct Row {
  ErrorKind kind;
  std::string_view name;
  int exit_code;
};
// 2..7: fix the input before trying again. 75, 76: a restart may help (cluster/run.sh requeues on these).
constexpr Row kRows[] = {
    {ErrorKind::kConfig, "config", 2}, {ErrorKind::kData, "data", 3},       {ErrorKind::kShape, "shape", 4},
    {ErrorKind::kCheckpoint, "checkpoint", 5}, {ErrorKind::kIo, "io", 6},   {ErrorKind::kNumeric, "numeric", 7},
    {ErrorKind::kComm, "comm", 75},    {ErrorKind::kDevice, "device", 76},
};
const Row& row(ErrorKind kind) { return kRows[static_cast<int>(kind)]; }
}  // namespace

int exit_code(ErrorKind kind) { return row(kind).exit_code; }
std::string_view name(ErrorKind kind) { return row(kind).name; }

}  // namespace hanok
