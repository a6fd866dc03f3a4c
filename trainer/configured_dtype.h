// Dtypes by the names that configurations and model folders give them.
#pragma once

#include <c10/core/ScalarType.h>

#include <string_view>

namespace hanok {

/// "bfloat16"
const char* configured_name(at::ScalarType dtype);
/// errors: kConfig listing the known names
at::ScalarType configured_dtype(std::string_view name);

}  // namespace hanok
