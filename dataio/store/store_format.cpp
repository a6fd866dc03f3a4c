#include "dataio/store/store_format.h"

#include <xxhash.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/store/strict_json.h"

namespace hanok {

namespace {
constexpr std::string_view kSealBegin = "{\"xxh3\":\"";
constexpr size_t kDigits = 16;
}  // namespace

std::string store_data_name(int rank) {
  return concat("shard-", rank, ".safetensors");
}
std::string store_index_name(int rank) {
  return concat("shard-", rank, ".json");
}
std::string unfinished_store(const std::string& directory) {
  return directory.substr(0, directory.find_last_not_of('/') + 1) + ".tmp";
}

std::string xxh3_text(const void* data, size_t size) {
  char text[kDigits + 1];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(XXH3_64bits(data, size)));
  return text;
}

std::string xxh3_text(std::string_view bytes) {
  return xxh3_text(bytes.data(), bytes.size());
}

std::string sealed_text(const nlohmann::json& object, const std::string& file) {
  const std::string rest = "\"," + strict_json_text(object, file).substr(1) + "\n";
  return concat(kSealBegin, xxh3_text(rest), rest);
}

bool is_sealed(std::string_view text) {
  const size_t size = kSealBegin.size() + kDigits;
  return text.size() > size && text.starts_with(kSealBegin) &&
         text.substr(kSealBegin.size(), kDigits) == xxh3_text(text.substr(size));
}

}  // namespace hanok
