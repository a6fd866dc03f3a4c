// JSON that nobody can read in two ways: one value, no duplicate keys, bounded depth, typed members. For files that
// come from elsewhere (weight indices) or that must be trusted to the bit (checkpoint manifests).
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace hanok {

/// errors: kCheckpoint naming `file` and the byte, if the text is not one JSON value, repeats a key, or nests deeper
/// than 64
nlohmann::json parse_strict_json(std::string_view text, const std::string& file);
/// Compact text. errors: kCheckpoint naming `file` if a string in it is not UTF-8
std::string strict_json_text(const nlohmann::json& value, const std::string& file);

/// Members of an object. errors: kCheckpoint naming `file` and `key` if absent or of another type
const nlohmann::json& json_list(const nlohmann::json& object, const char* key, const std::string& file);
std::string json_string(const nlohmann::json& object, const char* key, const std::string& file);
/// An integer in [0, 2^63).
int64_t json_count(const nlohmann::json& object, const char* key, const std::string& file);
int64_t json_count(const nlohmann::json& value, const std::string& file);

/// Foreign text made fit for a message: quoted, escaped as JSON does, bytes that are not UTF-8 replaced, cut after 120
/// bytes.
std::string shown(std::string_view text);

}  // namespace hanok
