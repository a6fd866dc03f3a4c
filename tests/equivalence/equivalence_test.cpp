// N ranks give the numbers of one: twenty steps of a complete small Qwen3-VL on real digits and texts, on every layout.
// usage: equivalence_test            every layout, ranks as threads
//        mpirun -np N equivalence_test mpi|nccl   the layouts of N ranks
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <iostream>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "tests/equivalence/broken_world.h"
#include "tests/equivalence/trajectory.h"
#include "tests/support/processes.h"

namespace hanok {
namespace {

struct Layout : ParallelConfig {
  Layout(const ParallelConfig& config) : ParallelConfig(config) {}
  int size() const { return static_cast<int>(tp * pp * cp * std::max<int64_t>(dp, 1)); }
  MeshShape shape() const {
    return {.pp = static_cast<int>(pp),
            .dp = static_cast<int>(std::max<int64_t>(dp, 1)),
            .cp = static_cast<int>(cp),
            .tp = static_cast<int>(tp),
            .ep = static_cast<int>(ep),
            .etp = static_cast<int>(etp)};
  }
  std::string name() const {
    return describe(shape()) +
           (tp == 1    ? ""
            : sequence ? " sequence"
                       : " no sequence") +
           (cp == 1 ? "" : " " + context) + (pp == 1 ? "" : " " + schedule);
  }
};
const Layout kLayouts[] = {
    {{.tp = 2}},
    {{.tp = 2, .sequence = false}},
    {{.tp = 4}},
    {{.tp = 4, .sequence = false}},
    {{.dp = 2}},
    {{.dp = 3}},
    {{.dp = 4}},
    {{.tp = 2, .dp = 2}},
    {{.tp = 2, .dp = 2, .sequence = false}},
    {{.tp = 2, .dp = 3}},
    {{.tp = 2, .dp = 3, .sequence = false}},
    {{.pp = 2, .schedule = "1f1b"}},
    {{.pp = 2, .schedule = "interleaved"}},
    {{.pp = 2, .schedule = "zb-h1"}},
    {{.pp = 2, .schedule = "zb-v"}},
    {{.pp = 2, .pp_layers = {0, 3}}},
    {{.pp = 2, .pp_layers = {1, 2}}},
    {{.pp = 2, .pp_layers = {0.5, 2.5}}},
    {{.pp = 2, .schedule = "zb-v", .pp_layers = {1, 1.5, 0.5, 0}}},
    {{.pp = 4, .schedule = "1f1b"}},
    {{.pp = 4, .schedule = "zb-h1"}},
    {{.pp = 2, .pp_room = 1, .schedule = "1f1b"}},
    {{.pp = 4, .pp_room = 2, .schedule = "1f1b"}},
    {{.pp = 2, .pp_room = 3, .schedule = "zb-v"}},
    {{.tp = 2, .pp = 2, .schedule = "interleaved"}},
    {{.tp = 2, .pp = 2, .schedule = "zb-v", .sequence = false}},
    {{.pp = 2, .dp = 2, .schedule = "1f1b"}},
    {{.pp = 2, .dp = 2, .schedule = "zb-v"}},
    {{.tp = 2, .pp = 2, .dp = 2, .schedule = "zb-h1"}},
    {{.cp = 2, .context = "gather"}},
    {{.cp = 2, .context = "ring"}},
    {{.cp = 2, .context = "heads"}},
    {{.cp = 3, .context = "gather"}},
    {{.cp = 3, .context = "ring"}},
    {{.cp = 4, .context = "gather"}},
    {{.cp = 4, .context = "ring"}},
    {{.cp = 4, .context = "heads"}},
    {{.cp = 2, .dp = 2, .context = "gather"}},
    {{.cp = 2, .dp = 2, .context = "ring"}},
    {{.tp = 2, .cp = 2, .context = "gather"}},
    {{.tp = 2, .cp = 2, .context = "ring"}},
    {{.tp = 2, .cp = 2, .context = "heads"}},
    {{.tp = 2, .cp = 2, .sequence = false, .context = "gather"}},
    {{.tp = 2, .cp = 2, .sequence = false, .context = "ring"}},
    {{.pp = 2, .cp = 2, .context = "gather"}},
    {{.pp = 2, .cp = 2, .schedule = "zb-v", .context = "ring"}},
    {{.tp = 2, .pp = 2, .cp = 2, .schedule = "interleaved", .context = "gather"}},
    {{.tp = 2, .pp = 2, .cp = 2, .schedule = "interleaved", .context = "ring"}},
};

/// Of the model with experts.
const Layout kExpertLayouts[] = {
    {{.tp = 2}},
    {{.tp = 2, .sequence = false}},
    {{.dp = 2}},
    {{.ep = 2, .dp = 2}},
    {{.tp = 2, .ep = 2}},
    {{.tp = 2, .ep = 2, .sequence = false}},
    {{.cp = 2, .ep = 2, .context = "ring"}},
    {{.ep = 2, .dp = 4}},
    {{.ep = 4, .dp = 4}},
    {{.tp = 2, .ep = 2, .dp = 2}},
    {{.tp = 2, .ep = 4, .dp = 2}},
    {{.tp = 2, .ep = 4, .dp = 2, .sequence = false}},
    {{.tp = 4, .ep = 2, .sequence = false}},
    {{.tp = 2, .cp = 2, .ep = 4, .context = "gather"}},
    {{.pp = 2, .schedule = "1f1b"}},
    {{.pp = 2, .schedule = "zb-h1"}},
    {{.pp = 2, .ep = 2, .dp = 2, .schedule = "zb-v"}},
    {{.tp = 2, .pp = 2, .ep = 2, .schedule = "interleaved"}},
    {{.pp = 2, .cp = 2, .ep = 2, .schedule = "1f1b", .context = "gather"}},
    {{.pp = 4, .schedule = "1f1b"}},
    {{.cp = 4, .ep = 4, .context = "ring"}},
    {{.etp = 2, .dp = 2}},
    {{.tp = 2, .etp = 2, .sequence = false}},
    {{.ep = 2, .etp = 2, .dp = 4}},
    {{.etp = 4, .dp = 4}},
    {{.tp = 2, .ep = 2, .etp = 2, .dp = 2}},
    {{.tp = 2, .pp = 2, .etp = 2, .schedule = "zb-h1"}},
};

std::unique_ptr<World> processes;  // null: ranks are threads
at::Device device = at::kCPU;

/// The layouts that can be tried here.
template <size_t N>
std::vector<Layout> that_fit(const Layout (&all)[N]) {
  std::vector<Layout> out;
  for (const Layout& layout : all)
    if (!processes || processes->size() == layout.size()) out.push_back(layout);
  return out;
}
std::vector<Layout> layouts() {
  return that_fit(kLayouts);
}

void run_ranks(int size, const std::function<void(World&)>& body) {
  if (processes) return body(*processes);
  run_on_threads(size, body);
}

const Trajectory& one_rank(const TrainingCase& what) {
  static std::map<std::string, Trajectory> done;
  const std::string key = concat(what.name, " ", at::toString(what.dtype));
  const auto found = done.find(key);
  if (found != done.end()) return found->second;
  return done[key] = train(what, make_single_groups(), device);
}

/// Groups that the layout before had, of processes: to make communicators takes longer than twenty steps.
struct MadeGroups {
  std::string layout;
  Groups groups;
};
std::optional<MadeGroups> made;

Groups groups_of(World& world, const Layout& layout) {
  const bool sequence = layout.sequence && layout.tp > 1;
  if (&world != processes.get()) return make_groups(world, Mesh(layout.shape()), sequence);
  const std::string key = concat(describe(layout.shape()), sequence ? " sequence" : "");
  if (!made || made->layout != key) {
    made.reset();
    made = MadeGroups{key, make_groups(world, Mesh(layout.shape()), sequence)};
  }
  return made->groups;
}

/// The worst agreement of all ranks of this process.
Agreement worst_agreement(const Layout& layout,
                          const TrainingCase& what,
                          const std::function<Trajectory(World&)>& run) {
  const Trajectory& reference = one_rank(what);
  std::mutex mutex;
  Agreement worst;
  run_ranks(layout.size(), [&](World& world) {
    const Trajectory got = run(world);
    const Groups groups = groups_of(world, layout);
    const Agreement agreement = compare(got, reference, what, groups);
    const std::lock_guard lock(mutex);
    worst.include(agreement);
  });
  return worst;
}

bool is_printing() {
  return !processes || processes->rank() == 0;
}

TEST(Equivalence, OneRankTrains) {
  for (const TrainingCase& what : training_cases()) {
    const Trajectory& reference = one_rank(what);
    EXPECT_LT(reference.losses.back(), 0.9 * reference.losses.front()) << what.name;
    EXPECT_GT(reference.largest_update, 1e-3) << what.name;
    int clipped = 0;
    for (const double norm : reference.norms) clipped += norm > what.clip_norm;
    EXPECT_GE(clipped, 5) << what.name << ": clipping must have something to do";
    if (is_printing())
      std::cout << what.name << ": loss " << reference.losses.front() << " -> " << reference.losses.back()
                << ", largest update " << reference.largest_update << ", largest gradient "
                << reference.largest_gradient << "\n";
  }
}

TEST(Equivalence, EveryLayoutFollowsOneRank) {
  for (const TrainingCase& what : training_cases()) {
    for (const Layout& layout : layouts()) {
      const Agreement agreement = worst_agreement(
          layout, what, [&](World& world) { return train(what, groups_of(world, layout), device, layout); });
      EXPECT_TRUE(agreement.ok) << layout.name() << ", " << what.name << ": " << agreement.text();
      if (is_printing()) std::cout << layout.name() << ", " << what.name << ": " << agreement.text() << "\n";
    }
  }
}

TEST(Equivalence, ExpertsOnEveryLayoutFollowOneRank) {
  const TrainingCase what = expert_case();
  for (const Layout& layout : that_fit(kExpertLayouts)) {
    const Agreement agreement = worst_agreement(
        layout, what, [&](World& world) { return train(what, groups_of(world, layout), device, layout); });
    EXPECT_TRUE(agreement.ok) << layout.name() << ", " << what.name << ": " << agreement.text();
    if (is_printing()) std::cout << layout.name() << ", " << what.name << ": " << agreement.text() << "\n";
  }
}

// Nor does it know how many of them a forward takes at a time: the balancing loss is one of packed rows.
TEST(Equivalence, ExpertsAndTheirBalancingLossKnowNoMicroBatches) {
  for (const int64_t rows : {2, 3, 6}) {
    TrainingCase what = expert_case();
    what.rows_per_micro_batch = rows;
    for (const Layout& layout :
         std::vector<Layout>{{{.dp = 1}}, {{.ep = 2, .dp = 2}}, {{.pp = 2, .schedule = "zb-h1"}}}) {
      if (processes && processes->size() != layout.size()) continue;
      const Agreement agreement = worst_agreement(
          layout, expert_case(), [&](World& world) { return train(what, groups_of(world, layout), device, layout); });
      EXPECT_TRUE(agreement.ok) << layout.name() << ", " << rows << " rows at a time: " << agreement.text();
      if (is_printing()) std::cout << layout.name() << ", " << rows << " rows at a time: " << agreement.text() << "\n";
    }
  }
}

double largest_loss_error(const Trajectory& got, const Trajectory& exact) {
  double worst = 0;
  for (size_t i = 0; i < exact.losses.size(); ++i)
    worst = std::max(worst, std::abs(got.losses.at(i) - exact.losses[i]));
  return worst;
}

// Buckets leave during the backward and weights come under the next forward, or all at the end: the same sums.
TEST(Equivalence, OverlapChangesNoBit) {
  at::globalContext().setDeterministicAlgorithms(device.is_cuda(), /*warn_only=*/true);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  const Layout kept[] = {{{.dp = 2}},
                         {{.tp = 2, .dp = 2}},
                         {{.pp = 2, .dp = 2, .schedule = "zb-v"}},
                         {{.pp = 2, .dp = 2, .schedule = "1f1b"}},
                         {{.cp = 2, .dp = 2, .context = "ring"}}};
  const Layout with_experts[] = {{{.ep = 2, .dp = 2}}, {{.ep = 2, .dp = 4}}};
  const auto expect_same_bits = [](const TrainingCase& what, const Layout& layout) {
    ParallelConfig after = layout;
    after.overlap = false;
    run_ranks(layout.size(), [&](World& world) {
      const Groups groups = groups_of(world, layout);
      const Trajectory a = train(what, groups, device, layout), b = train(what, groups, device, after);
      EXPECT_EQ(a.losses, b.losses) << layout.name();
      EXPECT_EQ(a.norms, b.norms) << layout.name();
      for (const auto& [name, value] : a.weights)
        EXPECT_TRUE(at::equal(value, b.weights.at(name))) << layout.name() << ", " << name;
    });
  };
  for (const Layout& layout : that_fit(kept)) expect_same_bits(training_cases()[0], layout);
  for (const Layout& layout : that_fit(with_experts)) expect_same_bits(expert_case(), layout);
  at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
}

// Rounded to 16 bits after every operation, one rank strays from the exact course by some error; other orders of the
// same sums may stray by as much again, and no more.
void expect_bfloat16(const TrainingCase& exact, const std::vector<Layout>& layouts) {
  TrainingCase half = exact;
  half.dtype = at::kBFloat16;
  const double noise = largest_loss_error(one_rank(half), one_rank(exact));
  for (const Layout& layout : layouts) {
    if (device.is_cpu() && layout.size() != 2) continue;  // slow there
    std::mutex mutex;
    double worst = 0;
    run_ranks(layout.size(), [&](World& world) {
      const double error = largest_loss_error(train(half, groups_of(world, layout), device, layout), one_rank(exact));
      const std::lock_guard lock(mutex);
      worst = std::max(worst, error);
    });
    EXPECT_LE(worst, 2 * noise) << layout.name() << ", " << exact.name;
    if (is_printing())
      std::cout << layout.name() << ", " << exact.name << ", bfloat16: " << worst << ", one rank " << noise << "\n";
  }
}

TEST(Equivalence, BFloat16StraysNoFurtherThanOnOneRank) {
  expect_bfloat16(training_cases()[0], layouts());
}

TEST(Equivalence, ExpertsInBFloat16StrayNoFurtherThanOnOneRank) {
  std::vector<Layout> some = that_fit(kExpertLayouts);
  if (device.is_cpu()) std::erase_if(some, [](const Layout& layout) { return layout.ep == 1; });  // slow there
  expect_bfloat16(expert_case(), some);
}

TEST(Equivalence, FrozenWeightsStayAsTheyWere) {
  const TrainingCase what = training_cases()[1];
  Vlm model(small_model(what.tied), make_single_groups(), at::kFloat, at::kCPU);
  initialise(model, 11);
  int frozen = 0;
  for (const Param& param : model.params()) {
    const bool same = at::equal(param.value.detach(), one_rank(what).weights.at(param.spec.name));
    const bool is_tower = param.spec.name.starts_with("tower.");
    EXPECT_EQ(same, is_tower) << param.spec.name;
    frozen += is_tower;
  }
  EXPECT_GT(frozen, 0);
}

// The canaries: each fault is one that a falling loss does not show. Were a tolerance too wide, these would pass it.

void expect_disagreement_of(const TrainingCase& what,
                            const Layout& layout,
                            const std::function<Trajectory(World&, const TrainingCase&)>& run) {
  if (processes && processes->size() != layout.size()) return;
  const Agreement agreement = worst_agreement(layout, what, [&](World& world) { return run(world, what); });
  EXPECT_FALSE(agreement.ok) << layout.name() << " with a fault was taken for right: " << agreement.text();
  if (is_printing()) std::cout << layout.name() << " with a fault: " << agreement.text() << "\n";
}

void expect_disagreement(const Layout& layout, const std::function<Trajectory(World&, const TrainingCase&)>& run) {
  expect_disagreement_of(training_cases()[0], layout, run);
}

TEST(Canary, OneMissingAllReduceOfTpIsNoticed) {
  for (const bool sequence_parallel : {true, false}) {
    const Layout layout({.tp = 2, .sequence = sequence_parallel});
    expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
      BrokenWorld broken(world, "tp", 150);
      return train(what, groups_of(broken, layout), device, layout);
    });
  }
}

