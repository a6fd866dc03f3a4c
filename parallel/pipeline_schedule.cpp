#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <compare>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <tuple>

#include "base/error.h"

namespace hanok {
namespace {

using Kind = Action::Kind;

struct Name {
  std::string_view name;
  Schedule schedule;
};
constexpr Name kNames[] = {{"1f1b", Schedule::k1F1B},
                           {"interleaved", Schedule::kInterleaved},
                           {"zb-h1", Schedule::kZeroBubbleH1},
                           {"zb-v", Schedule::kZeroBubbleV}};

std::vector<Action> one_forward_one_backward(int ranks, int rank, int m, int room = 0) {
  std::vector<Action> out;
  const int after = ranks - 1 - rank;
  // What comes back takes as many passes as what went there: no rank has a use for more.
  const int warmup = std::min(m, after + std::min(room, after));
  for (int i = 0; i < warmup; ++i) out.push_back({Kind::kForward, i});
  for (int i = 0; i < m; ++i) {
    if (warmup + i < m) out.push_back({Kind::kForward, warmup + i});
    out.push_back({Kind::kBackward, i});
  }
  return out;
}

/// Micro-batches go round the ranks in groups of `ranks`, chunk after chunk. A last group that is not full is filled up
/// in thought and left out of the list: what remains keeps its order.
std::vector<Action> interleaved(const PipelineShape& shape, int rank, int m) {
  const int p = shape.ranks, v = shape.chunks;
  const int filled = (m + p - 1) / p * p, total = filled * v;
  const auto forward = [&](int k) { return Action{Kind::kForward, k / (p * v) * p + k % p, k % (p * v) / p}; };
  const auto backward = [&](int k) {
    return Action{Kind::kBackward, k / (p * v) * p + k % p, v - 1 - k % (p * v) / p};
  };
  const int warmup = std::min(total, 2 * (p - 1 - rank) + (v - 1) * p);
  std::vector<Action> out;
  for (int k = 0; k < warmup; ++k) out.push_back(forward(k));
  for (int k = 0; k < total; ++k) {
    if (warmup + k < total) out.push_back(forward(warmup + k));
    out.push_back(backward(k));
  }
  std::erase_if(out, [&](const Action& action) { return action.micro_batch >= m; });
  return out;
}

/// The order of 1F1B; weight gradients follow `rank` backwards behind, so that every rank holds what the first one
/// holds, and fill the gap at the end.
std::vector<Action> zero_bubble_h1(int ranks, int rank, int m) {
  std::vector<Action> out;
  int weights = 0;
  for (const Action& action : one_forward_one_backward(ranks, rank, m)) {
    if (action.kind == Kind::kForward) {
      out.push_back(action);
      continue;
    }
    const int i = action.micro_batch;
    out.push_back({Kind::kBackwardInput, i});
    const bool is_cooling = i + ranks - rank >= m + 1;
    if (is_cooling || i - weights >= rank) out.push_back({Kind::kBackwardWeight, weights++});
  }
  while (weights < m) out.push_back({Kind::kBackwardWeight, weights++});
  return out;
}

using Lists = std::vector<std::vector<Action>>;  // by rank

/// When the last rank is done.
double span_of(const Lists& actions,
               const PipelineShape& shape,
               int micro_batches,
               const std::vector<PassCosts>& pieces,
               double passing) {
  constexpr double kNotYet = -1;
  const auto table = [&] {
    return std::vector<std::vector<double>>(pieces.size(), std::vector<double>(micro_batches, kNotYet));
  };
  auto forward_end = table(), backward_end = table();
  std::vector<size_t> next(shape.ranks);
  std::vector<double> now(shape.ranks);
  // When what an action waits for is there; kNotYet: not known yet.
  const auto ready = [&](int rank, int piece, const Action& action) {
    const auto from = [&](const std::vector<std::vector<double>>& ends, int other) {
      const double end = ends[other][action.micro_batch];
      return end < 0 || place_of(shape, other).rank == rank ? end : end + passing;
    };
    if (action.kind == Kind::kForward) return piece == 0 ? 0.0 : from(forward_end, piece - 1);
    if (action.kind == Kind::kBackwardWeight) return 0.0;
    return piece + 1 == shape.pieces() ? 0.0 : from(backward_end, piece + 1);
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      while (next[rank] < actions[rank].size()) {
        const Action& action = actions[rank][next[rank]];
        const int piece = piece_of(shape, {rank, action.chunk});
        const double start = ready(rank, piece, action);
        if (start < 0) break;
        const PassCosts& seconds = pieces[piece];
        now[rank] = std::max(now[rank], start);
        switch (action.kind) {
          case Kind::kForward: forward_end[piece][action.micro_batch] = now[rank] += seconds.forward; break;
          case Kind::kBackward:
            backward_end[piece][action.micro_batch] = now[rank] += seconds.backward_input + seconds.backward_weight;
            break;
          case Kind::kBackwardInput:
            backward_end[piece][action.micro_batch] = now[rank] += seconds.backward_input;
            break;
          case Kind::kBackwardWeight: now[rank] += seconds.backward_weight; break;
        }
        ++next[rank];
        moved = true;
      }
    }
  }
  return *std::max_element(now.begin(), now.end());
}

/// Ticks of an action.
struct Ticks {
  int forward, input, weight;
  auto operator<=>(const Ticks&) const = default;
};
/// kTypicalCosts. Lists made for equal times would let all ranks wait for input gradients in every micro-batch.
constexpr Ticks kTypical = {10, 14, 8};

/// What comes first where several actions are possible; weight gradients, which nobody waits for, always come last.
enum class Urgent { kInputs, kForwards, kLaterForwards };

/// What ranks go by.
struct Rule {
  Ticks ticks;
  Urgent first;
  int kept_for_later = 1;  // live chunks that the first chunk leaves to the later one; without any, ranks may get stuck
};

/// The V: whenever a rank is free, it takes the most urgent action that is possible. The lists are what they did.
class ZeroBubbleV {
 public:
  /// `ticks`: of each piece.
  ZeroBubbleV(const PipelineShape& shape, int micro_batches, const Rule& rule, std::vector<Ticks> ticks)
      : shape_(shape),
        m_(micro_batches),
        rule_(rule),
        ticks_(std::move(ticks)),
        ranks_(shape.ranks),
        forward_end_(table()),
        backward_end_(table()) {}

