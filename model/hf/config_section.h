// One object of a Hugging Face config.json.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace hanok {

/// Reads one object of config.json; its name goes into messages.
class ConfigSection {
 public:
  ConfigSection(const nlohmann::json& json, std::string name) : json_(json), name_(std::move(name)) {
    HANOK_REQUIRE(json.is_object(), kConfig) << name_ << ": got no object, expected one; config.json";
  }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  ConfigSection section(const char* key) const {
    HANOK_REQUIRE(has(key), kConfig) << path(key) << ": got nothing, expected an object; config.json";
    return ConfigSection(json_[key], path(key));
  }
  template <class T>
  T required(const char* key) const {
    HANOK_REQUIRE(has(key), kConfig) << path(key) << ": got nothing, expected a value; config.json";
    return value<T>(key);
  }
  template <class T>
  T optional(const char* key, T fallback) const {
    return has(key) ? value<T>(key) : fallback;
  }
  /// errors: kConfig unless the key is absent or equals `expected`
  template <class T>
  void require(const char* key, T expected) const {
    const T got = optional<T>(key, expected);
    HANOK_REQUIRE(got == expected, kConfig)
        << path(key) << ": got " << got << ", expected " << expected << "; config.json; this version does no other";
  }
  /// 16, or [16, 16].
  int64_t edge(const char* key, int64_t fallback) const {
    if (!has(key) || !json_[key].is_array()) return optional<int64_t>(key, fallback);
    const auto sizes = value<std::vector<int64_t>>(key);
    HANOK_REQUIRE(!sizes.empty() && std::all_of(sizes.begin(), sizes.end(), [&](int64_t s) { return s == sizes[0]; }),
                  kConfig)
        << path(key) << ": got " << sizes << ", expected equal edges; config.json";
    return sizes[0];
  }

 private:
  std::string path(const char* key) const { return name_.empty() ? key : name_ + "." + key; }
  template <class T>
  T value(const char* key) const {
    try {
      // Else a fraction or a number beyond 64 bits would be cut off in silence.
      const bool is_whole = json_[key].is_number_integer() && json_[key].get<double>() < 9.2e18;
      if (std::is_same_v<T, int64_t> && !is_whole)
        HANOK_FAIL(kConfig) << path(key) << ": got " << json_[key].dump() << ", expected a whole number; config.json";
      return json_[key].get<T>();
    } catch (const nlohmann::json::exception& error) {
      HANOK_FAIL(kConfig) << path(key) << ": got " << json_[key].dump() << ", expected another type; config.json";
    }
  }

  const nlohmann::json& json_;
  std::string name_;
};

}  // namespace hanok
