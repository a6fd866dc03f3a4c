#include "parallel/pipeline_run.h"

#include <torch/csrc/autograd/autograd.h>

#include <map>

#include "base/error.h"

namespace hanok {
namespace {

using Kind = Action::Kind;

/// What travels to a piece: the stream from the one before, or gradients of it from the one after.
struct Message {
  bool is_gradient = false;
  int piece = 0;  // where it is used
  int micro_batch = 0;
  auto key() const { return std::tuple(is_gradient, piece, micro_batch); }
};
using MessageKey = std::tuple<bool, int, int>;

/// One step on one rank.
class Runner {
 public:
  Runner(const PipelineShape& shape, int micro_batches, PieceWork& work, Comm& pp, PassTimes* times)
      : shape_(shape), m_(micro_batches), work_(work), pp_(pp), times_(times) {
    bool any = false;
    for (int piece = 0; piece < shape.pieces(); ++piece) backward_reaches_.push_back(any |= work.trains(piece));
    for (int peer = 0; peer < shape.ranks; ++peer)
      if (peer != pp.rank())
        expected_.push_back(messages_from(peer));
      else
        expected_.emplace_back();
  }

  void run() {
    std::vector<int> to_do(m_, 2 * shape_.chunks);    // forwards and backwards
    std::vector<int> gradients(shape_.pieces(), m_);  // micro-batches that have still to add to those of a piece
    for (const Action& action : pipeline_actions(shape_, pp_.rank(), m_)) {
      const int piece = piece_of(shape_, {pp_.rank(), action.chunk});
      const bool adds = action.kind == Kind::kBackward || action.kind == Kind::kBackwardWeight;
      const bool is_last = adds && backward_reaches_[piece] && --gradients[piece] == 0;
      if (is_last) work_.last_gradients_begin(piece, action.kind == Kind::kBackwardWeight);
      action_ = action;
      switch (action.kind) {
        case Kind::kForward: forward(piece, action.micro_batch); break;
        case Kind::kBackward: backward(piece, action.micro_batch); break;
        case Kind::kBackwardInput: backward_input(piece, action.micro_batch); break;
        case Kind::kBackwardWeight: backward_weight(piece, action.micro_batch); break;
      }
      if (is_last) work_.last_gradients_end(piece);
      if (action.kind != Kind::kBackwardWeight && --to_do[action.micro_batch] == 0) work_.release(action.micro_batch);
    }
  }

 private:
  struct Live {
    std::vector<Tensor> entered;  // leaves
    PieceWork::Output left;
  };
  using Key = std::pair<int, int>;  // piece, micro-batch

  /// What the pass under way has to do, without the wait for what it needs.
  template <class Work>
  void timed(int piece, const Work& work) {
    if (times_) times_->begin(action_, piece);
    work();
    if (times_) times_->end();
  }

  int rank_of(int piece) const { return place_of(shape_, piece).rank; }
  /// Whether gradients of what enters this piece are wanted: something before it trains.
  bool wants_gradient(int piece) const { return piece > 0 && backward_reaches_[piece - 1]; }

  /// Everything that `peer` sends to this rank, in its order: offers are taken as they were made.
  std::vector<Message> messages_from(int peer) const {
    std::vector<Message> out;
    for (const Action& action : pipeline_actions(shape_, peer, m_)) {
      const int piece = piece_of(shape_, {peer, action.chunk});
      if (action.kind == Kind::kBackwardWeight) continue;
      const bool is_gradient = action.kind != Kind::kForward;
      const int to = is_gradient ? piece - 1 : piece + 1;
      const bool is_sent = is_gradient ? wants_gradient(piece) : to < shape_.pieces();
      if (is_sent && rank_of(to) == pp_.rank()) out.push_back({is_gradient, to, action.micro_batch});
    }
    return out;
  }

  /// Tensors like those of a message.
  std::vector<Tensor> room_for(const Message& message) const {
    auto room = work_.stream_into(message.is_gradient ? message.piece + 1 : message.piece, message.micro_batch);
    const Tensor note = work_.note_like(message.is_gradient, message.micro_batch);
    if (note.defined()) room.push_back(note);
    return room;
  }

  void send(const Message& message, std::vector<Tensor> tensors) {
    const Tensor note = work_.write_note(message.is_gradient, message.micro_batch);
    if (note.defined()) tensors.push_back(note);
    const int to = rank_of(message.piece);
    if (to == pp_.rank()) {
      arrived_[message.key()] = tensors;
      return;
    }
    for (const Tensor& tensor : tensors) pp_.offer(tensor.contiguous(), to);
  }

  std::vector<Tensor> receive(const Message& wanted) {
    const int from = rank_of(wanted.is_gradient ? wanted.piece + 1 : wanted.piece - 1);
    while (!arrived_.contains(wanted.key())) {
      const Message next = expected_[from].at(taken_[from]++);
      std::vector<Tensor> tensors = room_for(next);
      for (Tensor& tensor : tensors) pp_.take(tensor, from);
      arrived_[next.key()] = std::move(tensors);
    }
    std::vector<Tensor> tensors = std::move(arrived_.extract(wanted.key()).mapped());
    if (work_.note_like(wanted.is_gradient, wanted.micro_batch).defined()) {
      work_.read_note(wanted.is_gradient, wanted.micro_batch, tensors.back());
      tensors.pop_back();
    }
    return tensors;
  }

