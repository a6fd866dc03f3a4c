// Names and version of the packed format. What the tables mean: format.md.
#pragma once

#include <cstdint>

namespace hanok::format {

constexpr const char* kSchema = "hanok.packed";
/// Raise it when tables change, and when the same record would be encoded differently: it is part of the content key.
constexpr int64_t kVersion = 1;

// Columns of samples/ends: running totals after the sample.
enum SampleEnd { kTokensEnd, kLabelsEnd, kItemsEnd, kIdEnd, kChoicesEnd, kNumSampleEnds };
// Columns of samples/facts.
enum SampleFact { kNumLabelTokens, kNumChoices, kAnswer, kNumSampleFacts };
// Columns of vision/items.
enum ItemFact { kIsVideo, kGridT, kGridH, kGridW, kIsRaw, kNumItemFacts };
// Columns of vision/ends: running totals after the picture or video.
enum ItemEnd { kPlacesEnd, kFramesEnd, kNumItemEnds };

}  // namespace hanok::format
