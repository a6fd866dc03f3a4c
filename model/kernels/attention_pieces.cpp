#include "model/kernels/attention_pieces.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "base/upload.h"
#include "model/kernels/attention_aten.h"
#include "model/kernels/attention_cpu.h"
#include "model/kernels/dispatch.h"

namespace hanok {

/// Pieces whose keys do not meet, for kernels that take every key once: of each group of pieces that share keys the
/// first, of each the second, ...
struct PieceLevel {
  std::vector<AttentionPiece> list;
  Tensor query_rows, key_rows;      // int64: rows of the pieces, one after the other
  Tensor query_starts, key_starts;  // int32 [pieces + 1]
  int64_t most_queries = 0, most_keys = 0;
};
struct PieceLevels {
  std::vector<PieceLevel> levels;
};

namespace {

PieceLevel level_of(std::vector<AttentionPiece> list, at::Device device) {
  std::vector<int64_t> queries, keys;
  std::vector<int32_t> query_starts{0}, key_starts{0};
  PieceLevel level;
  for (const AttentionPiece& piece : list) {
    for (int64_t t = piece.q_begin; t < piece.q_end; ++t) queries.push_back(t);
    for (int64_t t = piece.k_begin; t < piece.k_end; ++t) keys.push_back(t);
    query_starts.push_back(static_cast<int32_t>(queries.size()));
    key_starts.push_back(static_cast<int32_t>(keys.size()));
    level.most_queries = std::max(level.most_queries, piece.queries());
    level.most_keys = std::max(level.most_keys, piece.keys());
  }
  level.list = std::move(list);
  level.query_rows = upload(at::tensor(queries, at::kLong), device);
  level.key_rows = upload(at::tensor(keys, at::kLong), device);
  level.query_starts = upload(at::tensor(query_starts, at::kInt), device);
  level.key_starts = upload(at::tensor(key_starts, at::kInt), device);
  return level;
}

const std::vector<PieceLevel>& levels_of(const AttentionPieces& pieces, at::Device device) {
  std::vector<PieceLevel>& levels = pieces.levels->levels;
  if (!levels.empty() || pieces.list.empty()) return levels;
  std::vector<std::vector<AttentionPiece>> lists;
  size_t depth = 0;
  for (size_t i = 0; i < pieces.list.size(); ++i) {
    depth = i > 0 && pieces.list[i].k_begin == pieces.list[i - 1].k_begin ? depth + 1 : 0;
    if (lists.size() <= depth) lists.emplace_back();
    lists[depth].push_back(pieces.list[i]);
  }
  for (auto& list : lists) levels.push_back(level_of(std::move(list), device));
  return levels;
}

/// Rows of one level, heads apart. Flash reads 16-byte words: zeros behind every head change no score.
struct LevelRows {
  Tensor q_TNH, k_TKH, v_TKH;
};

Tensor heads_of(const Tensor& x, int64_t heads, int64_t width, int64_t padding) {
  const Tensor split = x.view({x.size(0), heads, width});
  return padding > 0 ? at::constant_pad_nd(split, {0, padding}) : split;
}

LevelRows rows_of(
    const Tensor& q, const Tensor& kv, const PieceLevel& level, const AttentionSizes& sizes, int64_t padding) {
  const Tensor keys = kv.index_select(0, level.key_rows);
  const int64_t width = sizes.kv_heads * sizes.width;
  return {heads_of(q.index_select(0, level.query_rows), sizes.heads, sizes.width, padding),
          heads_of(keys.narrow(1, 0, width), sizes.kv_heads, sizes.width, padding),
          heads_of(keys.narrow(1, width, width), sizes.kv_heads, sizes.width, padding)};
}

/// A stretch of query rows of one piece, heads first.
struct PlainBlock {
  Tensor q_NQH, k_NSH, v_NSH, hidden_QS;  // keys and values of every query head; hidden: undefined where all are seen
  int64_t begin = 0, rows = 0;            // of the level's queries
  int64_t first_key = 0, keys = 0;        // of the level's keys
};

/// use(block) for one block after the other: only one's scores, and one piece's keys and values, take memory.
template <class Use>
void for_each_plain_block(
    const LevelRows& rows, const PieceLevel& level, const AttentionSizes& sizes, bool causal, const Use& use) {
  constexpr int64_t kQueries = 512;
  int64_t query = 0, key = 0;
  for (const AttentionPiece& piece : level.list) {
    const auto repeated = [&](const Tensor& x) {
      return x.narrow(0, key, piece.keys()).repeat_interleave(sizes.group(), 1).transpose(0, 1);
    };
    PlainBlock block{
        .k_NSH = repeated(rows.k_TKH), .v_NSH = repeated(rows.v_TKH), .first_key = key, .keys = piece.keys()};
    for (int64_t first = 0; first < piece.queries(); first += kQueries) {
      block.begin = query + first;
      block.rows = std::min(kQueries, piece.queries() - first);
      block.q_NQH = rows.q_TNH.narrow(0, block.begin, block.rows).transpose(0, 1);
      if (causal)
        block.hidden_QS = at::ones({block.rows, piece.keys()}, rows.q_TNH.options().dtype(at::kBool))
                              .triu(piece.keys() - piece.queries() + first + 1);
      use(block);
    }
    query += piece.queries();
    key += piece.keys();
  }
}

double scale_of(const AttentionSizes& sizes) {
  return 1 / std::sqrt(static_cast<double>(sizes.width));
}

Tensor scores(const PlainBlock& block, const AttentionSizes& sizes) {
  const auto wide = accumulate_type(block.q_NQH.scalar_type());
  const Tensor score = at::matmul(block.q_NQH, block.k_NSH.transpose(1, 2)).to(wide) * scale_of(sizes);
  return block.hidden_QS.defined() ? score.masked_fill(block.hidden_QS, -std::numeric_limits<double>::infinity())
                                   : score;
}

PartialAttention plain_forward(const LevelRows& rows,
                               const PieceLevel& level,
                               const AttentionSizes& sizes,
                               bool causal) {
  std::vector<Tensor> outs, sums;
  for_each_plain_block(rows, level, sizes, causal, [&](const PlainBlock& block) {
    const Tensor score = scores(block, sizes), sum = score.logsumexp(-1);
    const Tensor p = (score - sum.unsqueeze(-1)).exp().to(block.v_NSH.scalar_type());
    outs.push_back(at::matmul(p, block.v_NSH).transpose(0, 1));
    sums.push_back(sum);
  });
  return {at::cat(outs, 0), at::cat(sums, 1)};
}

struct LevelGrads {
  Tensor dq_TNH, dk_TKH, dv_TKH;
};

LevelGrads plain_backward(const Tensor& dout_TNH,
                          const LevelRows& rows,
                          const PartialAttention& whole,
                          const PieceLevel& level,
                          const AttentionSizes& sizes,
                          bool causal) {
  const auto wide = accumulate_type(rows.q_TNH.scalar_type());
  const auto zeros = [&](const Tensor& x) { return at::zeros(x.sizes(), x.options().dtype(wide)); };
  LevelGrads grads{zeros(rows.q_TNH), zeros(rows.k_TKH), zeros(rows.v_TKH)};
  const Tensor delta_TN = (dout_TNH.to(wide) * whole.out_TX.to(wide)).sum(-1);
  for_each_plain_block(rows, level, sizes, causal, [&](const PlainBlock& block) {
    const auto queries = [&](const Tensor& x) { return x.narrow(0, block.begin, block.rows).transpose(0, 1); };
    const Tensor sum = whole.log_sum_NT.narrow(1, block.begin, block.rows).unsqueeze(-1);
    const Tensor p = (scores(block, sizes) - sum).exp(), dout = queries(dout_TNH).to(wide);
    const Tensor dp = at::matmul(dout, block.v_NSH.to(wide).transpose(1, 2));
    const Tensor ds = p * (dp - queries(delta_TN.unsqueeze(-1))) * scale_of(sizes);
    queries(grads.dq_TNH).copy_(at::matmul(ds, block.k_NSH.to(wide)));
    const auto add = [&](Tensor& to, const Tensor& from_NSH) {
      to.narrow(0, block.first_key, block.keys)
          .add_(from_NSH.view({sizes.kv_heads, sizes.group(), block.keys, sizes.width}).sum(1).transpose(0, 1));
    };
    add(grads.dk_TKH, at::matmul(ds.transpose(1, 2), block.q_NQH.to(wide)));
    add(grads.dv_TKH, at::matmul(p.transpose(1, 2), dout));
  });
  return grads;
}

/// kFlash or kPlain.
AttentionKernel choose(const Tensor& q, const AttentionSizes& sizes, AttentionKernel wanted) {
  const bool flash = attention_aten::best_kernel_of_queries(q, sizes) == AttentionKernel::kFlash;
  HANOK_REQUIRE(flash || wanted != AttentionKernel::kFlash, kConfig)
      << "attention: got flash for " << at::toString(q.scalar_type()) << " heads of width " << sizes.width
      << ", expected a kernel that this GPU can run; key stage.attention; set attention: auto";
  const bool wants_flash = wanted != AttentionKernel::kPlain && wanted != AttentionKernel::kEfficient;
  const bool takes_flash = flash && wants_flash;
  static std::atomic<unsigned> logged{0};
  const unsigned bit = takes_flash ? 1 : 2;
  if (!(logged.fetch_or(bit) & bit)) {
    HANOK_LOG_RANK0(INFO) << "attention over cp: " << (takes_flash ? "flash" : "plain") << " kernels";
  }
  return takes_flash ? AttentionKernel::kFlash : AttentionKernel::kPlain;
}

int64_t padding_of(AttentionKernel kernel, const AttentionSizes& sizes) {
  return kernel == AttentionKernel::kFlash ? -sizes.width & 7 : 0;
}

// A longest query of 1 would make flash lay out its log-sums in another way; it is an upper bound only.
int64_t flash_queries(const PieceLevel& level) {
  return std::max<int64_t>(level.most_queries, 2);
}

PartialAttention level_forward(const Tensor& q,
                               const Tensor& kv,
                               const PieceLevel& level,
                               bool causal,
                               const AttentionSizes& sizes,
                               AttentionKernel kernel) {
  const LevelRows rows = rows_of(q, kv, level, sizes, padding_of(kernel, sizes));
  if (kernel == AttentionKernel::kPlain) return plain_forward(rows, level, sizes, causal);
  const auto found = at::_flash_attention_forward(rows.q_TNH,
                                                  rows.k_TKH,
                                                  rows.v_TKH,
                                                  level.query_starts,
                                                  level.key_starts,
                                                  flash_queries(level),
                                                  level.most_keys,
                                                  0.0,
                                                  causal,
                                                  /*return_debug_mask=*/false,
                                                  scale_of(sizes));
  return {std::get<0>(found).narrow(-1, 0, sizes.width), std::get<1>(found)};
}

LevelGrads level_backward(const Tensor& dout_TNH,
                          const Tensor& q,
                          const Tensor& kv,
                          const PartialAttention& whole,
                          const PieceLevel& level,
                          bool causal,
                          const AttentionSizes& sizes,
                          AttentionKernel kernel) {
  const int64_t padding = padding_of(kernel, sizes);
  const LevelRows rows = rows_of(q, kv, level, sizes, padding);
  if (kernel == AttentionKernel::kPlain) return plain_backward(dout_TNH, rows, whole, level, sizes, causal);
  const auto padded = [&](const Tensor& x) { return at::constant_pad_nd(x, {0, padding}).contiguous(); };
  const Tensor none = at::empty({2}, at::TensorOptions(q.device()).dtype(at::kUInt64));  // state of dropout
  const auto [dq, dk, dv] = at::_flash_attention_backward(padded(dout_TNH),
                                                          rows.q_TNH,
                                                          rows.k_TKH,
                                                          rows.v_TKH,
                                                          padded(whole.out_TX),
                                                          whole.log_sum_NT.contiguous(),
                                                          level.query_starts,
                                                          level.key_starts,
                                                          flash_queries(level),
                                                          level.most_keys,
                                                          0.0,
                                                          causal,
                                                          none,
                                                          none,
                                                          scale_of(sizes));
  const auto cut = [&](const Tensor& x) { return x.narrow(-1, 0, sizes.width); };
  return {cut(dq), cut(dk), cut(dv)};
}

}  // namespace

AttentionPieces make_pieces(std::vector<AttentionPiece> list, bool causal) {
  for (size_t i = 0; i < list.size(); ++i) {
    const AttentionPiece& piece = list[i];
    const bool fits = piece.queries() > 0 && piece.keys() > 0 && (!causal || piece.keys() >= piece.queries());
    bool follows = true;
    if (i > 0) {
      const AttentionPiece& last = list[i - 1];
      follows = piece.q_begin >= last.q_end &&
                (piece.k_begin == last.k_begin ? piece.k_end >= last.k_end : piece.k_begin >= last.k_end);
    }
    HANOK_REQUIRE(fits && follows, kShape)
        << "attention piece " << i << ": got queries " << piece.q_begin << " to " << piece.q_end << ", keys "
        << piece.k_begin << " to " << piece.k_end << ", expected rising rows, and keys for every query";
  }
  return {.list = std::move(list), .causal = causal, .levels = std::make_shared<PieceLevels>()};
}

PartialAttention attention_to_nothing(const Tensor& q, const AttentionSizes& sizes) {
  const auto wide = q.options().dtype(accumulate_type(q.scalar_type()));
  return {at::zeros({q.size(0), sizes.heads * sizes.width}, q.options()),
          at::full({sizes.heads, q.size(0)}, -std::numeric_limits<double>::infinity(), wide)};
}

PartialAttention attend(const Tensor& q,
                        const Tensor& kv,
                        const AttentionPieces& pieces,
                        const AttentionSizes& sizes,
                        AttentionKernel wanted) {
  if (q.is_cpu() && wanted != AttentionKernel::kPlain) return attention_cpu::attend(q, kv, pieces, sizes);
  PartialAttention part = attention_to_nothing(q, sizes);
  if (pieces.list.empty()) return part;
  const AttentionKernel kernel = q.is_cpu() ? AttentionKernel::kPlain : choose(q, sizes, wanted);
  for (const PieceLevel& level : levels_of(pieces, q.device())) {
    const PartialAttention found = level_forward(q, kv, level, pieces.causal, sizes, kernel);
    part.out_TX.index_copy_(0, level.query_rows, found.out_TX.reshape({-1, sizes.heads * sizes.width}));
    part.log_sum_NT.index_copy_(1, level.query_rows, found.log_sum_NT);
  }
  return part;
}

void attend_backward(const Tensor& dout,
                     const Tensor& q,
                     const Tensor& kv,
                     const PartialAttention& whole,
                     const AttentionPieces& pieces,
                     const AttentionSizes& sizes,
                     AttentionKernel wanted,
                     Tensor& dq,
                     Tensor& dkv) {
  if (q.is_cpu() && wanted != AttentionKernel::kPlain)
    return attention_cpu::attend_backward(dout, q, kv, whole, pieces, sizes, dq, dkv);
  if (pieces.list.empty()) return;
  const AttentionKernel kernel = q.is_cpu() ? AttentionKernel::kPlain : choose(q, sizes, wanted);
  const auto queries = [&](const Tensor& x, const PieceLevel& level) {
    return x.index_select(0, level.query_rows).view({-1, sizes.heads, sizes.width});
  };
  for (const PieceLevel& level : levels_of(pieces, q.device())) {
    const PartialAttention of_level{queries(whole.out_TX, level), whole.log_sum_NT.index_select(1, level.query_rows)};
    const LevelGrads grads = level_backward(queries(dout, level), q, kv, of_level, level, pieces.causal, sizes, kernel);
    const auto rows = [&](const Tensor& x) { return x.to(dq.scalar_type()).reshape({x.size(0), -1}); };
    dq.index_add_(0, level.query_rows, rows(grads.dq_TNH));
    dkv.index_add_(0, level.key_rows, at::cat({rows(grads.dk_TKH), rows(grads.dv_TKH)}, 1));
  }
}

void merge_attention(PartialAttention& total, const PartialAttention& part) {
  const Tensor sum = at::logaddexp(total.log_sum_NT, part.log_sum_NT);
  const int64_t heads = sum.size(0), rows = sum.size(1);
  // Where nothing was seen both are -inf, and the share of nothing is 0.
  const auto share = [&](const Tensor& log_sum) { return (log_sum - sum).exp().nan_to_num(0).t().unsqueeze(2); };
  const auto by_head = [&](const Tensor& x) { return x.to(sum.scalar_type()).view({rows, heads, -1}); };
  total.out_TX = (by_head(total.out_TX) * share(total.log_sum_NT) + by_head(part.out_TX) * share(part.log_sum_NT))
                     .view({rows, -1});
  total.log_sum_NT = sum;
}

}  // namespace hanok