  /// Empty: all wait for each other.
  Lists run() {
    const size_t all = static_cast<size_t>(3 * m_) * shape_.pieces();
    Lists out(shape_.ranks);
    for (size_t done = 0; done < all;) {
      std::vector<std::pair<int, Action>> tick;  // decided by what has ended by now
      for (int rank = 0; rank < shape_.ranks; ++rank) {
        Action action{};
        if (ranks_[rank].free_at > now_) continue;
        if (choose(rank, action)) tick.emplace_back(rank, action);
      }
      for (const auto& [rank, action] : tick) {
        note(rank, action);
        out[rank].push_back(action);
      }
      done += tick.size();
      int next = kNever;  // nothing changes before an action ends
      for (const Rank& rank : ranks_)
        if (rank.free_at > now_) next = std::min(next, rank.free_at);
      if (next == kNever) return {};
      now_ = next;
    }
    return out;
  }

 private:
  struct Rank {
    int forwards[2] = {0, 0}, inputs[2] = {0, 0}, weights[2] = {0, 0};
    int live = 0, free_at = 0;
  };
  static constexpr int kNever = 1 << 30;
  using Table = std::vector<std::vector<int>>;  // [piece][micro_batch]: tick at which it is done

  Table table() const { return Table(shape_.pieces(), std::vector<int>(m_, kNever)); }

  bool has_input(int rank, int chunk) const {
    const int piece = piece_of(shape_, {rank, chunk}), i = ranks_[rank].inputs[chunk];
    if (i >= m_ || forward_end_[piece][i] > now_) return false;
    return piece + 1 == shape_.pieces() || backward_end_[piece + 1][i] <= now_;
  }

  bool has_forward(int rank, int chunk) const {
    const int piece = piece_of(shape_, {rank, chunk}), i = ranks_[rank].forwards[chunk];
    const int room = 2 * shape_.ranks + shape_.room - (chunk == 0 ? rule_.kept_for_later : 0);
    if (i >= m_ || ranks_[rank].live >= room) return false;
    return piece == 0 || forward_end_[piece - 1][i] <= now_;
  }

