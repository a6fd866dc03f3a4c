#include <algorithm>
#include <cmath>
#include <map>
#include <span>

#include "base/error.h"
#include "dataio/image.h"
#include "dataio/loader.h"

namespace hanok {
namespace {

int64_t merged_tokens_per_patch(const VisionItem& item, int64_t merge) {
  return item.h * item.w / (merge * merge);
}

/// A frame as it goes into patches: decoded, with the size that the packed grid says.
Tensor frame_CHW(const VisionItem& item, const std::vector<uint8_t>& bytes, const BatchSpec& spec) {
  const ImageSize size{item.h * spec.vision.patch, item.w * spec.vision.patch};
  if (!item.frames_are_raw) return resize_bicubic(decode_image(bytes, spec.image_limits), size);
  HANOK_REQUIRE(static_cast<int64_t>(bytes.size()) == 3 * size.height * size.width, kData)
      << "raw picture: got " << bytes.size() << " bytes, expected " << 3 * size.height * size.width << " for "
      << size.width << " x " << size.height << " pixels; pack the data again";
  const auto strides = {int64_t{1}, 3 * size.width, int64_t{3}};
  return at::from_blob(const_cast<uint8_t*>(bytes.data()), {3, size.height, size.width}, strides, at::kByte);
}

Tensor item_pixels_PC(const VisionItem& item, const BatchSpec& spec) {
  std::vector<Tensor> frames;
  for (const auto& bytes : item.frames) frames.push_back(frame_CHW(item, bytes, spec));
  Patches patches = patchify(frames, spec.vision);
  HANOK_REQUIRE(patches.t == item.t && patches.h == item.h && patches.w == item.w, kData)
      << "picture: got a grid of " << patches.t << " x " << patches.h << " x " << patches.w << " patches, expected "
      << item.t << " x " << item.h << " x " << item.w << "; pack the data again";
  return patches.pixels_PC;
}

/// Every placeholder token must receive one merged vision token, and every such token must have its place.
void check_placeholders(const Sample& sample, int64_t merge) {
  std::map<int32_t, int64_t> expected;
  const auto num_tokens = static_cast<int64_t>(sample.tokens.size());
  for (const VisionItem& item : sample.vision) {
    const int64_t count = merged_tokens_per_patch(item, merge);
    HANOK_REQUIRE(static_cast<int64_t>(item.token_begins.size()) == item.t && count > 0 && item.h % merge == 0 &&
                      item.w % merge == 0 && !item.frames.empty(),
                  kData)
        << "sample " << sample.id << ": got " << item.token_begins.size() << " places for a picture of " << item.t
        << " x " << item.h << " x " << item.w << " patches, merge " << merge << "; pack the data again";
    for (int64_t begin : item.token_begins) {
      HANOK_REQUIRE(begin >= 0 && begin + count <= num_tokens, kData)
          << "sample " << sample.id << ": got a picture at tokens [" << begin << ", " << begin + count
          << "), expected them within the sample's " << num_tokens << "; pack the data again";
      expected[sample.tokens[begin]] += count;
    }
  }
  for (const auto& [token, count] : expected) {
    const int64_t found = std::count(sample.tokens.begin(), sample.tokens.end(), token);
    HANOK_REQUIRE(found == count, kData) << "sample " << sample.id << ": got " << found << " placeholders of token "
                                         << token << ", expected " << count << " for its pictures; pack the data again";
  }
}

double weight_of(TokenWeight weight, int64_t n) {
  switch (weight) {
    case TokenWeight::kToken: return 1;
    case TokenWeight::kSqrt: return 1 / std::sqrt(static_cast<double>(n));
    case TokenWeight::kSample: return 1 / static_cast<double>(n);
  }
  return 0;
}

/// Position t predicts token t + 1, so a label at token t puts target and weight at t - 1. n is counted before that
/// shift: it is a property of the sample, not of what can be predicted.
void place_targets(const Sample& sample, const BatchSpec& spec, int64_t* targets_T, float* weight_T, Batch& batch) {
  const int64_t n_sample = sample.num_label_tokens();
  for (const Span& span : sample.labels) {
    const int64_t n = spec.unit == WeightUnit::kSample ? n_sample : span.end - span.begin;
    const auto weight = static_cast<float>(weight_of(spec.weight, n));
    for (int64_t t = std::max<int64_t>(span.begin, 1); t < span.end; ++t) {
      targets_T[t - 1] = sample.tokens[t];
      weight_T[t - 1] = weight;
      batch.weight_sum += weight;
      ++batch.num_labels;
    }
  }
}

Tensor empty_host(at::IntArrayRef shape, at::ScalarType dtype, bool pinned) {
  return at::empty(shape, at::TensorOptions().dtype(dtype).pinned_memory(pinned));
}

Tensor concatenated_pixels_PC(const std::vector<Sample>& samples, const BatchSpec& spec) {
  const VisionPrep& prep = spec.vision;
  const int64_t num_channels = 3 * prep.temporal_patch * prep.patch * prep.patch;
  int64_t num_patches = 0;
  for (const Sample& sample : samples) {
    for (const VisionItem& item : sample.vision) num_patches += item.t * item.h * item.w;
  }
  Tensor pixels_PC = empty_host({num_patches, num_channels}, at::kFloat, spec.pin_memory);
  int64_t p = 0;
  for (const Sample& sample : samples) {
    try {
      for (const VisionItem& item : sample.vision) {
        const int64_t count = item.t * item.h * item.w;
        pixels_PC.narrow(0, p, count).copy_(item_pixels_PC(item, spec));
        p += count;
      }
    } catch (const Error& error) {
      throw Error(error.kind(), concat("sample ", sample.id, ": ", error.what()));
    }
  }
  return pixels_PC;
}

}  // namespace

Tensor mrope_positions(const Sample& sample, int64_t merge) {
  const auto num_tokens = static_cast<int64_t>(sample.tokens.size());
  Tensor position_3T = at::empty({3, num_tokens}, at::kLong);
  int64_t* const time = position_3T.data_ptr<int64_t>();
  int64_t* const row = time + num_tokens;
  int64_t* const column = row + num_tokens;
  int64_t t = 0, next = 0;
  const auto text_until = [&](int64_t end) {
    for (; t < end; ++t, ++next) time[t] = row[t] = column[t] = next;
  };
  for (const VisionItem& item : sample.vision) {
    for (int64_t begin : item.token_begins) {
      text_until(begin);
      // Every temporal patch is a block of its own: time between them is told by the text, not by the position.
      for (int64_t y = 0; y < item.h / merge; ++y) {
        for (int64_t x = 0; x < item.w / merge; ++x, ++t) {
          time[t] = next;
          row[t] = next + y;
          column[t] = next + x;
        }
      }
      next += std::max(item.h, item.w) / merge;
    }
  }
  text_until(num_tokens);
  return position_3T;
}

Batch make_batch(const std::vector<Sample>& samples, const std::vector<SampleRef>& refs, const BatchSpec& spec) {
  HANOK_REQUIRE(samples.size() == refs.size() && spec.pad_multiple > 0, kShape)
      << "make_batch: got " << samples.size() << " samples, " << refs.size() << " references, pad_multiple "
      << spec.pad_multiple << ", expected as many samples as references and a multiple above 0";
  Batch batch;
  int64_t num_patches_merged = 0, num_items = 0;
  for (const Sample& sample : samples) {
    check_placeholders(sample, spec.vision.merge);
    batch.num_tokens += static_cast<int64_t>(sample.tokens.size());
    num_items += static_cast<int64_t>(sample.vision.size());
    for (const auto& item : sample.vision)
      num_patches_merged += item.t * merged_tokens_per_patch(item, spec.vision.merge);
  }
  const int64_t num_padded =
      std::max<int64_t>(1, (batch.num_tokens + spec.pad_multiple - 1) / spec.pad_multiple) * spec.pad_multiple;
  const bool has_tail = num_padded > batch.num_tokens;
  const auto num_segments = static_cast<int64_t>(samples.size()) + has_tail;

  batch.tokens_T = empty_host({num_padded}, at::kLong, spec.pin_memory);
  batch.targets_T = empty_host({num_padded}, at::kLong, spec.pin_memory).fill_(-100);
  batch.weight_T = empty_host({num_padded}, at::kFloat, spec.pin_memory).zero_();
  batch.position_3T = empty_host({3, num_padded}, at::kLong, spec.pin_memory);
  batch.row_starts = empty_host({num_segments + 1}, at::kInt, spec.pin_memory);
  batch.grid_I3 = empty_host({num_items, 3}, at::kLong, spec.pin_memory);
  batch.vision_index_M = empty_host({num_patches_merged}, at::kLong, spec.pin_memory);
  int64_t* const tokens_T = batch.tokens_T.data_ptr<int64_t>();
  int32_t* row_start = batch.row_starts.data_ptr<int32_t>();
  int64_t* grid = batch.grid_I3.data_ptr<int64_t>();
  int64_t* vision_index = batch.vision_index_M.data_ptr<int64_t>();

  int64_t begin = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const Sample& sample = samples[i];
    const auto size = static_cast<int64_t>(sample.tokens.size());
    *row_start++ = static_cast<int32_t>(begin);
    std::copy(sample.tokens.begin(), sample.tokens.end(), tokens_T + begin);
    place_targets(
        sample, spec, batch.targets_T.data_ptr<int64_t>() + begin, batch.weight_T.data_ptr<float>() + begin, batch);
    batch.position_3T.narrow(1, begin, size).copy_(mrope_positions(sample, spec.vision.merge));
    for (const VisionItem& item : sample.vision) {
      for (int64_t side : {item.t, item.h, item.w}) *grid++ = side;
      for (int64_t first : item.token_begins) {
        for (int64_t k = 0; k < merged_tokens_per_patch(item, spec.vision.merge); ++k) {
          *vision_index++ = begin + first + k;
        }
      }
    }
    batch.samples.push_back({.dataset = refs[i].dataset,
                             .index = refs[i].index,
                             .id = sample.id,
                             .begin = begin,
                             .end = begin + size,
                             .num_choices = sample.num_choices,
                             .answer = sample.answer,
                             .permutation = sample.permutation});
    begin += size;
  }
  if (has_tail) {
    *row_start++ = static_cast<int32_t>(begin);
    std::fill(tokens_T + begin, tokens_T + num_padded, 0);
    batch.position_3T.narrow(1, begin, num_padded - begin).copy_(at::arange(num_padded - begin));
  }
  *row_start = static_cast<int32_t>(num_padded);
  batch.pixels_PC = concatenated_pixels_PC(samples, spec);
  return batch;
}

}  // namespace hanok
