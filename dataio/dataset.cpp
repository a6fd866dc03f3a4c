#include "dataio/dataset.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "dataio/pack/columns.h"
#include "dataio/pack/format.h"
#include "dataio/pack/h5_file.h"

namespace hanok {

struct Dataset::State {
  H5File file;
  std::string content_key;
  int64_t image_token = 0, video_token = 0;
  std::vector<int32_t> num_tokens, num_label_tokens;
};

namespace {

void check_schema(const H5File& file) {
  HANOK_REQUIRE(file.has_attribute("schema") && file.text_attribute("schema") == format::kSchema, kData)
      << "packed file: got an HDF5 file of another kind, expected one that trainer pack wrote; " << file.path()
      << "; correct data.sets.*.path";
  const int64_t version = file.int_attribute("version");
  HANOK_REQUIRE(version == format::kVersion, kData)
      << "packed file: got schema version " << version << ", expected " << format::kVersion << "; " << file.path()
      << (version > format::kVersion ? "; use the program that wrote it, or" : ";") << " pack the data again";
}

}  // namespace

Dataset::Dataset(const std::string& path) : state_(new State{.file = H5File::open(path)}) {
  const H5File& file = state_->file;
  check_schema(file);
  const std::string got = read_index_hash(file).text(), expected = file.text_attribute("index_xxh3");
  HANOK_REQUIRE(got == expected, kData) << "packed file: got index checksum " << got << ", expected " << expected
                                        << "; " << path << " is damaged; delete it and pack the data again";
  state_->content_key = got;
  state_->image_token = file.int_attribute("image_token");
  state_->video_token = file.int_attribute("video_token");
  constexpr int64_t kStretch = 1 << 16, kMaxTokens = std::numeric_limits<int32_t>::max();
  const int64_t num_tokens = file.num_rows("tokens");
  const int64_t num_samples = file.num_rows("samples/ends");
  std::vector<int64_t> ends;
  std::vector<int32_t> facts;
  int64_t end = 0;
  for (int64_t begin = 0; begin < num_samples; begin += kStretch) {
    const auto count = static_cast<size_t>(std::min(kStretch, num_samples - begin));
    ends.resize(count * format::kNumSampleEnds);
    facts.resize(count * format::kNumSampleFacts);
    file.read<int64_t>("samples/ends", begin, ends);
    file.read<int32_t>("samples/facts", begin, facts);
    for (size_t i = 0; i < count; ++i) {
      const int64_t before = std::exchange(end, ends[i * format::kNumSampleEnds + format::kTokensEnd]);
      const int32_t num_labels = facts[i * format::kNumSampleFacts + format::kNumLabelTokens];
      const bool rises = before <= end && end <= num_tokens;
      HANOK_REQUIRE(rises && num_labels >= 0 && num_labels <= end - before && end - before <= kMaxTokens, kData)
          << "packed file: got tokens [" << before << ", " << end << ") with " << num_labels << " labels of sample "
          << begin + static_cast<int64_t>(i) << ", expected a stretch of the " << num_tokens << " in the file; " << path
          << "; delete it and pack the data again";
      state_->num_tokens.push_back(static_cast<int32_t>(end - before));
      state_->num_label_tokens.push_back(num_labels);
    }
  }
}

Dataset::~Dataset() = default;
int64_t Dataset::size() const {
  return static_cast<int64_t>(state_->num_tokens.size());
}
int64_t Dataset::num_tokens(int64_t index) const {
  return state_->num_tokens.at(static_cast<size_t>(index));
}
int64_t Dataset::num_label_tokens(int64_t index) const {
  return state_->num_label_tokens.at(static_cast<size_t>(index));
}
std::string Dataset::id(int64_t index) const {
  return read_sample_id(state_->file, index);
}
Sample Dataset::read(int64_t index) const {
  return read_sample(state_->file, index);
}
const std::string& Dataset::file() const {
  return state_->file.path();
}
const std::string& Dataset::content_key() const {
  return state_->content_key;
}
int64_t Dataset::image_token() const {
  return state_->image_token;
}
int64_t Dataset::video_token() const {
  return state_->video_token;
}
std::string Dataset::provenance(const std::string& key) const {
  return state_->file.text_attribute(key);
}

}  // namespace hanok
