// A rule across keys as a row of a table. Private to configs/.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/check.h"

namespace hanok {

template <class Subject>
struct Rule {
  const char* name;
  bool (*holds)(const Subject&);
  std::string (*message)(const Subject&);
};

template <class Subject, size_t N>
void check_table(const Rule<Subject> (&rules)[N],
                 const Subject& subject,
                 const std::string& where,
                 std::vector<Violation>& out) {
  for (const auto& rule : rules)
    if (!rule.holds(subject)) out.push_back({rule.name, where + rule.message(subject)});
}

template <class Subject, size_t N>
void append_names(const Rule<Subject> (&rules)[N], std::vector<std::string>& out) {
  for (const auto& rule : rules) out.emplace_back(rule.name);
}

std::vector<std::string> model_rule_names();

}  // namespace hanok
