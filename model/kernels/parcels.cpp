#include "model/kernels/parcels.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "base/error.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/move_rows.h"
#include "model/kernels/parcels_cuda.h"

namespace hanok {
namespace {

constexpr int64_t kBase = 256, kMostOwnExperts = kBase * kBase - 2;

const int64_t* whole_numbers(const Tensor& x) {
  return x.const_data_ptr<int64_t>();
}

void count_on_cpu(const CountParcels& a) {
  for (int64_t t = 0; t < a.tokens; ++t)
    for (int64_t r = 0; r < a.ranks; ++r) {
      int64_t here = 0;
      for (int64_t k = 0; k < a.choices && a.row[t] >= 0; ++k) here += a.index[t * a.choices + k] / a.own == r;
      a.rank[t * a.ranks + r] = here > 0 ? r : -1;
      a.counts[r * 2] += here > 0;
      a.counts[r * 2 + 1] += here;
    }
}

template <class T>
void write_notes_on_cpu(const WriteNotes& a, const T* weight, T* parcels) {
  for (int64_t m = 0; m < a.num_parcels; ++m) {
    const int64_t t = a.slot[m] / a.ranks, r = a.slot[m] % a.ranks;
    T* notes = parcels + m * a.columns + a.width;
    std::fill(notes, parcels + (m + 1) * a.columns, T(0));
    for (int64_t k = 0; k < a.choices; ++k) {
      const int64_t expert = a.index[t * a.choices + k];
      if (expert / a.own != r) continue;
      const int64_t told = expert % a.own + 1;
      notes[k] = weight[t * a.choices + k];
      notes[a.choices + k] = static_cast<T>(static_cast<float>(told % kBase));
      notes[2 * a.choices + k] = static_cast<T>(static_cast<float>(told / kBase));
    }
  }
}

void write_notes(const Tensor& weight_TK, const Tensor& index_TK, const Tensor& slot_M, WriteNotes a, Tensor& parcels) {
  a.index = whole_numbers(index_TK);
  a.slot = whole_numbers(slot_M);
  if (parcels.is_cpu()) {
    dispatch_float(parcels.scalar_type(), "pack_parcels", [&](auto tag) {
      using T = decltype(tag);
      write_notes_on_cpu<T>(a, weight_TK.const_data_ptr<T>(), parcels.mutable_data_ptr<T>());
    });
    return;
  }
  a.call = cuda_call(parcels, "pack_parcels");
  a.weight = data_of(weight_TK);
  a.parcels = mutable_data_of(parcels);
  launch(a);
}

template <class T>
void collect_notes_on_cpu(const CollectNotes& a, const T* dparcels, T* dweight) {
  for (int64_t i = 0; i < a.tokens * a.choices; ++i) {
    const int64_t t = i / a.choices, k = i % a.choices, place = a.place[t * a.ranks + a.index[i] / a.own];
    dweight[i] = place < 0 ? T(0) : dparcels[place * a.columns + a.width + k];
  }
}

struct Pack : torch::autograd::Function<Pack> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x_in,
                        const Tensor& weight_in,
                        const Tensor& index_TK,
                        const Tensor& slot_M,
                        const Tensor& place_TR,
                        int64_t experts) {
    const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    const int64_t width = x.size(1), ranks = place_TR.size(1), choices = index_TK.size(1);
    ctx->save_for_backward({index_TK, place_TR});
    ctx->saved_data["own"] = experts / ranks;
    ctx->saved_data["width"] = width;
    Tensor parcels = at::empty({slot_M.size(0), parcel_width(width, choices)}, x.options());
    Tensor rows = parcels.narrow(1, 0, width);
    spread_rows(x, slot_M, Tensor(), ranks, rows);
    write_notes(weight,
                index_TK,
                slot_M,
                {.num_parcels = parcels.size(0),
                 .choices = choices,
                 .ranks = ranks,
                 .own = experts / ranks,
                 .width = width,
                 .columns = parcels.size(1)},
                parcels);
    return parcels;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &index = saved[0], &place = saved[1], dparcels = grads[0].contiguous();
    const int64_t width = ctx->saved_data["width"].toInt();
    Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) {
      dx = at::empty({place.size(0), width}, dparcels.options());
      collect_rows(dparcels.narrow(1, 0, width), Tensor(), place, dx);
    }
    if (ctx->needs_input_grad(1)) {
      dweight = at::empty(index.sizes(), dparcels.options());
      CollectNotes args{.index = whole_numbers(index),
                        .place = whole_numbers(place),
                        .tokens = index.size(0),
                        .choices = index.size(1),
                        .ranks = place.size(1),
                        .own = ctx->saved_data["own"].toInt(),
                        .width = width,
                        .columns = dparcels.size(1)};
      if (dparcels.is_cpu()) {
        dispatch_float(dparcels.scalar_type(), "pack_parcels", [&](auto tag) {
          using T = decltype(tag);
          collect_notes_on_cpu<T>(args, dparcels.const_data_ptr<T>(), dweight.mutable_data_ptr<T>());
        });
      } else {
        args.call = cuda_call(dparcels, "pack_parcels");
        args.dparcels = data_of(dparcels);
        args.dweight = mutable_data_of(dweight);
        launch(args);
      }
    }
    return {dx, dweight, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct Unpack : torch::autograd::Function<Unpack> {
  static torch::autograd::tensor_list forward(torch::autograd::AutogradContext* ctx,
                                              const Tensor& parcels_MC,
                                              int64_t width,
                                              const Tensor& slot_N,
                                              const Tensor& place_MK) {
    ctx->save_for_backward({place_MK});
    ctx->saved_data["columns"] = parcels_MC.size(1);
    Tensor x = at::empty({slot_N.size(0), width}, parcels_MC.options());
    spread_rows(parcels_MC.narrow(1, 0, width), slot_N, Tensor(), place_MK.size(1), x);
    return {x, parcels_MC.narrow(1, width, place_MK.size(1)).clone(at::MemoryFormat::Contiguous)};
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const Tensor place = ctx->get_saved_variables()[0], dx = grads[0].contiguous();
    const int64_t columns = ctx->saved_data["columns"].toInt(), width = dx.size(1), choices = place.size(1);
    Tensor dparcels = at::empty({place.size(0), columns}, dx.options());
    Tensor rows = dparcels.narrow(1, 0, width);
    collect_rows(dx, Tensor(), place, rows);
    dparcels.narrow(1, width, choices).copy_(grads[1]);
    dparcels.narrow(1, width + choices, columns - width - choices).zero_();
    return {dparcels, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

ParcelOrder order_parcels(const Tensor& index_TK, const Tensor& row_T, int64_t experts, int64_t ranks) {
  HANOK_REQUIRE(index_TK.dim() == 2 && index_TK.is_contiguous() && row_T.is_contiguous() &&
                    row_T.sizes() == at::IntArrayRef{index_TK.size(0)} && ranks > 0 && experts % ranks == 0,
                kShape)
      << "order_parcels: got choices " << index_TK.sizes() << " of " << experts << " experts and rows " << row_T.sizes()
      << ", expected [T, K] of as many experts on each of " << ranks << " ranks, and [T]";
  Tensor rank_TR = at::empty({index_TK.size(0), ranks}, index_TK.options());
  Tensor counts_R2 = at::zeros({ranks, 2}, index_TK.options());
  CountParcels args{.stream = nullptr,
                    .index = whole_numbers(index_TK),
                    .row = whole_numbers(row_T),
                    .rank = rank_TR.mutable_data_ptr<int64_t>(),
                    .counts = counts_R2.mutable_data_ptr<int64_t>(),
                    .tokens = index_TK.size(0),
                    .choices = index_TK.size(1),
                    .ranks = ranks,
                    .own = experts / ranks};
  if (index_TK.is_cpu()) {
    count_on_cpu(args);
  } else {
    args.stream = cuda_stream(index_TK, "order_parcels");
    launch(args);
  }
  return {order_by_expert(rank_TR, row_T, ranks), counts_R2};
}

int64_t parcel_width(int64_t width, int64_t choices) {
  return width + (3 * choices + 7) / 8 * 8;
}

Tensor pack_parcels(const Tensor& x_TD,
                    const Tensor& weight_TK,
                    const Tensor& index_TK,
                    const Tensor& slot_M,
                    const Tensor& place_TR,
                    int64_t experts) {
  const int64_t own = experts / place_TR.size(1);
  HANOK_REQUIRE(x_TD.dim() == 2 && index_TK.is_contiguous() && weight_TK.sizes() == index_TK.sizes() &&
                    weight_TK.scalar_type() == x_TD.scalar_type() && index_TK.size(0) == x_TD.size(0) &&
                    place_TR.size(0) == x_TD.size(0) && own <= kMostOwnExperts,
                kShape)
      << "pack_parcels: got rows " << x_TD.sizes() << " with weights " << weight_TK.sizes() << " "
      << at::toString(weight_TK.scalar_type()) << ", choices " << index_TK.sizes() << " and places " << place_TR.sizes()
      << " for " << own << " experts a rank, expected [T, D], [T, K] of " << at::toString(x_TD.scalar_type())
      << ", [T, K], [T, R] and at most " << kMostOwnExperts;
  return Pack::apply(x_TD, weight_TK, index_TK, slot_M, place_TR, experts);
}

Tensor experts_of_parcels(const Tensor& parcels_MC, int64_t width, int64_t choices) {
  HANOK_REQUIRE(
      parcels_MC.dim() == 2 && parcels_MC.is_contiguous() && parcels_MC.size(1) == parcel_width(width, choices), kShape)
      << "parcels: got " << parcels_MC.sizes() << ", expected [M, " << parcel_width(width, choices) << "] for rows of "
      << width << " and " << choices << " choices";
  Tensor index = at::empty({parcels_MC.size(0), choices}, parcels_MC.options().requires_grad(false).dtype(at::kLong));
  if (parcels_MC.is_cpu()) {
    const at::NoGradGuard no_grad;
    const Tensor digits = parcels_MC.narrow(1, width + choices, 2 * choices).to(at::kLong);
    index.copy_(digits.narrow(1, 0, choices) + digits.narrow(1, choices, choices) * kBase - 1);
    return index;
  }
  launch(ReadExperts{.call = cuda_call(parcels_MC, "experts_of_parcels"),
                     .parcels = data_of(parcels_MC),
                     .index = index.mutable_data_ptr<int64_t>(),
                     .num_parcels = parcels_MC.size(0),
                     .choices = choices,
                     .width = width,
                     .columns = parcels_MC.size(1)});
  return index;
}

UnpackedParcels unpack_parcels(const Tensor& parcels_MC, int64_t width, const Tensor& slot_N, const Tensor& place_MK) {
  HANOK_REQUIRE(parcels_MC.dim() == 2 && parcels_MC.is_contiguous() && place_MK.size(0) == parcels_MC.size(0) &&
                    parcels_MC.size(1) == parcel_width(width, place_MK.size(1)),
                kShape)
      << "unpack_parcels: got " << parcels_MC.sizes() << " with places " << place_MK.sizes() << ", expected [M, "
      << parcel_width(width, place_MK.size(1)) << "] and [M, K]; rows of " << width;
  const auto out = Unpack::apply(parcels_MC, width, slot_N, place_MK);
  return {out[0], out[1]};
}

}  // namespace hanok
