#include "trainer/resume.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"

namespace hanok {
namespace {

RunConfig config_of(const std::vector<std::string>& names) {
  RunConfig config;
  for (const std::string& name : names) {
    StageConfig stage;
    stage.name = name;
    stage.steps = static_cast<int64_t>(name.size());
    config.stages.push_back(stage);
  }
  return config;
}
using Names = std::vector<std::string>;

TEST(Resume, StagesAreComparedByTheirNames) {
  EXPECT_EQ(resume_differences(config_of({"align", "all"}), config_of({"all"})),
            Names{"stages: were align, all, are all"});
  RunConfig longer = config_of({"all"});
  longer.stages[0].steps = 8;
  EXPECT_EQ(resume_differences(config_of({"align", "all"}), longer),
            (Names{"stages.0.steps: was 3, is 8", "stages: were align, all, are all"}));
  EXPECT_TRUE(resume_differences(longer, longer).empty());
}

TEST(Resume, StagesInAnotherOrderAreRefused) {
  const RunConfig was = config_of({"align", "all"});
  const std::string text = message_of(ErrorKind::kConfig, [&] {
    require_same_order_of_stages(was, config_of({"all", "mid", "align"}));
  });
  EXPECT_NE(text.find("got stages all, mid, align, expected them in the order of the checkpoint: align, all"),
            std::string::npos)
      << text;
  require_same_order_of_stages(was, config_of({"align", "mid", "all", "last"}));
  require_same_order_of_stages(was, config_of({"all"}));
  require_same_order_of_stages(was, was);
}

TEST(Resume, StagesBeforeTheCheckpointThatItDidNotKnowAreNamed) {
  const RunConfig was = config_of({"align", "all"}), is = config_of({"align", "mid", "all", "last"});
  EXPECT_EQ(stages_left_out(was, is, 2), Names{"mid"});
  EXPECT_TRUE(stages_left_out(was, is, 1).empty());
  EXPECT_TRUE(stages_left_out(was, was, 1).empty());
}

}  // namespace
}  // namespace hanok