  bool choose(int rank, Action& action) const {
    const Rank& r = ranks_[rank];
    const auto take_forward = [&](int chunk) {
      if (!has_forward(rank, chunk)) return false;
      action = {Kind::kForward, r.forwards[chunk], chunk};
      return true;
    };
    const auto take_input = [&](int chunk) {
      if (!has_input(rank, chunk)) return false;
      action = {Kind::kBackwardInput, r.inputs[chunk], chunk};
      return true;
    };
    if (rule_.first != Urgent::kInputs && take_forward(1)) return true;
    if (rule_.first == Urgent::kForwards && take_forward(0)) return true;
    if (take_input(1) || take_input(0) || take_forward(1) || take_forward(0)) return true;
    for (const int chunk : {1, 0})
      if (r.weights[chunk] < r.inputs[chunk]) return action = {Kind::kBackwardWeight, r.weights[chunk], chunk}, true;
    return false;
  }

  void note(int rank, const Action& action) {
    Rank& r = ranks_[rank];
    const int piece = piece_of(shape_, {rank, action.chunk});
    switch (action.kind) {
      case Kind::kForward:
        forward_end_[piece][action.micro_batch] = r.free_at = now_ + ticks_[piece].forward;
        ++r.forwards[action.chunk];
        ++r.live;
        break;
      case Kind::kBackwardInput:
        backward_end_[piece][action.micro_batch] = r.free_at = now_ + ticks_[piece].input;
        ++r.inputs[action.chunk];
        break;
      default:
        r.free_at = now_ + ticks_[piece].weight;
        ++r.weights[action.chunk];
        --r.live;
    }
  }

  PipelineShape shape_;
  int m_;
  Rule rule_;
  std::vector<Ticks> ticks_;
  std::vector<Rank> ranks_;
  Table forward_end_, backward_end_;
  int now_ = 0;
};

struct Course {
  Lists actions;
  double waiting = 0;  // beside the mean of what ranks work
};

/// Which rule brings what into which gap cannot be told beforehand. Of 90 pipelines of like pieces that were played
/// through, 2 to 8 ranks and p to 8 p micro-batches, one of these was always the best or within a hundredth of it.
constexpr Rule kRules[] = {{{10, 12, 10}, Urgent::kLaterForwards},
                           {{10, 8, 8}, Urgent::kForwards},
                           {{10, 16, 12}, Urgent::kForwards},
                           {{10, 18, 8}, Urgent::kInputs},
                           {{10, 10, 6}, Urgent::kLaterForwards},
                           {{10, 14, 12}, Urgent::kForwards},
                           {{10, 16, 8}, Urgent::kInputs, 0},
                           {{10, 14, 8}, Urgent::kForwards}};
/// Pieces that differ ask for others: so many are drawn, where lists are short; of 27 pipelines of an 8B they took 0.5
/// % off the step on average, and 3 % where eight ranks have room for more chunks.
constexpr int kDrawnRules = 400, kDrawnActions = 2'000'000;

/// What the pieces take: as long as kTypical on average, in finer steps where they differ. Whole numbers: lists are the
/// same on every rank.
std::vector<Ticks> ticks_of(const std::vector<PassCosts>& pieces) {
  constexpr double kFiner = 12;
  double sum = 0;
  for (const PassCosts& costs : pieces) sum += costs.all();
  const double mean = kFiner * (kTypical.forward + kTypical.input + kTypical.weight);
  const auto ticks = [&](double cost) {
    return std::max(
        1, sum > 0 ? static_cast<int>(std::lround(cost / sum * mean * static_cast<double>(pieces.size()))) : 1);
  };
  std::vector<Ticks> out;
  for (const PassCosts& costs : pieces)
    out.push_back({ticks(costs.forward), ticks(costs.backward_input), ticks(costs.backward_weight)});
  return out;
}

/// As the rule looks at them.
std::vector<Ticks> seen_by(const Rule& rule, std::vector<Ticks> pieces) {
  const auto scaled = [](int ticks, int ours, int typical) {
    return std::max(1, (ticks * ours + typical / 2) / typical);
  };
  for (Ticks& piece : pieces)
    piece = {scaled(piece.forward, rule.ticks.forward, kTypical.forward),
             scaled(piece.input, rule.ticks.input, kTypical.input),
             scaled(piece.weight, rule.ticks.weight, kTypical.weight)};
  return pieces;
}

double peak_live(const std::vector<Action>& actions, const std::vector<double>& sizes) {
  double live = 0, peak = 0;
  for (const Action& action : actions) {
    const double size = sizes.at(action.chunk);
    if (action.kind == Kind::kForward) live += size;
    if (action.kind == Kind::kBackward || action.kind == Kind::kBackwardWeight) live -= size;
    peak = std::max(peak, live);
  }
  return peak;
}

/// Tries rules on one pipeline and keeps the best lists.
class RuleTrial {
 public:
  /// `views`: what the pieces take, first as they are, then as rules may look at them as well. `limit`: lists than
  /// which none may hold more, the first to beat; null: none.
  RuleTrial(const PipelineShape& shape, int micro_batches, std::vector<std::vector<Ticks>> views, const Lists* limit)
      : shape_(shape), m_(micro_batches), views_(std::move(views)), limit_(limit) {
    if (limit_) most_ = peaks(*limit_);
    for (const Ticks& piece : views_.front()) {
      pieces_.push_back({double(piece.forward), double(piece.input), double(piece.weight)});
      work_ += pieces_.back().all() * m_ / shape.ranks;
    }
  }

