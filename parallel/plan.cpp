#include "parallel/plan.h"

#include "base/error.h"

namespace hanok {

PlanRule whole(std::string glob) {
  return {std::move(glob), Cut::kWhole, Layout::kSequence, Layout::kSequence};
}
PlanRule colwise(std::string glob) {
  return {std::move(glob), Cut::kColumn, Layout::kSequence, Layout::kHeads};
}
PlanRule rowwise(std::string glob) {
  return {std::move(glob), Cut::kRow, Layout::kHeads, Layout::kSequence};
}
PlanRule vocab(std::string glob) {
  return {std::move(glob), Cut::kVocab, Layout::kSequence, Layout::kFull};
}
PlanRule expert(std::string glob) {
  return {std::move(glob), Cut::kExpert, Layout::kSequence, Layout::kSequence};
}

bool glob_match(std::string_view glob, std::string_view text) {
  // reached[j]: the part of the glob read so far can match the first j characters. Linear in glob * text, whatever the
  // stars.
  std::vector<bool> reached(text.size() + 1, false);
  reached[0] = true;
  for (size_t i = 0; i < glob.size(); ++i) {
    std::vector<bool> next(text.size() + 1, false);
    const bool star = glob[i] == '*';
    const bool across = star && i + 1 < glob.size() && glob[i + 1] == '*';
    for (size_t j = 0; j <= text.size(); ++j) {
      if (star) {
        next[j] = reached[j] || (j > 0 && next[j - 1] && (across || text[j - 1] != '.'));
      } else {
        next[j] = j > 0 && reached[j - 1] && text[j - 1] == glob[i];
      }
    }
    if (across) ++i;
    reached = std::move(next);
  }
  return reached[text.size()];
}

const PlanRule& Plan::rule(std::string_view module) const {
  static const PlanRule kAllWhole = whole("**");
  if (rules_.empty()) return kAllWhole;
  for (const PlanRule& rule : rules_) {
    if (glob_match(rule.glob, module)) return rule;
  }
  HANOK_FAIL(kConfig) << "plan: got no rule for module " << module << ", expected one of " << rules_.size()
                      << " globs to match; plan of the model family; add a rule for it to model/plans.cpp";
}

void Plan::check_all_used(const std::vector<std::string>& modules) const {
  constexpr size_t kMaxNamed = 10;
  std::vector<bool> used(rules_.size(), false);
  for (const std::string& module : modules) {
    for (size_t i = 0; i < rules_.size(); ++i) {
      if (!glob_match(rules_[i].glob, module)) continue;
      used[i] = true;
      break;
    }
  }
  std::vector<std::string> unused;
  size_t count = 0;
  for (size_t i = 0; i < rules_.size(); ++i) {
    if (used[i]) continue;
    if (++count <= kMaxNamed) unused.push_back(rules_[i].glob);
  }
  HANOK_REQUIRE(count == 0, kConfig) << "plan: got " << count << " rules that no module uses: " << unused
                                     << (count > kMaxNamed ? " and more" : "")
                                     << ", expected each to be the first match of one of " << modules.size()
                                     << " modules; plan of the model family; remove or correct them in model/plans.cpp";
}

}  // namespace hanok
