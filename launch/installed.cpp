#include "launch/installed.h"

#include <filesystem>
#include <vector>

#include "base/error.h"

namespace hanok {
namespace {

std::string configs_folder() {
  namespace fs = std::filesystem;
  std::error_code unknown;
  const fs::path program = fs::read_symlink("/proc/self/exe", unknown).parent_path();
  const std::vector<fs::path> places = {
      "configs", program / "../../configs", program / "../share/hanok/configs", program / "configs"};
  std::vector<std::string> tried;
  for (const fs::path& place : places) {
    if (fs::is_directory(place / "gpu", unknown)) return place.lexically_normal().string();
    tried.push_back(place.lexically_normal().string());
  }
  HANOK_FAIL(kIo) << "configs/gpu: got none of " << tried << ", expected one of them; run from the checkout";
}

}  // namespace

std::vector<GpuConfig> known_gpus() {
  return read_gpus(configs_folder() + "/gpu");
}

}  // namespace hanok
