#include "model/layers/context_attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "base/upload.h"
#include "configs/schema/check.h"
#include "parallel/collectives.h"

namespace hanok {
namespace {

/// A part of one sample that a rank holds without a gap.
struct Stretch {
  RowInterval rows;  // of the micro-batch
  int64_t local;     // first one among the rank's rows
  int64_t sample;    // its first row
};

std::vector<Stretch> stretches_of(const Tensor& row_starts, const std::vector<RowInterval>& intervals) {
  const int32_t* starts = row_starts.const_data_ptr<int32_t>();
  const int64_t count = row_starts.size(0) - 1;
  std::vector<Stretch> out;
  int64_t local = 0, s = 0;
  for (const RowInterval& interval : intervals) {
    for (int64_t begin = interval.begin; begin < interval.end;) {
      while (s + 1 < count && starts[s + 1] <= begin) ++s;
      const int64_t end = std::min<int64_t>(interval.end, starts[s + 1]);
      out.push_back({{begin, end}, local, starts[s]});
      local += end - begin;
      begin = end;
    }
  }
  return out;
}

AttentionPieces gathered_pieces(const std::vector<Stretch>& own) {
  std::vector<AttentionPiece> list;
  for (const Stretch& s : own) list.push_back({s.local, s.local + s.rows.size(), s.sample, s.rows.end});
  return make_pieces(std::move(list), /*causal=*/true);
}

/// Own rows of a sample stand in its order: against themselves they are a sample of their own.
AttentionPieces own_pieces(const std::vector<Stretch>& own) {
  std::vector<AttentionPiece> list;
  int64_t sample = -1;
  for (const Stretch& s : own) {
    const int64_t end = s.local + s.rows.size();
    if (s.sample == sample) {
      list.back().q_end = list.back().k_end = end;
    } else {
      list.push_back({s.local, end, s.local, end});
    }
    sample = s.sample;
  }
  return make_pieces(std::move(list), /*causal=*/true);
}

/// Another rank's rows of a sample lie before or behind a stretch, never inside: it sees a beginning of them, whole.
AttentionPieces pieces_of_other(const std::vector<Stretch>& own, const std::vector<Stretch>& other) {
  std::vector<AttentionPiece> list;
  size_t first = 0;
  for (const Stretch& s : own) {
    while (first < other.size() && other[first].sample < s.sample) ++first;
    int64_t end = -1;
    for (size_t i = first; i < other.size() && other[i].sample == s.sample && other[i].rows.end <= s.rows.begin; ++i)
      end = other[i].local + other[i].rows.size();
    if (end >= 0) list.push_back({s.local, s.local + s.rows.size(), other[first].local, end});
  }
  return make_pieces(std::move(list), /*causal=*/false);
}

/// Rows in another order, which `inverse` undoes: neither direction adds anything up.
struct PermuteRows : torch::autograd::Function<PermuteRows> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& order,
                        const Tensor& inverse) {
    ctx->save_for_backward({inverse});
    return x.index_select(0, order);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    return {grads[0].index_select(0, ctx->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

class ContextWork : public BlockWork {
 public:
  ContextWork(const ContextRows& context, const AttentionSizes& sizes) : context_(context), sizes_(sizes) {}

 protected:
  const ContextRows context_;  // handles: the backward outlives the micro-batch's forward
  const AttentionSizes sizes_;
};

class GatheredAttention : public ContextWork {
 public:
  using ContextWork::ContextWork;

  void forward(int, const Tensor& q, const Tensor& kv, std::vector<Tensor>& partial) const override {
    const PartialAttention found =
        attend(q, kv.index_select(0, context_.order_T), context_.gathered, sizes_, context_.kernel);
    partial = {found.out_TX, found.log_sum_NT};
  }
  Tensor finish(const Tensor&, std::vector<Tensor>& partial) const override {
    const Tensor out = partial[0];
    partial.erase(partial.begin());
    return out;
  }
  void backward(int,
                const Tensor& q,
                const Tensor& kv,
                const Tensor& out,
                const Tensor& dout,
                const std::vector<Tensor>& kept,
                Tensor& dq,
                Tensor& dkv) const override {
    Tensor ordered = at::zeros_like(dkv);
    attend_backward(dout,
                    q,
                    kv.index_select(0, context_.order_T),
                    {out, kept[0]},
                    context_.gathered,
                    sizes_,
                    context_.kernel,
                    dq,
                    ordered);
    at::index_select_out(dkv, ordered, 0, context_.inverse_T);
  }
};

class RingAttention : public ContextWork {
 public:
  using ContextWork::ContextWork;

  void forward(int source, const Tensor& q, const Tensor& kv, std::vector<Tensor>& partial) const override {
    const AttentionPieces& pieces = context_.of_rank[source];
    if (partial.empty()) {
      const PartialAttention own = attend(q, kv, pieces, sizes_, context_.kernel);
      partial = {own.out_TX.to(own.log_sum_NT.scalar_type()), own.log_sum_NT};
      return;
    }
    if (pieces.list.empty()) return;
    PartialAttention total{partial[0], partial[1]};
    merge_attention(total, attend(q, kv, pieces, sizes_, context_.kernel));
    partial = {total.out_TX, total.log_sum_NT};
  }
  Tensor finish(const Tensor& q, std::vector<Tensor>& partial) const override {
    const Tensor out = partial[0].to(q.scalar_type());
    partial.erase(partial.begin());
    return out;
  }
  void backward(int source,
                const Tensor& q,
                const Tensor& kv,
                const Tensor& out,
                const Tensor& dout,
                const std::vector<Tensor>& kept,
                Tensor& dq,
                Tensor& dkv) const override {
    attend_backward(dout, q, kv, {out, kept[0]}, context_.of_rank[source], sizes_, context_.kernel, dq, dkv);
  }
};

/// [R, n shares of the columns of `parts`] -> all rows of this rank's share: [n R, share].
Tensor rows_for_heads(const std::vector<Tensor>& parts_RNH, const std::shared_ptr<Comm>& group) {
  const int64_t n = group->size(), rows = parts_RNH[0].size(0), width = parts_RNH[0].size(2);
  std::vector<Tensor> shares;
  for (const Tensor& part : parts_RNH) shares.push_back(part.reshape({rows, n, part.size(1) / n, width}));
  const Tensor by_rank = at::cat(shares, 2).transpose(0, 1).contiguous();
  const std::vector<int64_t> counts(n, rows);
  return exchange_rows(by_rank.view({n * rows, -1}), {counts, counts}, group);
}

Tensor heads_for_rows(const Tensor& x, const std::shared_ptr<Comm>& group) {
  const int64_t n = group->size(), rows = x.size(0) / n;
  const std::vector<int64_t> counts(n, rows);
  const Tensor by_rank = exchange_rows(x, {counts, counts}, group).view({n, rows, -1});
  return by_rank.transpose(0, 1).reshape({rows, -1});
}

Tensor repeated(const Tensor& x_RKH, int64_t times) {
  if (times == 1) return x_RKH;
  return x_RKH.unsqueeze(2).expand({-1, -1, times, -1}).reshape({x_RKH.size(0), -1, x_RKH.size(2)});
}

Tensor attention_by_heads(const Tensor& qkv, const AttentionSizes& sizes, const ContextRows& context) {
  const int64_t n = context.group->size(), kv = sizes.kv_heads;
  HANOK_REQUIRE(heads_fit_over_cp(sizes.heads, kv, n), kConfig)
      << "parallel.context: got heads with " << sizes.heads << " query and " << kv
      << " key/value heads on a rank of tp, expected numbers that cp = " << n
      << " divides (key/value heads: or that divide it); set parallel.context: gather or ring";
  const std::vector<Tensor> parts =
      qkv.view({qkv.size(0), sizes.heads + 2 * kv, sizes.width}).split_with_sizes({sizes.heads, kv, kv}, 1);
  const int64_t times = kv % n == 0 ? 1 : n / kv;
  const Tensor rows = rows_for_heads({parts[0], repeated(parts[1], times), repeated(parts[2], times)}, context.group);
  const Tensor ordered = PermuteRows::apply(rows, context.order_T, context.inverse_T);
  const Tensor out = segment_attention(ordered, sizes.heads / n, kv * times / n, context.all, /*causal=*/true);
  return heads_for_rows(PermuteRows::apply(out, context.inverse_T, context.order_T), context.group);
}

}  // namespace

Segments make_row_segments(const Tensor& row_starts,
                           const RowCut& cut,
                           int64_t rows,
                           at::Device device,
                           const Execution& execution,
                           const Groups& groups) {
  if (!cut.is_cut()) return make_segments(row_starts, rows, device, execution.attention);
  const int rank = groups.cp->rank(), size = groups.cp->size();
  HANOK_REQUIRE(static_cast<int>(cut.of_rank.size()) == size, kShape)
      << "row cut: got " << cut.of_rank.size() << " parts, expected " << size << "; group " << groups.cp->name();
  auto context = std::make_shared<ContextRows>();
  context->group = groups.cp;
  context->way = execution.context;
  context->kernel = execution.attention;
  Segments segments = make_segments(row_starts, rows * size, device, execution.attention);
  const RowCut::Places places = cut.places();
  const Tensor order = places.rank_T * rows + places.row_T;
  context->order_T = upload(order, device);
  context->inverse_T = upload(order.argsort(), device);
  const std::vector<Stretch> own = stretches_of(row_starts, cut.of_rank[rank]);
  if (context->way == ContextWay::kAuto || context->way == ContextWay::kGather)
    context->gathered = gathered_pieces(own);
  for (int r = 0; context->way == ContextWay::kRing && r < size; ++r)
    context->of_rank.push_back(r == rank ? own_pieces(own)
                                         : pieces_of_other(own, stretches_of(row_starts, cut.of_rank[r])));
  context->all = segments;
  segments.context = std::move(context);
  return segments;
}

Tensor context_attention(const Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const ContextRows& context) {
  const int64_t width = qkv.size(1) / (num_heads + 2 * num_kv_heads);
  const AttentionSizes sizes{num_heads, num_kv_heads, width, /*causal=*/true};
  const bool by_heads =
      context.way == ContextWay::kHeads || (context.way == ContextWay::kAuto && qkv.is_cuda() &&
                                            heads_fit_over_cp(num_heads, num_kv_heads, context.group->size()));
  if (by_heads) return attention_by_heads(qkv, sizes, context);
  const Tensor q = qkv.narrow(1, 0, num_heads * width);
  const Tensor kv = qkv.narrow(1, num_heads * width, 2 * num_kv_heads * width);
  if (context.way == ContextWay::kRing)
    return work_around_ring(q, kv, std::make_shared<RingAttention>(context, sizes), context.group);
  return work_on_gathered(q, kv, std::make_shared<GatheredAttention>(context, sizes), context.group);
}

}  // namespace hanok
