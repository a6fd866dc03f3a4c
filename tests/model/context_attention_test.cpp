// Attention over rows that lie on several ranks: pieces against a dense softmax, and each way against one rank.
#include "model/layers/context_attention.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <mutex>
#include <numeric>

#include "tests/model/gradients.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

struct Case {
  int64_t heads, kv_heads, width;
  std::vector<AttentionPiece> pieces;
  int64_t q_rows, k_rows;
  bool causal;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {1, 1, 4, {{0, 1, 0, 3}}, 1, 3, true},
      {4, 2, 20, {{0, 7, 0, 30}, {7, 70, 0, 133}, {75, 80, 140, 171}}, 90, 180, true},  // shared keys, gaps
      {4, 2, 20, {{0, 7, 0, 30}, {7, 70, 0, 133}, {75, 80, 140, 171}}, 90, 180, false},
      {6, 2, 12, {{3, 64, 5, 8}, {64, 65, 5, 130}}, 65, 130, false},
      {2, 1, 8, {{0, 600, 0, 700}, {600, 601, 700, 702}}, 601, 702, true},  // longer than one stretch of query rows
      {2, 1, 8, {}, 5, 4, false},
  };
  return kCases;
}

Tensor heads_first(const Tensor& x, int64_t of, int64_t heads, int64_t width) {
  return x.view({x.size(0), of, width}).repeat_interleave(heads / of, 1).transpose(0, 1);
}

struct Dense {
  Tensor out, log_sum;
};

/// One dense softmax in f64 with a mask; rows without a key: zeros.
Dense dense(const Tensor& q, const Tensor& kv, const Case& c) {
  Tensor allowed = at::zeros({c.q_rows, c.k_rows}, at::kBool);
  for (const AttentionPiece& p : c.pieces) {
    Tensor part = at::ones({p.queries(), p.keys()}, at::kBool);
    if (c.causal) part = part.tril(p.keys() - p.queries());
    allowed.slice(0, p.q_begin, p.q_end).slice(1, p.k_begin, p.k_end).copy_(part);
  }
  const int64_t columns = c.kv_heads * c.width;
  const Tensor k = heads_first(kv.narrow(1, 0, columns).contiguous(), c.kv_heads, c.heads, c.width);
  const Tensor v = heads_first(kv.narrow(1, columns, columns).contiguous(), c.kv_heads, c.heads, c.width);
  const Tensor score =
      (at::matmul(heads_first(q, c.heads, c.heads, c.width), k.transpose(1, 2)) / std::sqrt(double(c.width)))
          .masked_fill(allowed.logical_not(), -INFINITY);
  const Tensor seen = allowed.any(1).view({1, -1, 1});
  const Tensor p = at::where(seen, score.masked_fill(seen.logical_not(), 0).softmax(-1), at::zeros({}, q.options()));
  return {at::matmul(p, v).transpose(0, 1).reshape({c.q_rows, -1}), score.logsumexp(-1)};
}

AttentionSizes sizes_of(const Case& c) {
  return {c.heads, c.kv_heads, c.width, c.causal};
}

TEST(AttentionPieces, MatchADenseSoftmaxWithTheirMask) {
  for (const AttentionKernel kernel : {AttentionKernel::kAuto, AttentionKernel::kPlain}) {  // kPlain: as on a GPU
    for (const Case& c : cases()) {
      const AttentionPieces pieces = make_pieces(c.pieces, c.causal);
      const Tensor q = random_f64({c.q_rows, c.heads * c.width}).set_requires_grad(true);
      const Tensor kv = random_f64({c.k_rows, 2 * c.kv_heads * c.width}).set_requires_grad(true);
      const Dense expected = dense(q, kv, c);
      const Tensor dout = random_f64(expected.out.sizes());
      const auto grads = torch::autograd::grad({expected.out}, {q, kv}, {dout});
      for (const auto dtype : {at::kDouble, at::kFloat}) {
        at::NoGradGuard no_grad;
        const Tensor q_in = q.detach().to(dtype), kv_in = kv.detach().to(dtype);
        const PartialAttention got = attend(q_in, kv_in, pieces, sizes_of(c), kernel);
        EXPECT_CLOSE(got.out_TX, expected.out, c.k_rows);
        EXPECT_CLOSE(got.log_sum_NT, expected.log_sum, c.k_rows);
        Tensor dq = at::zeros_like(q_in), dkv = at::zeros_like(kv_in);
        attend_backward(dout.to(dtype), q_in, kv_in, got, pieces, sizes_of(c), kernel, dq, dkv);
        // Where a row sees few keys, what the softmax's gradient is the difference of is larger than the difference.
        const double before =
            (dout.abs().max() * kv.abs().max() * at::maximum(q.abs().max(), kv.abs().max())).item<double>();
        EXPECT_LE((dq.to(at::kDouble) - grads[0]).abs().max().item<double>(), tolerance(dtype, c.k_rows, before));
        EXPECT_CLOSE(dkv, grads[1], c.k_rows);
      }
    }
  }
}

