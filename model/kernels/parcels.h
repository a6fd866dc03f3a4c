#pragma once

#include "model/kernels/order_rows.h"

namespace hanok {

// A token travels once to each rank that holds any of its experts, as a parcel: its row of x, and for each of its K
// choices the weight and which of that rank's experts it is. All is of the dtype of x, so that one exchange carries
// what a rank needs, and its conjugate the gradients of rows and weights.
//
// Columns C: D of x; K weights, 0 for experts of other ranks; K and K digits of expert + 1 to the base 256, which every
// dtype holds exactly, 0 for experts of other ranks; zeros up to a multiple of 8 behind D.

struct ParcelOrder {
  RowOrder rows;     // slot t R + r: the parcel of token t to rank r; by rank, then by token
  Tensor counts_R2;  // int64: parcels to each rank, and choices in them
};

/// Rank r of R has the experts from r E / R on.
/// shapes: index_TK int64 [T, K] in [0, experts), row_T int64 [T]: below 0 where there is no token
/// errors: kShape if shapes do not fit; kDevice if a launch fails
ParcelOrder order_parcels(const Tensor& index_TK, const Tensor& row_T, int64_t experts, int64_t ranks);

/// shapes: x_TD, weight_TK of its dtype, index_TK; slot_M the slots of parcels alone, place_TR -> parcels_MC; saves
///         index and place
/// errors: kShape if shapes do not fit, or for more than 65,534 experts of a rank; kDevice if a launch fails
/// grads:  x_TD: sum over ranks in f32 (f64 for f64), in their order; weight_TK
Tensor pack_parcels(const Tensor& x_TD,
                    const Tensor& weight_TK,
                    const Tensor& index_TK,
                    const Tensor& slot_M,
                    const Tensor& place_TR,
                    int64_t experts);

/// Columns of a parcel.
int64_t parcel_width(int64_t width, int64_t choices);

/// Which of this rank's experts parcels want: int64 [M, K], -1 where a choice is another rank's.
Tensor experts_of_parcels(const Tensor& parcels_MC, int64_t width, int64_t choices);

struct UnpackedParcels {
  Tensor x_ND;  // a row for each expert that wants it, in the order of experts
  Tensor weight_MK;
};
/// shapes: parcels_MC, slot_N and place_MK of order_by_expert(experts_of_parcels(...)), no slot that stands nowhere
/// errors: as above
/// grads:  parcels_MC
UnpackedParcels unpack_parcels(const Tensor& parcels_MC, int64_t width, const Tensor& slot_N, const Tensor& place_MK);

}  // namespace hanok
