#include "dataio/hash.h"

#include <xxhash.h>

namespace hanok {

Hash64::Hash64() : state_(XXH3_createState()) {
  XXH3_64bits_reset(state_.get());
}
void Hash64::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}
void Hash64::add(const void* data, size_t size) {
  if (size > 0) XXH3_64bits_update(state_.get(), data, size);
}
void Hash64::add(std::string_view text) {
  add(static_cast<int64_t>(text.size()));
  add(text.data(), text.size());
}
uint64_t Hash64::value() const {
  return XXH3_64bits_digest(state_.get());
}

}  // namespace hanok
