// One command of the program.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace hanok {

struct Arguments {
  std::string command;            // "" is train
  std::string config;             // --config
  std::vector<std::string> sets;  // --set, in order
  std::string resume = "auto";    // --resume
  std::string output;             // --output (export)
  std::string checkpoint;         // --checkpoint (evaluate, export)
  bool help = false, version = false;
  std::string gpu, mesh;  // --gpu, --mesh (plan)
  double pictures = -1;   // --pictures (plan); -1: not given
  int64_t patches = 0;    // --patches (plan); 0: not given
  bool json = false;      // --json (plan)
  int64_t suggest = 0;    // --suggest (plan): number of GPUs
};

/// argv -> Arguments; --set may be repeated. Only the flags of the command's line in commands() are taken: none of
/// gflags' or glog's own. errors: kConfig naming the flag or command that is not known, and those that are
Arguments parse_arguments(int argc, char** argv);

int train(const Arguments& arguments);
int pack(const Arguments& arguments);
int evaluate_command(const Arguments& arguments);
int export_command(const Arguments& arguments);
int plan(const Arguments& arguments);
int doctor(const Arguments& arguments);
int print_help();
int print_version();

/// errors: kConfig if `out` is where the file of --config lies: the resolved config would take its name
void require_config_apart(const Arguments& arguments, const RunConfig& config);

struct Command {
  const char* name;
  int (*run)(const Arguments&);
  const char* help;
  std::vector<std::string> flags;  // beside --config, --set, --help and --version
  bool stops_in_order = false;     // asks for Bootstrap::stop_requested(); else a signal ends it
  bool answers = false;            // on standard output: a disk that is full there is an error
};
const std::vector<Command>& commands();
/// The one that is named, or train. errors: kConfig
const Command& command_of(const Arguments& arguments);

}  // namespace hanok
