// What this rank computes of a micro-batch: all of it, or with context parallelism its rows and its pictures.
#pragma once

#include <functional>

#include "dataio/batch.h"
#include "model/vlm.h"

namespace hanok {

/// Brings a host tensor to the model's device.
using Bring = std::function<Tensor(const Tensor&)>;
/// The tensors of a micro-batch on the model's device, without copies where they are there already. `bring`: how they
/// get there; empty: upload().
ModelInput model_input(const Batch& batch, const Vlm& model, const Bring& bring = {});

/// Records where the tokens of a forward go in the layers with experts: packed rows of the micro-batch, of this rank's
/// rows of it. `tokens_of_step`: over all ranks; 0: the balancing loss has no share (evaluation).
std::shared_ptr<Routing> routing_of(const Batch& batch, const RowCut& cut, const Vlm& model, double tokens_of_step);

/// Tokens, targets, weights and positions of this rank's rows. What tells of samples and of sums stays that of the
/// whole micro-batch.
Batch own_rows(const Batch& batch, const RowCut& cut, const Groups& groups);

/// Values of some rows of a micro-batch: `values` are those of the chosen rows that this rank holds, in order -> of all
/// chosen rows, on every rank of cp. Collective over cp; nothing is rounded. No gradient.
/// shapes: chosen_N int64 host: rows of the micro-batch, rising or not; values [held, ...] -> [N, ...]
Tensor gather_chosen(const Tensor& values, const Tensor& chosen_N, const RowCut& cut, const Groups& groups);

/// Those of the chosen rows that this rank holds, as its own rows: int64 host.
Tensor held_of(const Tensor& chosen_N, const RowCut& cut, const Groups& groups);

}  // namespace hanok
