// Driven by tests/oracle/safetensors_files.py.
//   copy IN OUT        every tensor of the file IN into the file OUT, in reverse order of name
//   folder IN OUT      every tensor of the model folder IN into the file OUT
//   check              reads paths from stdin; prints "ok" or "error <message>" for each
#include <algorithm>
#include <iostream>
#include <map>
#include <string>

#include "base/error.h"
#include "dataio/safetensors.h"

namespace {

using hanok::SafetensorsFile;
using hanok::TensorPlan;
using hanok::WeightFolder;

void copy_file(const std::string& in, const std::string& out) {
  const SafetensorsFile file(in);
  std::vector<TensorPlan> plans;
  for (const auto& [name, entry] : file.header().tensors) plans.push_back({name, entry.dtype, entry.shape});
  std::reverse(plans.begin(), plans.end());
  hanok::write_safetensors(
      out, plans, file.header().metadata, [&](const std::string& name) { return file.view(name); });
}

void copy_folder(const std::string& in, const std::string& out) {
  const WeightFolder folder(in);
  std::vector<TensorPlan> plans;
  for (const std::string& name : folder.names())
    plans.push_back({name, folder.entry(name).dtype, folder.entry(name).shape});
  std::string last;
  hanok::write_safetensors(out, plans, {{"format", "pt"}}, [&](const std::string& name) {
    if (!last.empty()) folder.forget(last);
    last = name;
    return folder.view(name);
  });
}

void check_paths() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, entry] : file.header().tensors)
        file.view(name).to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
      std::cout << "ok\n";
    } catch (const hanok::Error& error) {
      std::string message = error.what();
      std::replace(message.begin(), message.end(), '\n', ' ');
      std::cout << "error " << hanok::name(error.kind()) << ": " << message << '\n';
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  try {
    if (verb == "copy" && argc == 4) {
      copy_file(argv[2], argv[3]);
    } else if (verb == "folder" && argc == 4) {
      copy_folder(argv[2], argv[3]);
    } else if (verb == "check") {
      check_paths();
    } else {
      std::cerr << "usage: safetensors_probe copy IN OUT | folder IN OUT | check < PATHS\n";
      return 2;
    }
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << '\n';
    return hanok::exit_code(error.kind());
  }
}