TEST(Canary, OneMissingGradientSumIsNoticed) {
  const Layout layout({.dp = 2});
  expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
    BrokenWorld broken(world, "grad", 7);
    return train(what, groups_of(broken, layout), device, layout);
  });
}

// On GPUs it is a matter of luck whether they have come.
TEST(Canary, WeightsReadBeforeTheyHaveComeAreNoticed) {
  if (device.is_cuda()) return;
  const Layout layout({.dp = 2});
  expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
    return train(what, groups_of(world, layout), device, layout, {.forget_to_await = true});
  });
}

// The last hop brings the gradients of keys and values home.
TEST(Canary, OneMissingHopOfTheRingIsNoticed) {
  const Layout layout({.cp = 2, .context = "ring"});
  expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
    BrokenWorld broken(world, "cp", 40, BrokenWorld::Fault::kExchange);
    return train(what, groups_of(broken, layout), device, layout);
  });
}

TEST(Canary, OneMissingSumOfGatheredGradientsIsNoticed) {
  const Layout layout({.cp = 2, .context = "gather"});
  expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
    BrokenWorld broken(world, "cp", 20);
    return train(what, groups_of(broken, layout), device, layout);
  });
}

TEST(Canary, ForgottenSumsOfReplicatedWeightsAreNoticed) {
  const Layout layout({.tp = 2});
  expect_disagreement(layout, [&](World& world, const TrainingCase& what) {
    return train(what, groups_of(world, layout), device, layout, {.forget_replicated_sums = true});
  });
}