  Course run() {
    if (limit_) keep_better(*limit_);
    for (const int room : std::set<int>{0, shape_.room / 2, shape_.room})  // more of it may lead a rule astray
      for (const Rule& rule : kRules)
        for (const std::vector<Ticks>& view : views_) consider(rule, room, view);
    const int64_t actions = int64_t{3} * shape_.pieces() * std::max(1, m_);
    std::minstd_rand random;  // NOLINT: the same on every rank
    const auto drawn = [&random](int least, int most) {
      return least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
    };
    for (int i = 0; i < std::min<int64_t>(kDrawnRules, kDrawnActions / actions); ++i) {
      Rule rule{.ticks = {10, drawn(6, 21), drawn(4, 15)}, .first = static_cast<Urgent>(drawn(0, 2))};
      rule.kept_for_later = drawn(0, 2);
      const std::vector<Ticks>& view = views_[drawn(0, static_cast<int>(views_.size()) - 1)];
      const int room = drawn(0, std::max(1, shape_.room));
      consider(rule, 0, view);
      if (shape_.room > 0) consider(rule, i % 2 == 0 ? shape_.room : room, view);
    }
    best_.waiting = waiting(best_.actions, 0);
    return std::move(best_);
  }

 private:
  double waiting(const Lists& actions, double passing) const {
    return span_of(actions, shape_, m_, pieces_, passing) / work_ - 1;
  }

  void consider(const Rule& rule, int room, const std::vector<Ticks>& view) {
    PipelineShape with = shape_;
    with.room = room;
    const Lists actions = ZeroBubbleV(with, m_, rule, seen_by(rule, view)).run();
    if (!actions.empty() && !holds_too_much(actions)) keep_better(actions);
  }

  /// What each rank holds at most, where chunks weigh what their forwards were planned to take.
  std::vector<double> peaks(const Lists& actions) const {
    std::vector<double> out;
    for (int rank = 0; rank < shape_.ranks; ++rank) {
      std::vector<double> sizes;
      for (int chunk = 0; chunk < shape_.chunks; ++chunk) {
        const int piece = piece_of(shape_, {rank, chunk});
        sizes.push_back(shape_.costs.empty() ? 1 : shape_.costs[piece].forward);
      }
      out.push_back(peak_live(actions[rank], sizes));
    }
    return out;
  }

  bool holds_too_much(const Lists& actions) const {
    if (!limit_) return false;
    const std::vector<double> held = peaks(actions);
    for (int rank = 0; rank < shape_.ranks; ++rank)
      if (held[rank] > most_[rank] * (1 + 1e-9)) return true;
    return false;
  }

  void keep_better(const Lists& actions) {
    constexpr double kPassing = 0.005;  // of what a rank works for a micro-batch
    const double waits = waiting(actions, kPassing * work_ / std::max(1, m_));
    if (best_.actions.empty() || waits < best_.waiting) best_ = {actions, waits};
  }