TEST(AttentionPieces, PartsOfTheKeysAreMergedByTheirLogSums) {
  const AttentionSizes sizes{4, 2, 12, false};
  const int64_t rows = 37, keys = 90;
  const Tensor q = random_f64({rows, 48}), kv = random_f64({keys, 48}), dout = random_f64({rows, 48});
  const auto piece = [](int64_t q_begin, int64_t q_end, int64_t begin, int64_t end) {
    return make_pieces({{q_begin, q_end, begin, end}}, false);
  };
  const PartialAttention whole = attend(q, kv, piece(5, rows, 0, keys), sizes, AttentionKernel::kAuto);
  PartialAttention total = attend(q, kv, piece(5, rows, 0, 31), sizes, AttentionKernel::kAuto);
  merge_attention(total, attend(q, kv, piece(5, rows, 31, keys), sizes, AttentionKernel::kAuto));
  EXPECT_CLOSE(total.out_TX, whole.out_TX, keys);
  EXPECT_CLOSE(total.log_sum_NT, whole.log_sum_NT, keys);
  EXPECT_TRUE(at::isneginf(total.log_sum_NT.narrow(1, 0, 5)).all().item<bool>());  // nobody saw a key
  EXPECT_EQ(total.out_TX.narrow(0, 0, 5).abs().max().item<double>(), 0);
  Tensor dq = at::zeros_like(q), dkv = at::zeros_like(kv), dq_parts = at::zeros_like(q), dkv_parts = at::zeros_like(kv);
  attend_backward(dout, q, kv, whole, piece(5, rows, 0, keys), sizes, AttentionKernel::kAuto, dq, dkv);
  for (const auto& [begin, end] : {std::pair{0, 31}, {31, 90}})
    attend_backward(dout, q, kv, whole, piece(5, rows, begin, end), sizes, AttentionKernel::kAuto, dq_parts, dkv_parts);
  EXPECT_CLOSE(dq_parts, dq, keys);
  EXPECT_CLOSE(dkv_parts, dkv, keys);
}

TEST(AttentionPieces, RefuseRowsThatDoNotRise) {
  EXPECT_ERROR(error_of([&] { make_pieces({{0, 4, 0, 3}}, true); }), ErrorKind::kShape, "keys for every query");
  EXPECT_ERROR(error_of([&] { make_pieces({{0, 4, 0, 4}, {3, 5, 4, 6}}, true); }), ErrorKind::kShape, "rising rows");
  EXPECT_ERROR(error_of([&] { make_pieces({{0, 4, 0, 4}, {4, 5, 2, 6}}, false); }), ErrorKind::kShape, "rising rows");
}

struct Packed {
  std::vector<int32_t> lengths;
  int64_t heads, kv_heads, width;
  int64_t rows() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
  Tensor starts() const {
    std::vector<int32_t> out{0};
    for (const int32_t length : lengths) out.push_back(out.back() + length);
    return at::tensor(out, at::kInt);
  }
};

struct OfOneRank {
  Tensor out, dqkv;
};

OfOneRank one_rank(const Tensor& qkv, const Tensor& dout, const Packed& p) {
  const Tensor x = qkv.detach().clone().set_requires_grad(true);
  const Tensor out =
      segment_attention(x, p.heads, p.kv_heads, make_segments(p.starts(), p.rows(), at::kCPU), /*causal=*/true);
  return {out.detach(), torch::autograd::grad({out}, {x}, {dout})[0]};
}

