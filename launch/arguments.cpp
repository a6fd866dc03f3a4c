#include <gflags/gflags.h>

#include <algorithm>
#include <iostream>
#include <set>

#include "base/error.h"
#include "configs/schema/read.h"
#include "launch/bootstrap.h"
#include "launch/command.h"

DEFINE_string(config, "", "YAML file of the run");
DEFINE_string(set, "", "KEY=VALUE, replaces one key of the config; may be repeated");
DEFINE_string(resume, "auto", "auto: go on from the newest checkpoint; never; or the folder of a checkpoint");
DEFINE_string(checkpoint, "", "evaluate, export: folder of a checkpoint instead of the newest one");
DEFINE_string(output, "", "export: folder to write");
DEFINE_string(mesh, "", "plan: layout to plan for, for example tp2,dp4");
DEFINE_string(gpu, "", "plan: GPU to fit, a name of configs/gpu (h200), or all");
DEFINE_double(pictures,
              -1,
              "plan: share of the tokens that come from pictures; not given: half where there is a tower");
DEFINE_int32(patches, 0, "plan: patches of a picture; not given: 1,024, or what data.max_pixels allows");
DEFINE_int32(suggest, 0, "plan: choose the layout for so many GPUs of the kind that --gpu names");
DEFINE_bool(json, false, "plan: JSON for programs instead of text");

namespace hanok {
namespace {

/// "; did you mean WORD?", or nothing.
std::string guess(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest(word, known);
  return near.empty() ? "" : concat("; did you mean ", near, "?");
}

/// "--config", ... of a command, or of all of them.
std::vector<std::string> flags_of(const std::vector<Command>& some) {
  std::vector<std::string> out = {"--config", "--set"};
  for (const Command& command : some)
    for (const std::string& flag : command.flags)
      if (std::find(out.begin(), out.end(), "--" + flag) == out.end()) out.push_back("--" + flag);
  out.insert(out.end(), {"--help", "--version"});
  return out;
}

bool is_boolean(const std::string& name) {
  gflags::CommandLineFlagInfo info;
  return gflags::GetCommandLineFlagInfo(name.c_str(), &info) && info.type == "bool";
}

/// errors: kConfig if a flag was given that the command has no use for
void require_known(const std::set<std::string>& given, const Command& command) {
  const std::vector<std::string> known = flags_of({command});
  for (const std::string& name : given)
    HANOK_REQUIRE(std::find(known.begin(), known.end(), "--" + name) != known.end(), kConfig)
        << "arguments: got --" << name << " for the command " << command.name << ", expected one of " << known
        << "; leave it out, or see trainer --help";
}

/// errors: kConfig
void require_numbers(const std::set<std::string>& given) {
  HANOK_REQUIRE(!given.contains("suggest") || (FLAGS_suggest >= 1 && FLAGS_suggest <= 1 << 16), kConfig)
      << "--suggest: got " << FLAGS_suggest << ", expected a number of GPUs from 1 to 65536; see trainer --help";
  HANOK_REQUIRE(!given.contains("pictures") || (FLAGS_pictures >= 0 && FLAGS_pictures <= 1), kConfig)
      << "--pictures: got " << FLAGS_pictures
      << ", expected the share of tokens that come from pictures, 0 to 1; see trainer --help";
  HANOK_REQUIRE(!given.contains("patches") || FLAGS_patches >= 1, kConfig)
      << "--patches: got " << FLAGS_patches << ", expected the patches of a picture, at least 1; see trainer --help";
}

}  // namespace

const std::vector<Command>& commands() {
  constexpr bool kStopsInOrder = true, kAnswers = true;
  static const std::vector<Command> table = {
      {"train", train, "run the stages of a config (the default command)", {"resume"}, kStopsInOrder, !kAnswers},
      {"pack", pack, "turn the datasets of a config into packed HDF5 files", {}, kStopsInOrder, !kAnswers},
      {"evaluate",
       evaluate_command,
       "measure the held-out set: loss, accuracy, per-sample dump, submission",
       {"checkpoint"},
       kStopsInOrder,
       kAnswers},
      {"export",
       export_command,
       "write a Hugging Face folder from a checkpoint",
       {"checkpoint", "output"},
       !kStopsInOrder,
       !kAnswers},
      {"plan",
       plan,
       "print parameters, cuts, memory, FLOPs and time for any layout and GPU; needs no data",
       {"mesh", "gpu", "suggest", "pictures", "patches", "json"},
       !kStopsInOrder,
       kAnswers},
      {"doctor",
       doctor,
       "print versions and devices, and the first thing that would fail",
       {},
       !kStopsInOrder,
       kAnswers},
  };
  return table;
}

const Command& command_of(const Arguments& arguments) {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (arguments.command == command.name || arguments.command.empty()) return command;  // the first is the default
    names.emplace_back(command.name);
  }
  HANOK_FAIL(kConfig) << "command: got " << arguments.command << ", expected one of " << names
                      << guess(arguments.command, names) << "; see trainer --help";
}

