// Carries out a schedule: micro-batches through the pieces of a model that lie on the ranks of pp.
#pragma once

#include <functional>
#include <vector>

#include "parallel/comm.h"
#include "parallel/pass_times.h"
#include "parallel/pipeline_schedule.h"

namespace hanok {

/// What is done with one micro-batch on one piece; given by whoever knows the model.
class PieceWork {
 public:
  virtual ~PieceWork() = default;
  /// Empty tensors like those that enter the piece, in order; none for the first piece. Any rank may ask for any piece:
  /// shapes follow from the micro-batch, which all ranks of pp hold, so that they may differ from one to the next.
  virtual std::vector<Tensor> stream_into(int piece, int micro_batch) const = 0;
  struct Output {
    std::vector<Tensor> stream;  // for the next piece; none from the last
    Tensor loss;                 // of this piece, differentiated with weight 1; undefined: none
  };
  virtual Output forward(int piece, int micro_batch, const std::vector<Tensor>& stream) = 0;
  /// What travels besides, without a gradient of its own: with the stream into every piece but the first, and with the
  /// gradients back. An empty tensor like it (undefined: nothing does); what arrived, before the piece is run; and what
  /// this piece sends, after it was.
  virtual Tensor note_like(bool is_gradient, int micro_batch) const { return {}; }
  virtual void read_note(bool is_gradient, int micro_batch, const Tensor& note) {}
  virtual Tensor write_note(bool is_gradient, int micro_batch) const { return {}; }
  /// Whether weights of this piece train.
  virtual bool trains(int piece) const = 0;
  /// Puts the weight gradients of the coming backwards off, or no longer; and what adds those that were.
  virtual void defer_weights(bool on) = 0;
  virtual std::function<void()> take_deferred() = 0;
  /// Around what adds to gradients of a piece's weights for the last time in this step: a backward, or, with
  /// `only_weights`, products that were put off.
  virtual void last_gradients_begin(int piece, bool only_weights) {}
  virtual void last_gradients_end(int piece) {}
  /// This rank is through with a micro-batch, but for weight gradients that were put off.
  virtual void release(int micro_batch) {}
};

/// All micro-batches forward and backward; gradients end in .grad of the weights. Pieces before the first that trains
/// have no backward and are sent no gradient. A pipeline of one rank is the plain loop. The same `micro_batches` on
/// every rank of pp. Collective over it. `times`: notes what passes take.
void run_pipeline(const PipelineShape& shape, int micro_batches, PieceWork& work, Comm& pp, PassTimes* times = nullptr);

/// One micro-batch forward, without gradients: what the last piece's stream is, on the rank that holds it; nothing on
/// the others. Ranks wait for each other, so that none runs ahead.
std::vector<Tensor> run_forward(const PipelineShape& shape, int micro_batch, PieceWork& work, Comm& pp);

}  // namespace hanok
