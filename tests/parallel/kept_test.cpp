// What runs again in a block that is run twice, by what it keeps.
#include "parallel/kept.h"

#include <gtest/gtest.h>

namespace hanok {
namespace {

/// Times that each operation of a block has run.
struct Runs {
  int product = 0, part = 0, sum = 0, attention = 0, last = 0;
  bool operator==(const Runs&) const = default;
};

/// A product, attention, a product that is summed over ranks, and one that is only added to something.
std::vector<Tensor> run_block(Runs& runs) {
  const auto counted = [](int& count, double value) {
    ++count;
    return at::full({2, 3}, value);
  };
  std::vector<Tensor> out{kept([&] { return counted(runs.product, 1); })};
  for (const Tensor& result : kept_attention([&]() -> std::vector<Tensor> {
         return {counted(runs.attention, 2), at::full({4}, 2.5, at::kDouble)};
       }))
    out.push_back(result);
  kept_part([&] { return counted(runs.part, 3); });
  out.push_back(kept([&] { return counted(runs.sum, 4); }));
  out.push_back(kept([&] { return counted(runs.last, 5); }));
  return out;
}

struct Case {
  Keep keep;
  bool last_is_unread;
  Runs again;
};

TEST(Kept, OnlyWhatIsNotKeptRunsAgain) {
  const Case cases[] = {
      {Keep::kInput, false, {1, 1, 1, 1, 1}},
      {Keep::kInput, true, {1, 1, 1, 1, 0}},
      {Keep::kAttention, false, {1, 1, 1, 0, 1}},
      {Keep::kAttention, true, {1, 1, 1, 0, 0}},
      {Keep::kResults, false, {0, 0, 0, 0, 0}},
      {Keep::kResults, true, {0, 0, 0, 0, 0}},
  };
  for (const Case& c : cases) {
    Runs first, again;
    KeptResults results;
    std::vector<Tensor> given;
    {
      RecordResults record(c.keep);
      given = run_block(first);
      results = record.finish(c.last_is_unread);
    }
    EXPECT_EQ(first, (Runs{1, 1, 1, 1, 1}));
    const TakeResults take(results, at::kCPU);
    const std::vector<Tensor> taken = run_block(again);
    EXPECT_EQ(again, c.again) << "keeps " << static_cast<int>(c.keep) << ", last unread " << c.last_is_unread;
    for (size_t i = 0; i + c.last_is_unread < given.size(); ++i) EXPECT_TRUE(at::equal(taken[i], given[i])) << i;
    EXPECT_EQ(taken.back().sizes(), given.back().sizes());
    for (const Tensor& result : results) EXPECT_FALSE(result.defined()) << "each is let go when it has been taken";
  }
}

}  // namespace
}  // namespace hanok
