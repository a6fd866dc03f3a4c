#include "model/layers/patch_embed.h"

#include "model/kernels/interpolate_rows.h"
#include "parallel/redistribute.h"

namespace hanok {

PatchEmbed::PatchEmbed(const BuildContext& ctx, int64_t patch_values, int64_t width, int64_t position_rows)
    : project_(ctx.in("patch_embed"), {.in = patch_values, .out = width, .bias = true}),
      position_RW_(ctx.in("position").param("weight", {.shape = {position_rows, width}, .init = ctx.random()})),
      groups_(&ctx.groups()) {}

Tensor PatchEmbed::forward(const Tensor& pixels_PC, const PositionTaps& taps) const {
  const RowRange own = sequence_range(pixels_PC.size(0), *groups_);
  const auto rows = [&](const Tensor& x) { return x.narrow(0, own.begin, own.size); };
  const Tensor patches = project_.forward(rows(pixels_PC).to(position_RW_.scalar_type()));
  return patches + interpolate_rows(position_RW_, rows(taps.index_PK), rows(taps.weight_PK));
}

}  // namespace hanok