  const PipelineShape& shape_;
  const int m_;
  std::vector<std::vector<Ticks>> views_;
  const Lists* limit_;
  std::vector<double> most_;  // that it holds, by rank
  std::vector<PassCosts> pieces_;
  double work_ = 0;
  Course best_;
};

/// The same, made once for each pipeline and number of micro-batches: every step asks for the lists of all ranks.
const Course& zero_bubble_v(const PipelineShape& shape, int micro_batches) {
  static std::mutex mutex;  // ranks may be threads
  using Views = std::vector<std::vector<Ticks>>;
  static std::map<std::tuple<int, int, int, bool, Views>, Course> known;
  const bool is_measured = !shape.measured.empty();
  const Lists* limit = nullptr;
  if (is_measured) {
    PipelineShape planned = shape;
    planned.measured.clear();
    limit = &zero_bubble_v(planned, micro_batches).actions;
  }
  // Lists for pieces that are alike, or as they were thought to be, are at times the better ones, too.
  Views views;
  if (is_measured) views.push_back(ticks_of(shape.measured));
  if (!shape.costs.empty()) views.push_back(ticks_of(shape.costs));
  views.emplace_back(shape.pieces(), kTypical);
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace({shape.ranks, shape.room, micro_batches, is_measured, views});
  if (is_new) entry->second = RuleTrial(shape, micro_batches, views, limit).run();
  return entry->second;
}

}  // namespace

Schedule schedule_of(std::string_view name) {
  std::vector<std::string_view> known;
  for (const Name& entry : kNames) {
    if (entry.name == name) return entry.schedule;
    known.push_back(entry.name);
  }
  HANOK_FAIL(kConfig) << "schedule: got " << name << ", expected one of " << known << "; key parallel.schedule";
}

std::string_view name(Schedule schedule) {
  return std::find_if(std::begin(kNames), std::end(kNames), [&](const Name& n) { return n.schedule == schedule; })
      ->name;
}

PiecePlace place_of(const PipelineShape& shape, int piece) {
  if (shape.schedule == Schedule::kZeroBubbleV && piece >= shape.ranks) return {2 * shape.ranks - 1 - piece, 1};
  return {piece % shape.ranks, piece / shape.ranks};
}

int piece_of(const PipelineShape& shape, const PiecePlace& place) {
  if (shape.schedule == Schedule::kZeroBubbleV && place.chunk == 1) return 2 * shape.ranks - 1 - place.rank;
  return place.chunk * shape.ranks + place.rank;
}

std::vector<Action> pipeline_actions(const PipelineShape& shape, int rank, int micro_batches) {
  assert(rank >= 0 && rank < shape.ranks && micro_batches >= 0);
  switch (shape.schedule) {
    case Schedule::k1F1B: return one_forward_one_backward(shape.ranks, rank, micro_batches, shape.room);
    case Schedule::kInterleaved: return interleaved(shape, rank, micro_batches);
    case Schedule::kZeroBubbleH1: return zero_bubble_h1(shape.ranks, rank, micro_batches);
    case Schedule::kZeroBubbleV: return zero_bubble_v(shape, micro_batches).actions.at(rank);
  }
  return {};
}

double pipeline_span(const PipelineShape& shape,
                     int micro_batches,
                     const std::vector<PassCosts>& pieces,
                     double passing) {
  Lists actions;
  for (int rank = 0; rank < shape.ranks; ++rank) actions.push_back(pipeline_actions(shape, rank, micro_batches));
  return span_of(actions, shape, micro_batches, pieces, passing);
}

double peak_live_chunks(const PipelineShape& shape, int rank, int micro_batches, std::vector<double> sizes) {
  if (sizes.empty()) sizes.assign(shape.chunks, 1);
  return peak_live(pipeline_actions(shape, rank, micro_batches), sizes);
}

double waiting_share(const PipelineShape& shape, int micro_batches) {
  if (micro_batches == 0) return 0;
  const double plain = (shape.ranks - 1.0) / micro_batches;
  switch (shape.schedule) {
    case Schedule::k1F1B: return plain;
    case Schedule::kInterleaved: return plain / shape.chunks;
    case Schedule::kZeroBubbleH1: return plain / 3;
    case Schedule::kZeroBubbleV: return zero_bubble_v(shape, micro_batches).waiting;
  }
  return plain;
}

}  // namespace hanok
