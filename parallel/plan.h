// The cut of a model family as a table: glob over module names -> how its weight is cut and in which layouts its input
// arrives and its output leaves. First match wins. A rule that matches no module, and a module that no rule matches,
// are errors.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hanok {

/// How an activation lies on the ranks of tp.
enum class Layout {
  kFull,      // every rank has every row; gradients are complete on every rank
  kSequence,  // rows (T or P) cut over tp when sequence parallelism is on, else kFull
  kHeads,     // last dim cut over tp (heads, ffn columns, vocabulary)
  kPartial,   // every rank has every row, but values are partial sums
};

enum class Cut {
  kWhole,   // the same weight on every rank of tp
  kColumn,  // output features (dim 0) over tp, per segment; bias too
  kRow,     // input features (dim 1) over tp; bias whole, added once after the sum
  kVocab,   // rows of V over tp in blocks of ceil(V / tp)
  kExpert,  // dim 0 = experts over ep
};

struct PlanRule {
  std::string glob;  // '*' stands for one name component's characters, '**' for anything, dots included
  Cut cut;
  Layout in, out;
};

PlanRule whole(std::string glob);    // in and out: as they come (kSequence)
PlanRule colwise(std::string glob);  // in kSequence, out kHeads
PlanRule rowwise(std::string glob);  // in kHeads, out kSequence
PlanRule vocab(std::string glob);    // embedding: out kFull; head: in kSequence
PlanRule expert(std::string glob);

class Plan {
 public:
  Plan() = default;  // no rules: everything whole (one rank)
  explicit Plan(std::vector<PlanRule> rules) : rules_(std::move(rules)) {}
  /// The first rule whose glob matches the module name ("decoder.layers.3.attn.qkv").
  /// errors: kConfig if none does (an empty plan answers `whole`).
  const PlanRule& rule(std::string_view module) const;
  /// errors: kConfig naming up to ten rules that match none of the modules of the whole model.
  void check_all_used(const std::vector<std::string>& modules) const;

 private:
  std::vector<PlanRule> rules_;
};

/// '*' matches within one dot-separated component, '**' across components.
bool glob_match(std::string_view glob, std::string_view text);

}  // namespace hanok
