#include "trainer/objective.h"

#include "base/error.h"
#include "trainer/objectives/next_token.h"

namespace hanok {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Objective> (*make)();
};
constexpr Entry kObjectives[] = {
    {"next_token", [] { return std::unique_ptr<Objective>(std::make_unique<NextToken>()); }},
};

}  // namespace

std::unique_ptr<Objective> make_objective(const std::string& name) {
  for (const Entry& entry : kObjectives)
    if (name == entry.name) return entry.make();
  HANOK_FAIL(kConfig) << "objective: got " << name << ", expected one of " << known_objectives()
                      << "; key stages.N.objective";
}

std::vector<std::string> known_objectives() {
  std::vector<std::string> names;
  for (const Entry& entry : kObjectives) names.emplace_back(entry.name);
  return names;
}

}  // namespace hanok
