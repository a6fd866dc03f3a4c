#include "trainer/version.h"

namespace hanok {

std::string program_version() {
  return HANOK_VERSION;
}

std::string git_commit() {
  return HANOK_GIT_COMMIT;
}

}  // namespace hanok