/// Results and gradients of all ranks, put together.
OfOneRank on_ranks(const Tensor& qkv, const Tensor& dout, const Packed& p, int ranks, ContextWay way) {
  OfOneRank all{at::zeros_like(dout), at::zeros_like(qkv)};
  std::mutex mutex;
  run_on_threads(ranks, [&](World& world) {
    const Groups groups = make_groups(world, Mesh({.cp = ranks}), false);
    const RowCut cut = cut_rows(p.starts(), ranks);
    const Tensor rows = ranks == 1 ? at::arange(p.rows(), at::kLong) : cut.rows_of(groups.cp->rank());
    const Segments segments = make_row_segments(p.starts(), cut, rows.size(0), at::kCPU, {.context = way}, groups);
    const Tensor x = qkv.index_select(0, rows).set_requires_grad(true);
    const Tensor out = segments.context ? context_attention(x, p.heads, p.kv_heads, *segments.context)
                                        : segment_attention(x, p.heads, p.kv_heads, segments, true);
    const Tensor grad = torch::autograd::grad({out}, {x}, {dout.index_select(0, rows)})[0];
    const std::lock_guard lock(mutex);
    all.out.index_copy_(0, rows, out.detach());
    all.dqkv.index_copy_(0, rows, grad);
  });
  return all;
}

constexpr ContextWay kWays[] = {ContextWay::kGather, ContextWay::kRing, ContextWay::kHeads};

const std::vector<Packed>& packings() {
  static const std::vector<Packed> kPackings = {
      {{240}, 12, 12, 4},
      {{1, 100, 3, 61, 50, 24, 1}, 12, 4, 8},  // 240
      {{12, 12, 24, 180, 12}, 24, 2, 4},       // fewer key/value heads than four ranks
  };
  return kPackings;
}

TEST(ContextAttention, EveryWayGivesTheNumbersOfOneRank) {
  for (const Packed& p : packings()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const Tensor qkv = at::randn({p.rows(), (p.heads + 2 * p.kv_heads) * p.width}, dtype);
      const Tensor dout = at::randn({p.rows(), p.heads * p.width}, dtype);
      const OfOneRank expected = one_rank(qkv, dout, p);
      for (const int ranks : {1, 2, 3, 4}) {
        for (const ContextWay way : kWays) {
          const bool can = way != ContextWay::kHeads || p.kv_heads % ranks == 0 || ranks % p.kv_heads == 0;
          if (!can) continue;
          const OfOneRank got = on_ranks(qkv, dout, p, ranks, way);
          const auto name = concat("way ", static_cast<int>(way), " on ", ranks);
          EXPECT_TRUE(close_enough(got.out, expected.out, 240)) << name;
          EXPECT_TRUE(close_enough(got.dqkv, expected.dqkv, 240)) << name;
          // Nothing is merged: each row meets all of its keys at once, in their order.
          if (way != ContextWay::kRing) {
            EXPECT_TRUE(bit_equal(got.out, expected.out)) << name;
          }
        }
      }
    }
  }
}

TEST(ContextAttention, GatheredRowsDoNotSeeNeighbours) {
  const int64_t length = 77, before = 100;
  const Packed with{{100, 77, 63}, 4, 2, 12}, alone{{77, 3}, 4, 2, 12};
  const Tensor sample = at::randn({length, 96}), dout = at::randn({length, 48});
  const auto laid = [&](const Packed& p, int64_t at, const Tensor& x, double noise) {
    Tensor row = at::randn({p.rows(), x.size(1)}) * noise;
    row.narrow(0, at, length).copy_(x);
    return row;
  };
  for (const ContextWay way : kWays) {
    const OfOneRank first = on_ranks(laid(with, before, sample, 1), laid(with, before, dout, 1), with, 2, way);
    const OfOneRank other = on_ranks(laid(with, before, sample, 50), laid(with, before, dout, 50), with, 2, way);
    EXPECT_TRUE(bit_equal(first.out.narrow(0, before, length), other.out.narrow(0, before, length)));
    EXPECT_TRUE(bit_equal(first.dqkv.narrow(0, before, length), other.dqkv.narrow(0, before, length)));
    const OfOneRank moved = on_ranks(laid(alone, 0, sample, 1), laid(alone, 0, dout, 1), alone, 2, way);
    if (way == ContextWay::kGather) {
      EXPECT_TRUE(bit_equal(first.out.narrow(0, before, length), moved.out.narrow(0, 0, length)));
    }
  }
}

TEST(ContextAttention, HeadsThatCannotBeDealtAreRefused) {
  const Packed p{{24}, 6, 3, 4};
  const Tensor qkv = at::randn({24, 48}), dout = at::randn({24, 24});
  EXPECT_ERROR(
      error_of([&] { on_ranks(qkv, dout, p, 2, ContextWay::kHeads); }), ErrorKind::kConfig, "parallel.context");
}

}  // namespace
}  // namespace hanok
