#include "trainer/configured_dtype.h"

#include <vector>

#include "base/error.h"

namespace hanok {
namespace {

struct Name {
  const char* name;
  at::ScalarType dtype;
};
constexpr Name kNames[] = {{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}};

}  // namespace

const char* configured_name(at::ScalarType dtype) {
  for (const Name& entry : kNames)
    if (entry.dtype == dtype) return entry.name;
  return c10::toString(dtype);
}

at::ScalarType configured_dtype(std::string_view name) {
  std::vector<std::string_view> known;
  for (const Name& entry : kNames) {
    if (entry.name == name) return entry.dtype;
    known.push_back(entry.name);
  }
  HANOK_FAIL(kConfig) << "dtype: got " << name << ", expected one of " << known << "; correct the name";
}

}  // namespace hanok
