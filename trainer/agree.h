// Ranks that hear of each other's failures before any of them goes on.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/error.h"
#include "parallel/comm.h"

namespace hanok {

/// The text of `root`, on every rank. Collective.
std::string broadcast_text(const std::string& text, int root, Comm& control);

/// The failure of the lowest rank that has one, the same on every rank; its message names that rank. Collective.
std::optional<Error> first_failure(const std::optional<Error>& own, Comm& control);

/// The first failure of `body`, run on every rank; `body` itself must not communicate. Collective.
std::optional<Error> failure_of(Comm& control, const std::function<void()>& body);

/// Runs `body` on every rank. Where it throws an Error on any, every rank throws: the first failure. Collective; `body`
/// itself must not communicate. errors: what `body` throws
void run_together(Comm& control, const std::function<void()>& body);

}  // namespace hanok
