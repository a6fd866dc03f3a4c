#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "base/error.h"
#include "dataio/loader.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

constexpr int32_t kImage = 7;

VisionItem image_of(int64_t h, int64_t w, int64_t begin, int seed) {
  VisionItem item{.h = h, .w = w, .token_begins = {begin}};
  item.frames_are_raw = true;
  std::vector<uint8_t> pixels(static_cast<size_t>(3 * h * w * 16 * 16));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 31 + static_cast<size_t>(seed));
  item.frames.push_back(std::move(pixels));
  return item;
}

/// Text, an image of h x w patches after `before` tokens, text, and label spans.
Sample sample_of(int id, int64_t size, std::vector<Span> labels, int64_t h = 0, int64_t w = 0, int64_t before = 2) {
  Sample sample{.id = "s" + std::to_string(id), .labels = std::move(labels)};
  for (int64_t t = 0; t < size; ++t) sample.tokens.push_back(static_cast<int32_t>(1000 * id + 10 + t));
  if (h > 0) {
    sample.vision.push_back(image_of(h, w, before, id));
    for (int64_t t = 0; t < h * w / 4; ++t) sample.tokens[static_cast<size_t>(before + t)] = kImage;
  }
  return sample;
}

std::vector<SampleRef> refs_of(const std::vector<Sample>& samples) {
  std::vector<SampleRef> refs;
  for (size_t i = 0; i < samples.size(); ++i) refs.push_back({0, static_cast<int64_t>(i)});
  return refs;
}

template <class T>
std::vector<T> values(const Tensor& tensor) {
  const Tensor flat = tensor.contiguous();
  return {flat.const_data_ptr<T>(), flat.const_data_ptr<T>() + flat.numel()};
}