TEST(Canary, ForgottenSumsOfExpertsAreNoticed) {
  const Layout layout{{.ep = 2, .dp = 4}};
  expect_disagreement_of(expert_case(), layout, [&](World& world, const TrainingCase& what) {
    return train(what, groups_of(world, layout), device, layout, {.forget_expert_sums = true});
  });
}

TEST(Canary, AStageWithoutTheBalancingLossIsNoticed) {
  const Layout layout{{.pp = 2}};
  expect_disagreement_of(expert_case(), layout, [&](World& world, const TrainingCase& what) {
    return train(what, groups_of(world, layout), device, layout, {.forget_balance = true});
  });
}

int run_processes(const std::string& backend) {
  if (backend == "nccl") device = own_gpu();
  processes = make_mpi_world(backend == "nccl" ? Backend::kNccl : Backend::kMpi, 120);
  print_as_one_of_several(processes->rank());
  const c10::OptionalDeviceGuard guard(device);
  const int failed = RUN_ALL_TESTS();
  made.reset();
  processes.reset();
  return failed;
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  at::set_num_threads(1);
  if (argc < 2) return RUN_ALL_TESTS();
  int level = 0, failed = 1;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  try {
    failed = hanok::run_processes(argv[1]);
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << '\n';
  }
  if (failed) MPI_Abort(MPI_COMM_WORLD, failed);
  MPI_Finalize();
  return failed;
}
