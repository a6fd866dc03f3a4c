// Where a pipeline cuts a model: names, sublayers, and what is refused.
#include "model/pieces.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

ModelConfig layers(int64_t count) {
  ModelConfig config;
  config.decoder.layers = count;
  return config;
}

TEST(Pieces, NamesTellTheSublayer) {
  EXPECT_EQ(sublayer_of("decoder.layers.0.attn_norm.weight"), 0);
  EXPECT_EQ(sublayer_of("decoder.layers.0.attn.qkv.weight"), 0);
  EXPECT_EQ(sublayer_of("decoder.layers.0.mlp_norm.weight"), 1);
  EXPECT_EQ(sublayer_of("decoder.layers.17.mlp.down.weight"), 35);
  EXPECT_EQ(sublayer_of("decoder.layers.17.moe.experts.up.weight"), 35);
  for (const char* name :
       {"decoder.embed.weight", "decoder.norm.weight", "decoder.head.weight", "tower.layers.3.attn.qkv.weight"})
    EXPECT_FALSE(sublayer_of(name)) << name;
}

TEST(Pieces, EveryAttentionAndMlpIsInOnePiece) {
  const std::vector<PieceRange> pieces = cut_pieces(layers(4), 5, {0.5, 1, 0.5, 2, 0});
  std::vector<int> attentions(4), mlps(4);
  for (const PieceRange& piece : pieces) {
    for (int64_t i = 0; i < 4; ++i) {
      attentions[i] += piece.attentions().contains(i);
      mlps[i] += piece.mlps().contains(i);
      EXPECT_EQ(piece.touched().contains(i), piece.attentions().contains(i) || piece.mlps().contains(i));
    }
    EXPECT_EQ(piece.layers() * 2, static_cast<double>(piece.attentions().size() + piece.mlps().size()));
    EXPECT_EQ(piece.is_first, piece.piece == 0);
    EXPECT_EQ(piece.is_last, piece.piece == 4);
  }
  EXPECT_EQ(attentions, std::vector<int>(4, 1));
  EXPECT_EQ(mlps, std::vector<int>(4, 1));
  EXPECT_EQ(pieces[1].attentions().first, 1);
  EXPECT_EQ(pieces[1].mlps().first, 0);
}

TEST(Pieces, NumbersThatDoNotFitAreRefused) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), huge = 1e300;
  for (const std::vector<double>& given :
       std::vector<std::vector<double>>{{1, 2}, {0.3, 3.7}, {-1, 5}, {4}, {1, 2, 1}, {nan, 4}, {huge, 4}, {4.5, -0.5}})
    EXPECT_ERROR(error_of([&] { cut_pieces(layers(4), 2, given); }), ErrorKind::kConfig, "whole or with a half");
  EXPECT_ERROR(error_of([] { cut_pieces(layers(4), 3, {2, 0, 2}); }), ErrorKind::kConfig, "above 0 but for the first");
  EXPECT_EQ(most_pieces(layers(4)), 10);
  EXPECT_EQ(cut_pieces(layers(4), 10, {}).size(), 10);
  EXPECT_ERROR(error_of([] { cut_pieces(layers(4), 11, {}); }), ErrorKind::kConfig, "expected at most 10");
}

}  // namespace
}  // namespace hanok
