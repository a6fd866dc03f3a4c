// What the readers of fields() have in common: which kinds of members there are. Private to configs/.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace hanok {

namespace visit_detail {
struct Ignore {
  template <class... Args>
  void operator()(Args&&...) const {}
};
}  // namespace visit_detail

/// A struct with a fields() list.
template <class T>
concept Group = requires(T& t) {
  T::fields(t, visit_detail::Ignore{});
};

/// A list.
template <class T>
struct ElementOf : std::false_type {};
template <class T>
struct ElementOf<std::vector<T>> : std::true_type {
  using type = T;
};

/// A mapping of free names.
template <class T>
struct ValueOf : std::false_type {};
template <class T>
struct ValueOf<std::map<std::string, T>> : std::true_type {
  using type = T;
};

inline std::string join(const std::string& prefix, std::string_view key) {
  return prefix.empty() ? std::string(key) : concat(prefix, ".", key);
}

}  // namespace hanok
