// In which order a pipeline rank works through the micro-batches of a step. Pure functions: every rank computes its own
// list, and sends and receives follow from it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hanok {

enum class Schedule {
  k1F1B,          // one forward, one backward
  kInterleaved,   // several chunks a rank, dealt round: the gap shrinks by their number
  kZeroBubbleH1,  // as 1F1B, weight gradients later: they fill two thirds of the gap at 1F1B's memory
  kZeroBubbleV,   // two chunks a rank, the second on the way back: the last chunk is on the first rank
};
/// errors: kConfig listing the known names
Schedule schedule_of(std::string_view name);
std::string_view name(Schedule schedule);

/// What one micro-batch costs on one piece or a part of it, in any unit: seconds, or FLOPs.
struct PassCosts {
  double forward = 0, backward_input = 0, backward_weight = 0;
  double all() const { return forward + backward_input + backward_weight; }
  PassCosts& operator+=(const PassCosts& other) {
    forward += other.forward;
    backward_input += other.backward_input;
    backward_weight += other.backward_weight;
    return *this;
  }
};
/// Of layers with matrices of equal FLOPs in each pass, where nothing better is known: input gradients pass attention,
/// norms and activations, which have no weights to speak of.
constexpr PassCosts kTypicalCosts = {1, 1.4, 0.8};

/// A pipeline of `ranks` x `chunks` pieces of a model.
struct PipelineShape {
  Schedule schedule = Schedule::k1F1B;
  int ranks = 1, chunks = 1;
  int room = 0;  // chunks that a rank may hold beyond what the schedule asks for: see pipeline_actions
  /// Of the pieces, the same on every rank; empty: all alike. The lists of the V are made for it.
  std::vector<PassCosts> costs = {};
  /// The same as it was measured; empty: not yet. The lists of the V are made for these then, and no rank holds more
  /// than with those made for `costs`.
  std::vector<PassCosts> measured = {};
  int pieces() const { return ranks * chunks; }
  bool splits_weight_gradients() const {
    return schedule == Schedule::kZeroBubbleH1 || schedule == Schedule::kZeroBubbleV;
  }
};

/// Where a piece (0: the first of the model) lies.
struct PiecePlace {
  int rank = 0, chunk = 0;
  friend bool operator==(const PiecePlace&, const PiecePlace&) = default;
};
PiecePlace place_of(const PipelineShape& shape, int piece);
int piece_of(const PipelineShape& shape, const PiecePlace& place);

struct Action {
  enum class Kind {
    kForward,
    kBackward,        // both gradients
    kBackwardInput,   // what the piece before waits for
    kBackwardWeight,  // the rest
  };
  Kind kind;
  int micro_batch = 0, chunk = 0;
  friend bool operator==(const Action&, const Action&) = default;
};

/// What `rank` does in a step of any number of micro-batches. A forward needs that of the piece before, a backward its
/// own forward and the backward of the piece after, weight gradients their backward. All ranks' lists together never
/// wait for each other in a circle, provided that sending does not wait.
/// Live chunks on a rank (from forward to the end of its backward) are at most
///   1F1B: min(m, p - rank + min(room, p - rank - 1))
///   interleaved: its warm-up, about 2 (p - rank - 1) + (chunks - 1) p + 1
///   zero-bubble H1: min(m, p)
///   zero-bubble V: 2 p + room chunks of half the size
/// With room the V waits less, and a rank of 1F1B has its next micro-batch before it needs it: without, a pass that
/// takes longer than the others, or a message, keeps its neighbours waiting.
/// source: Megatron-LM arXiv:2104.04473 (1F1B, interleaved); zero bubble arXiv:2401.10241 (H1), 2405.15362 (V)
std::vector<Action> pipeline_actions(const PipelineShape& shape, int rank, int micro_batches);

/// How long a step takes whose pieces take these seconds, `passing` seconds from one rank to the next.
double pipeline_span(const PipelineShape& shape,
                     int micro_batches,
                     const std::vector<PassCosts>& pieces,
                     double passing);

/// The most that a rank holds at once of chunks of micro-batches, in their sizes; without sizes each counts 1.
double peak_live_chunks(const PipelineShape& shape, int rank, int micro_batches, std::vector<double> sizes = {});
/// Time that ranks wait, as a share of the time that they work, where a backward takes as long as two forwards and a
/// weight gradient as long as an input gradient: (p - 1) / m, divided by the chunks or, for H1, by three; for V
/// what its lists take where an input gradient takes 1.4 times and a weight gradient 0.8 times as long as a forward of
/// as many FLOPs.
double waiting_share(const PipelineShape& shape, int micro_batches);

}  // namespace hanok
