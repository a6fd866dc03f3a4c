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
  double pictures = -1;   // --pictures (plan)
  int64_t patches = 0;    // --patches (plan)
  bool json = false;      // --json (plan)
  int64_t suggest = 0;    // --suggest (plan): number of GPUs
};

/// argv -> Arguments; flags are gflags' (glog's own included), --set may be repeated.
/// errors: kConfig naming the unknown flag or command
Arguments parse_arguments(int argc, char** argv);

int train(const Arguments& arguments);
int pack(const Arguments& arguments);
int evaluate_command(const Arguments& arguments);
int export_command(const Arguments& arguments);
int plan(const Arguments& arguments);
int doctor(const Arguments& arguments);
int print_help();
int print_version();

struct Command {
  const char* name;
  int (*run)(const Arguments&);
  const char* help;
};
const std::vector<Command>& commands();

}  // namespace hanok