TEST(MakeBatch, ShiftsTargetsWithinTheSample) {
  const std::vector<Sample> samples = {sample_of(1, 5, {{3, 5}}), sample_of(2, 4, {{0, 2}})};
  const Batch batch = make_batch(samples, refs_of(samples), {.pad_multiple = 4, .weight = TokenWeight::kSqrt});
  EXPECT_EQ(values<int64_t>(batch.tokens_T),
            (std::vector<int64_t>{1010, 1011, 1012, 1013, 1014, 2010, 2011, 2012, 2013, 0, 0, 0}));
  // The first token of a sample has nobody to predict it, but it counts in n.
  EXPECT_EQ(values<int64_t>(batch.targets_T),
            (std::vector<int64_t>{-100, -100, 1013, 1014, -100, 2011, -100, -100, -100, -100, -100, -100}));
  const float w = 1 / std::sqrt(2.0f);
  EXPECT_EQ(values<float>(batch.weight_T), (std::vector<float>{0, 0, w, w, 0, w, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(values<int32_t>(batch.row_starts), (std::vector<int32_t>{0, 5, 9, 12}));
  EXPECT_EQ(values<int64_t>(batch.position_3T[0]), (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2}));
  EXPECT_EQ(batch.num_tokens, 9);
  EXPECT_EQ(batch.num_labels, 3);
  EXPECT_DOUBLE_EQ(batch.weight_sum, 3.0 * w);
  EXPECT_EQ(batch.samples[1].begin, 5);
  EXPECT_EQ(batch.samples[1].end, 9);
  EXPECT_EQ(batch.pixels_PC.sizes(), at::IntArrayRef({0, 1536}));
}

TEST(MakeBatch, HasNoTailWhereNoneIsNeeded) {
  const std::vector<Sample> samples = {sample_of(1, 5, {{3, 5}}), sample_of(2, 3, {{1, 3}})};
  const Batch batch = make_batch(samples, refs_of(samples), {.pad_multiple = 4});
  EXPECT_EQ(values<int32_t>(batch.row_starts), (std::vector<int32_t>{0, 5, 8}));
}

TEST(MakeBatch, OfNothingIsPaddingWithoutWeight) {
  const Batch batch = make_batch({}, {}, {.pad_multiple = 4});
  EXPECT_EQ(batch.tokens_T.size(0), 4);
  EXPECT_EQ(values<int32_t>(batch.row_starts), (std::vector<int32_t>{0, 4}));
  EXPECT_EQ(batch.weight_sum, 0);
  EXPECT_EQ(batch.num_tokens, 0);
  EXPECT_EQ(batch.pixels_PC.size(0), 0);
  EXPECT_EQ(batch.grid_I3.sizes(), at::IntArrayRef({0, 3}));
}

TEST(MakeBatch, WeighsTokensSamplesAndTurns) {
  const std::vector<Sample> samples = {sample_of(1, 12, {{2, 6}, {8, 9}})};  // 5 labels in turns of 4 and 1
  const auto weights = [&](TokenWeight weight, WeightUnit unit) {
    const Batch batch = make_batch(samples, refs_of(samples), {.weight = weight, .unit = unit});
    const auto all = values<float>(batch.weight_T);
    return std::pair(all[1], all[7]);  // of a label of the first and of the second turn
  };
  const float s5 = 1 / std::sqrt(5.0f);
  EXPECT_EQ(weights(TokenWeight::kToken, WeightUnit::kSample), std::pair(1.0f, 1.0f));
  EXPECT_EQ(weights(TokenWeight::kSqrt, WeightUnit::kSample), std::pair(s5, s5));
  EXPECT_EQ(weights(TokenWeight::kSqrt, WeightUnit::kTurn), std::pair(0.5f, 1.0f));
  EXPECT_EQ(weights(TokenWeight::kSample, WeightUnit::kSample), std::pair(0.2f, 0.2f));
  EXPECT_EQ(weights(TokenWeight::kSample, WeightUnit::kTurn), std::pair(0.25f, 1.0f));
}

TEST(MakeBatch, AnySplitHoldsTheSameTokensTargetsAndWeights) {
  std::mt19937 random(3);
  std::vector<Sample> samples;
  for (int i = 0; i < 40; ++i) {
    const int64_t size = 3 + random() % 30, begin = random() % size, middle = begin + random() % (size - begin + 1);
    std::vector<Span> labels = {{begin, middle}};
    if (middle < size) labels.push_back({middle, size});
    samples.push_back(sample_of(i, size, labels));
  }
  using Entry = std::tuple<int64_t, int64_t, float>;
  for (const TokenWeight weight : {TokenWeight::kToken, TokenWeight::kSqrt, TokenWeight::kSample}) {
    std::vector<Entry> reference;
    double reference_sum = 0;
    for (int split = 0; split < 6; ++split) {
      std::vector<size_t> order(samples.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), random);
      std::vector<Entry> entries;
      double sum = 0;
      for (size_t done = 0; done < order.size();) {
        const size_t count = split == 0 ? order.size() : std::min<size_t>(1 + random() % 9, order.size() - done);
        std::vector<Sample> part;
        for (size_t i = 0; i < count; ++i) part.push_back(samples[order[done + i]]);
        done += count;
        const Batch batch =
            make_batch(part, refs_of(part), {.pad_multiple = static_cast<int64_t>(1 + random() % 5), .weight = weight});
        const auto tokens = values<int64_t>(batch.tokens_T), targets = values<int64_t>(batch.targets_T);
        const auto weights = values<float>(batch.weight_T);
        for (int64_t t = 0; t < batch.num_tokens; ++t) entries.emplace_back(tokens[t], targets[t], weights[t]);
        for (size_t t = batch.num_tokens; t < weights.size(); ++t) EXPECT_EQ(weights[t], 0);
        sum += batch.weight_sum;
      }
      std::sort(entries.begin(), entries.end());
      if (split == 0) {
        reference = entries;
        reference_sum = sum;
      }
      EXPECT_EQ(entries, reference);
      // Sums of at most 1,200 f64 terms in another order.
      EXPECT_NEAR(sum, reference_sum, 1200 * 2.3e-16 * reference_sum);
    }
  }
}

TEST(MakeBatch, PlacesPicturesInOrder) {
  const std::vector<Sample> samples = {
      sample_of(1, 9, {{8, 9}}, 2, 4), sample_of(2, 3, {{2, 3}}), sample_of(3, 12, {{10, 12}}, 4, 4, 5)};
  const Batch batch = make_batch(samples, refs_of(samples), {});
  EXPECT_EQ(values<int64_t>(batch.grid_I3), (std::vector<int64_t>{1, 2, 4, 1, 4, 4}));
  EXPECT_EQ(values<int64_t>(batch.vision_index_M), (std::vector<int64_t>{2, 3, 17, 18, 19, 20}));
  for (int64_t t : values<int64_t>(batch.vision_index_M)) EXPECT_EQ(values<int64_t>(batch.tokens_T)[t], kImage);
  EXPECT_EQ(batch.pixels_PC.size(0), 8 + 16);
  const Batch last = make_batch({samples[2]}, {{0, 2}}, {});
  EXPECT_TRUE(at::equal(batch.pixels_PC.narrow(0, 8, 16), last.pixels_PC));
  EXPECT_TRUE(at::equal(batch.position_3T.narrow(1, 12, 12), last.position_3T));
}

TEST(MakeBatch, NamesTheSampleWhosePlaceholdersDoNotFit) {
  const auto failure_of = [](const Sample& sample) {
    return message_of(ErrorKind::kData, [&] { make_batch({sample}, {{0, 0}}, {}); });
  };
  Sample more = sample_of(1, 9, {{8, 9}}, 2, 4);
  more.tokens[6] = kImage;
  EXPECT_NE(failure_of(more).find("sample s1: got 3 placeholders of token 7, expected 2"), std::string::npos);
  Sample beyond = sample_of(1, 9, {{8, 9}}, 2, 4);
  beyond.vision[0].token_begins = {8};
  EXPECT_NE(failure_of(beyond).find("sample s1: got a picture at tokens [8, 10)"), std::string::npos);
  Sample broken = sample_of(1, 9, {{8, 9}}, 2, 4);
  broken.vision[0].frames_are_raw = false;
  EXPECT_NE(failure_of(broken).find("sample s1: "), std::string::npos);
  Sample cut = sample_of(1, 9, {{8, 9}}, 2, 4);
  cut.vision[0].frames[0].pop_back();
  EXPECT_NE(failure_of(cut).find("sample s1: raw picture: got 6143 bytes, expected 6144"), std::string::npos)
      << failure_of(cut);
}

// Whether positions equal transformers' is tests/oracle/dataset.py's to say; here is the rule by example.
TEST(MropePositions, LaysPicturesOutInTwoDimensions) {
  const Sample sample = sample_of(1, 10, {{9, 10}}, 4, 6, 2);  // 2 x 3 merged tokens at 2..7
  const Tensor position_3T = mrope_positions(sample, 2);
  EXPECT_EQ(values<int64_t>(position_3T[0]), (std::vector<int64_t>{0, 1, 2, 2, 2, 2, 2, 2, 5, 6}));
  EXPECT_EQ(values<int64_t>(position_3T[1]), (std::vector<int64_t>{0, 1, 2, 2, 2, 3, 3, 3, 5, 6}));
  EXPECT_EQ(values<int64_t>(position_3T[2]), (std::vector<int64_t>{0, 1, 2, 3, 4, 2, 3, 4, 5, 6}));
}

}  // namespace
}  // namespace hanok
