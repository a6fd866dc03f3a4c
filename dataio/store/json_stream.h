// JSON files of foreign origin, read in one pass: large containers go to a callback member by member, the rest comes
// back as a small value. Memory stays below a few times the file's size, whatever the file says.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace hanok {

/// A container that is streamed: its path ("model.vocab"; "" is the whole value) and what takes each member. `key` is
/// empty for members of a list.
struct JsonStream {
  std::string path;
  std::function<void(const std::string& key, nlohmann::json& value)> member;
};

/// What a key that an object has twice means: what most readers make of it, or an error.
enum class RepeatedKeys { kLastCounts, kRefused };

/// Returns the value without the streamed containers (null in their place).
/// errors: kData naming `where` and the byte, if the text is not one JSON value, nests deeper than 32, has a streamed
/// path
///         twice or as a scalar, repeats a key where that is refused, or has more than 65,536 values beside the streams
///         or 1,024 in one streamed member
nlohmann::json read_json(std::string_view text,
                         const std::string& where,
                         const std::vector<JsonStream>& streams = {},
                         RepeatedKeys repeated = RepeatedKeys::kLastCounts);

}  // namespace hanok
