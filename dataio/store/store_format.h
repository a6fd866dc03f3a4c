// What both sides of a tensor store agree on: file names, hashes, the seal of the manifest.
//   manifest.json            {"xxh3": of all that follows, created, schema_version, shards: [{data_bytes, index_bytes,
//   index_xxh3}],
//                             tensors: [{name, dtype, shape}], state}
//   shard-RANK.json          {schema_version, rank, header_xxh3, pieces: [{tensor, runs: [[begin, size, stride,
//   count]], offset, xxh3}]} shard-RANK.safetensors   the values of the pieces, 1-D, under the names of their tensors
// manifest -> shard-RANK.json -> header and values: every byte of a store is under some hash.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace hanok {

inline constexpr std::string_view kStoreManifest = "manifest.json";
std::string store_data_name(int rank);
std::string store_index_name(int rank);
/// DIR.tmp, where a store is written.
std::string unfinished_store(const std::string& directory);

/// XXH3 (64 bits) as 16 hexadecimal digits.
std::string xxh3_text(const void* data, size_t size);
std::string xxh3_text(std::string_view bytes);

/// Text of a JSON object whose first member "xxh3" is the hash of all bytes after it.
std::string sealed_text(const nlohmann::json& object, const std::string& file);
bool is_sealed(std::string_view text);

}  // namespace hanok
