#include "parallel/plan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

TEST(Glob, OneStarStaysWithinAComponent) {
  EXPECT_TRUE(glob_match("decoder.layers.*.attn.qkv", "decoder.layers.17.attn.qkv"));
  EXPECT_FALSE(glob_match("decoder.layers.*.attn.qkv", "decoder.layers.17.x.attn.qkv"));
  EXPECT_TRUE(glob_match("*", "decoder"));
  EXPECT_FALSE(glob_match("*", "decoder.head"));
  EXPECT_TRUE(glob_match("a*c*e", "abcde"));
  EXPECT_FALSE(glob_match("a*c*e", "abcdf"));
}

TEST(Glob, TwoStarsCrossDots) {
  EXPECT_TRUE(glob_match("decoder.**norm", "decoder.norm"));
  EXPECT_TRUE(glob_match("decoder.**norm", "decoder.layers.3.attn.q_norm"));
  EXPECT_FALSE(glob_match("decoder.**norm", "decoder.layers.3.norm.x"));
  EXPECT_TRUE(glob_match("**", "a.b.c"));
  EXPECT_TRUE(glob_match("**", ""));
  EXPECT_TRUE(glob_match("**.weight", "a.b.weight"));
  EXPECT_FALSE(glob_match("tower.**", "tower"));
}

TEST(Glob, WithoutStarsMatchesOnlyItself) {
  EXPECT_TRUE(glob_match("decoder.head", "decoder.head"));
  EXPECT_FALSE(glob_match("decoder.head", "decoder.header"));
  EXPECT_FALSE(glob_match("decoder.head", "decoder.hea"));
  EXPECT_FALSE(glob_match("", "a"));
  EXPECT_TRUE(glob_match("", ""));
}

TEST(Glob, ManyStarsStayFast) {
  std::string glob;
  for (int i = 0; i < 40; ++i) glob += "**a";
  EXPECT_FALSE(glob_match(glob + "b", std::string(400, 'a')));
}

const Plan kPlan({vocab("decoder.embed"),
                  whole("decoder.**norm"),
                  colwise("decoder.layers.*.attn.qkv"),
                  rowwise("decoder.layers.*.attn.out"),
                  whole("decoder.**")});

TEST(Plan, FirstMatchingRuleWins) {
  EXPECT_EQ(kPlan.rule("decoder.embed").cut, Cut::kVocab);
  EXPECT_EQ(kPlan.rule("decoder.layers.0.attn.q_norm").cut, Cut::kWhole);
  EXPECT_EQ(kPlan.rule("decoder.layers.0.attn.qkv").cut, Cut::kColumn);
  EXPECT_EQ(kPlan.rule("decoder.layers.0.attn.out").cut, Cut::kRow);
  EXPECT_EQ(kPlan.rule("decoder.layers.0.other").glob, "decoder.**");
}

TEST(Plan, RulesSayHowActivationsArriveAndLeave) {
  EXPECT_EQ(colwise("x").in, Layout::kSequence);
  EXPECT_EQ(colwise("x").out, Layout::kHeads);
  EXPECT_EQ(rowwise("x").in, Layout::kHeads);
  EXPECT_EQ(rowwise("x").out, Layout::kSequence);
  EXPECT_EQ(vocab("x").in, Layout::kSequence);
  EXPECT_EQ(vocab("x").out, Layout::kFull);
}

TEST(Plan, AnEmptyPlanLeavesEverythingWhole) {
  EXPECT_EQ(Plan().rule("anything.at.all").cut, Cut::kWhole);
}

TEST(Plan, AModuleWithoutARuleIsAnErrorThatNamesIt) {
  EXPECT_ERROR(error_of([] { kPlan.rule("tower.patch"); }), ErrorKind::kConfig, "tower.patch");
}

TEST(Plan, UnusedRulesAreListedUpToTen) {
  std::vector<PlanRule> rules = {whole("used")};
  for (int i = 0; i < 12; ++i) rules.push_back(whole(concat("unused", i)));
  const std::string text = message_of(ErrorKind::kConfig, [&] { Plan(rules).check_all_used({"used"}); });
  EXPECT_NE(text.find("12 rules"), std::string::npos) << text;
  EXPECT_NE(text.find("unused9"), std::string::npos) << text;
  EXPECT_EQ(text.find("unused10"), std::string::npos) << text;
}

TEST(Plan, ARuleThatIsAlwaysPrecededByAnotherIsUnused) {
  EXPECT_THROW(Plan({whole("a.**"), colwise("a.b")}).check_all_used({"a.b", "a.c"}), Error);
  Plan({colwise("a.b"), whole("a.**")}).check_all_used({"a.b", "a.c"});
}

}  // namespace
}  // namespace hanok