  void forward(int piece, int micro_batch) {
    Live live;
    if (piece > 0) live.entered = receive({false, piece, micro_batch});
    if (wants_gradient(piece))
      for (Tensor& tensor : live.entered) tensor = tensor.detach().requires_grad_();
    timed(piece, [&] { live.left = work_.forward(piece, micro_batch, live.entered); });
    if (piece + 1 < shape_.pieces()) {
      std::vector<Tensor> values;
      for (const Tensor& tensor : live.left.stream) values.push_back(tensor.detach());
      check_stream(piece + 1, micro_batch, values);
      send({false, piece + 1, micro_batch}, values);
    }
    if (backward_reaches_[piece]) live_[{piece, micro_batch}] = std::move(live);
  }

  /// What is sent must be what the other side has made room for.
  void check_stream(int piece, int micro_batch, const std::vector<Tensor>& values) const {
    const std::vector<Tensor> room = work_.stream_into(piece, micro_batch);
    bool fits = room.size() == values.size();
    for (size_t i = 0; fits && i < room.size(); ++i)
      fits = room[i].sizes() == values[i].sizes() && room[i].scalar_type() == values[i].scalar_type();
    HANOK_REQUIRE(fits, kShape) << "pipeline: got another stream into piece " << piece << " than announced, "
                                << values.size() << " tensors, expected " << room.size() << "; micro-batch "
                                << micro_batch << "; the model's stream_into and run_piece must agree";
  }

  void backward(int piece, int micro_batch) {
    if (!backward_reaches_[piece]) return;
    const bool has_next = piece + 1 < shape_.pieces();
    std::vector<Tensor> gradients;
    if (has_next) gradients = receive({true, piece, micro_batch});
    Live live = std::move(live_.extract({piece, micro_batch}).mapped());
    std::vector<Tensor> roots, of_roots;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!live.left.stream[i].requires_grad()) continue;  // what trains has no share in this micro-batch
      roots.push_back(live.left.stream[i]);
      of_roots.push_back(gradients[i]);
    }
    if (live.left.loss.defined() && live.left.loss.requires_grad()) {
      roots.push_back(live.left.loss);
      of_roots.push_back(at::ones_like(live.left.loss));
    }
    if (!roots.empty()) timed(piece, [&] { torch::autograd::backward(roots, of_roots); });
    if (!wants_gradient(piece)) return;
    std::vector<Tensor> back;
    for (const Tensor& tensor : live.entered)
      back.push_back(tensor.grad().defined() ? tensor.grad() : at::zeros_like(tensor));
    send({true, piece - 1, micro_batch}, back);
  }

  void backward_input(int piece, int micro_batch) {
    work_.defer_weights(true);
    backward(piece, micro_batch);
    work_.defer_weights(false);
    if (backward_reaches_[piece]) deferred_[{piece, micro_batch}] = work_.take_deferred();
  }

  void backward_weight(int piece, int micro_batch) {
    if (backward_reaches_[piece]) timed(piece, deferred_.extract({piece, micro_batch}).mapped());
  }

  PipelineShape shape_;
  int m_;
  PieceWork& work_;
  Comm& pp_;
  PassTimes* times_;                            // null: nobody asks
  Action action_{};                             // under way
  std::vector<bool> backward_reaches_;          // by piece: it or one before trains
  std::vector<std::vector<Message>> expected_;  // by rank
  std::map<int, size_t> taken_;                 // of those, by rank
  std::map<MessageKey, std::vector<Tensor>> arrived_;
  std::map<Key, Live> live_;
  std::map<Key, std::function<void()>> deferred_;
};

}  // namespace

void run_pipeline(const PipelineShape& shape, int micro_batches, PieceWork& work, Comm& pp, PassTimes* times) {
  Runner(shape, micro_batches, work, pp, times).run();
}

std::vector<Tensor> run_forward(const PipelineShape& shape, int micro_batch, PieceWork& work, Comm& pp) {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> stream;
  for (int piece = 0; piece < shape.pieces(); ++piece) {
    if (place_of(shape, piece).rank != pp.rank()) continue;
    const int before = piece > 0 ? place_of(shape, piece - 1).rank : pp.rank();
    if (before != pp.rank()) {
      stream = work.stream_into(piece, micro_batch);
      for (Tensor& tensor : stream) pp.recv(tensor, before);
    }
    stream = work.forward(piece, micro_batch, stream).stream;
    const int after = piece + 1 < shape.pieces() ? place_of(shape, piece + 1).rank : pp.rank();
    if (after == pp.rank()) continue;
    for (const Tensor& tensor : stream) pp.send(tensor.contiguous(), after);
    stream.clear();
  }
  return stream;
}

}  // namespace hanok