// gflags' own parser exits on an unknown flag and keeps only the last --set; its registry is used for the types of our
// flags alone, its parser is not.
Arguments parse_arguments(int argc, char** argv) {
  Arguments out;
  std::set<std::string> given;
  const std::vector<std::string> known_flags = flags_of(commands());
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--help" || word == "-h" || word == "help") {
      out.help = true;
    } else if (word == "--version") {
      out.version = true;
    } else if (word.rfind("-", 0) != 0) {
      HANOK_REQUIRE(out.command.empty(), kConfig)
          << "arguments: got a second command " << word << ", expected flags; see trainer --help";
      out.command = word;
    } else {
      const size_t dashes = word.rfind("--", 0) == 0 ? 2 : 1;
      const size_t equals = word.find('=');
      const std::string name = word.substr(dashes, equals == std::string::npos ? equals : equals - dashes);
      const bool is_known = std::find(known_flags.begin(), known_flags.end(), "--" + name) != known_flags.end();
      HANOK_REQUIRE(is_known && name != "help" && name != "version", kConfig)
          << "arguments: got unknown flag " << word << ", expected one of " << known_flags
          << guess("--" + name, known_flags) << "; see trainer --help";
      std::string value = "true";
      if (equals != std::string::npos) {
        value = word.substr(equals + 1);
      } else if (!is_boolean(name)) {
        HANOK_REQUIRE(i + 1 < argc, kConfig)
            << "arguments: got " << word << " without a value, expected " << word << " VALUE; see trainer --help";
        value = argv[++i];
      }
      given.insert(name);
      if (name == "set") {
        out.sets.push_back(value);
      } else {
        HANOK_REQUIRE(!gflags::SetCommandLineOption(name.c_str(), value.c_str()).empty(), kConfig)
            << "arguments: got --" << name << " " << value << ", expected a value of type "
            << gflags::GetCommandLineFlagInfoOrDie(name.c_str()).type << "; see trainer --help";
      }
    }
  }
  if (out.help || out.version) return out;
  require_known(given, command_of(out));
  require_numbers(given);
  out.config = FLAGS_config;
  HANOK_REQUIRE(!FLAGS_resume.empty(), kConfig)
      << "--resume: got nothing, expected auto, never, or the folder of a checkpoint or run; see trainer --help";
  out.resume = FLAGS_resume;
  out.checkpoint = FLAGS_checkpoint;
  out.output = FLAGS_output;
  out.mesh = FLAGS_mesh;
  out.gpu = FLAGS_gpu;
  out.pictures = FLAGS_pictures;
  out.patches = FLAGS_patches;
  out.json = FLAGS_json;
  out.suggest = FLAGS_suggest;
  return out;
}

int print_help() {
  if (world_rank() != 0) return 0;
  std::cout << "trainer trains vision-language models on any number of ranks.\n\n"
               "usage: mpirun -np N trainer [COMMAND] --config FILE [--set KEY=VALUE]...\n\ncommands\n";
  for (const auto& command : commands())
    std::cout << "  " << command.name << std::string(10 - std::string(command.name).size(), ' ') << command.help
              << "\n";
  std::cout
      << "\nflags\n"
         "  --config FILE      the run (configs/run/*.yaml); every key: configs/keys.md\n"
         "  --set KEY=VALUE    replace one key, repeatable: --set optimizer.lr=1e-4 --set stages.s0.steps=10\n"
         "  --resume HOW       auto (default): go on from the newest checkpoint; never; or a checkpoint's folder\n"
         "  --checkpoint DIR   evaluate, export: this checkpoint instead of the newest\n"
         "  --output DIR       export: where to write\n"
         "  --mesh tp2,dp4     plan: the layout   --gpu h200|all: the GPU to fit   --json: for programs\n"
         "  --suggest 64       plan: which layout it would choose for so many GPUs, and why\n"
         "  --pictures 0.5     plan: share of the tokens from pictures, of --patches 1024 each\n"
         "  --version, --help\n\n"
         "exit codes: 0 done or stopped by a signal after saving; 2 config, 3 data, 4 shape, 5 checkpoint, 6 file "
         "system,\n"
         "7 numeric: mend the cause first; 75 another rank or the network, 76 device: a restart may help\n";
  return 0;
}

}  // namespace hanok
