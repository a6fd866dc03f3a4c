// A world with one fault: a collective that is left out once. What an equivalence test must notice.
#pragma once

#include <memory>
#include <string>

#include "parallel/groups.h"

namespace hanok {

/// The groups of kind `kind` leave out their `number`-th reduction (all-reduce or reduce-scatter) or exchange
/// (all-to-all), on every rank alike: each keeps its own values, or gets zeros.
class BrokenWorld : public World {
 public:
  enum class Fault { kReduction, kExchange };
  BrokenWorld(World& world, std::string kind, int number, Fault fault = Fault::kReduction)
      : world_(world), kind_(std::move(kind)), number_(number), fault_(fault) {}
  int rank() const override { return world_.rank(); }
  int size() const override { return world_.size(); }
  std::shared_ptr<Comm> open(std::string_view kind, const std::vector<int>& ranks) override;
  std::shared_ptr<Comm> open_host(std::string_view kind, const std::vector<int>& ranks) override {
    return world_.open_host(kind, ranks);
  }

 private:
  World& world_;
  std::string kind_;
  int number_;
  Fault fault_;
};

}  // namespace hanok
