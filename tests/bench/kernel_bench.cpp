// Bandwidth of every memory-bound kernel beside that of a device copy.
// Bytes are the fewest that the operation can move: each input read once, each output written once.
#include <algorithm>

#include "base/cuda/call.h"
#include "base/error.h"
#include "model/kernels/gelu_tanh_cuda.h"
#include "model/kernels/interpolate_rows_cuda.h"
#include "model/kernels/layer_norm_cuda.h"
#include "model/kernels/lookup_rows_cuda.h"
#include "model/kernels/qk_rope_cuda.h"
#include "model/kernels/rms_norm_cuda.h"
#include "model/kernels/scatter_rows_cuda.h"
#include "model/kernels/sum_by_row_cuda.h"
#include "model/kernels/swiglu_cuda.h"
#include "model/kernels/vocab_softmax_cuda.h"
#include "parallel/squared_norm_cuda.h"
#include "tests/bench/measure.h"
#include "trainer/adamw_update_cuda.h"

namespace hanok {
namespace {

/// A kernel with its arguments.
template <class Args>
void kernel(const Bench& bench, const std::string& name, double bytes, const Args& args) {
  bench(name, bytes, [&] { launch(args); });
}

void norms(const Bench& bench, int64_t rows, int64_t dim, at::ScalarType dtype) {
  const Tensor x = randn({rows, dim}, dtype), dy = randn({rows, dim}, dtype), other = randn({rows, dim}, dtype);
  const Tensor weight = randn({dim}, dtype), dparams = at::empty({2, dim}, on(dtype));
  const Tensor y = at::empty_like(x), sum = at::empty_like(x);
  const Tensor mean = at::zeros({rows}, on(at::kFloat)), rstd = at::ones({rows}, on(at::kFloat));
  const CudaCall call = cuda_call(x, "bench");
  const Tensor partial = at::empty({norm_partials(call.type, rows, dim), 2, dim}, on(at::kFloat));
  const void *in = data_of(x), *grad = data_of(dy), *added = data_of(other), *w = data_of(weight);
  void *out = mutable_data_of(y), *total = mutable_data_of(sum), *m = mutable_data_of(mean), *r = mutable_data_of(rstd);
  void *dw = mutable_data_of(dparams), *scratch = mutable_data_of(partial);
  const auto passes = [&](const std::string& name, int count, const auto& args) {
    kernel(bench, concat(name, " ", at::toString(dtype), " ", rows, "x", dim), count * bytes_of(x), args);
  };
  passes("rms_norm", 2, RmsNormForward{call, in, nullptr, w, nullptr, out, r, rows, dim, 1e-6});
  passes("add_rms_norm", 4, RmsNormForward{call, in, added, w, total, out, r, rows, dim, 1e-6});
  passes("layer_norm", 2, LayerNormForward{call, in, w, w, out, m, r, rows, dim, 1e-6});
  passes("rms_norm backward", 3, RmsNormBackward{call, grad, in, w, nullptr, r, out, dw, scratch, rows, dim});
  passes("add_rms_norm backward", 4, RmsNormBackward{call, grad, in, w, added, r, out, dw, scratch, rows, dim});
  passes("layer_norm backward", 3, LayerNormBackward{call, grad, in, w, m, r, out, dw, scratch, rows, dim});
}

void units(const Bench& bench, int64_t rows, int64_t width) {
  const Tensor h = randn({rows, 2 * width}), dh = at::empty_like(h), y = randn({rows, width}), dx = at::empty_like(y);
  const CudaCall call = cuda_call(h, "bench");
  const void *in = data_of(h), *grad = data_of(y);
  void* out = mutable_data_of(dx);
  const auto passes = [&](const std::string& name, int count, const auto& args) {
    kernel(bench, concat(name, " BFloat16 ", rows, "x", width), count * bytes_of(y), args);
  };
  passes("swiglu", 3, SwiGluForward{call, in, out, rows, width});
  passes("swiglu backward", 5, SwiGluBackward{call, grad, in, mutable_data_of(dh), rows, width});
  passes("gelu_tanh", 2, GeluTanhForward{call, grad, out, y.numel()});
  passes("gelu_tanh backward", 3, GeluTanhBackward{call, grad, in, out, y.numel()});
}

void rope(const Bench& bench, const QkRopeSizes& sizes, bool norm, bool wide_tables) {
  const int64_t all = sizes.heads + 2 * sizes.kv_heads, half = sizes.width / 2;
  const auto table = wide_tables ? at::kFloat : at::kBFloat16;
  const Tensor x = randn({sizes.rows, all * sizes.width}), dy = randn({sizes.rows, all * sizes.width});
  const Tensor y = at::empty_like(x), weight = norm ? randn({sizes.width}) : Tensor();
  const Tensor cos = randn({sizes.rows, half}, table), sin = randn({sizes.rows, half}, table);
  const Tensor rstd = at::ones({sizes.rows, sizes.heads + sizes.kv_heads}, on(at::kFloat));
  const Tensor partial = at::empty({qk_rope_partials(sizes.rows), 2, sizes.width}, on(at::kFloat));
  const Tensor dweight = norm ? at::empty({2, sizes.width}, on(at::kBFloat16)) : Tensor();
  const CudaCall call = cuda_call(x, "bench");
  const void *in = data_of(x), *grad = data_of(dy), *w = data_of(weight), *c = data_of(cos), *s = data_of(sin);
  void *out = mutable_data_of(y), *r = mutable_data_of(rstd);
  void *dw = mutable_data_of(dweight), *scratch = mutable_data_of(partial);
  const auto passes = [&](const std::string& name, double count, const auto& args) {
    const double bytes = count * bytes_of(x) + 2 * bytes_of(cos);
    kernel(bench, concat(name, norm ? " norm" : "", " BFloat16 ", sizes.rows, "x", all, "x", sizes.width), bytes, args);
  };
  const double turned = static_cast<double>(sizes.heads + sizes.kv_heads) / all;  // what a norm reads of x again
  passes("qk_rope", 2, QkRopeForward{call, wide_tables, in, w, w, c, s, out, r, sizes, 1e-6});
  passes("qk_rope backward",
         2 + (norm ? turned : 0),
         QkRopeBackward{call, wide_tables, grad, in, w, w, c, s, r, out, dw, scratch, sizes});
}

void rows(const Bench& bench, int64_t count, int64_t width) {
  const int64_t vocab = 151936, tokens = count * 2 / 5;
  const Tensor table = randn({vocab, width}), y = randn({count, width}), dtable = at::empty_like(table);
  const Tensor index = at::randint(0, vocab, {count}, on(at::kLong)), out = at::empty_like(y);
  const auto [key, use] = at::sort(index, true, 0, false);
  const Tensor partial = at::empty({sum_by_row_partials(count), width}, on(at::kFloat));
  const CudaCall call = cuda_call(y, "bench");
  const std::string shape = concat(" BFloat16 ", count, "x", width);
  // Reading or writing every row of the table that is used once, and y.
  const auto bytes = [&](const Tensor& of) {
    return bytes_of(y) * (1 + static_cast<double>(std::get<0>(at::_unique(of)).size(0)) / static_cast<double>(count));
  };
  kernel(bench,
         "lookup_rows" + shape,
         bytes(index),
         LookupRowsForward{
             call, data_of(table), index.const_data_ptr<int64_t>(), mutable_data_of(out), count, vocab, width, 0});
  const SumByRow sums{call,
                      key.const_data_ptr<int64_t>(),
                      use.const_data_ptr<int64_t>(),
                      nullptr,
                      data_of(y),
                      mutable_data_of(dtable),
                      false,
                      false,
                      mutable_data_of(partial),
                      count,
                      1,
                      vocab,
                      width,
                      0};
  kernel(bench, "sum_by_row" + shape, bytes(index), sums);
  const Tensor buffer = at::zeros(table.sizes(), on(at::kFloat));
  SumByRow added = sums;
  added.out = mutable_data_of(buffer);
  added.is_wide = added.adds = true;
  // Rows of the buffer are read and written in f32.
  kernel(bench, "sum_by_row, added to f32" + shape, bytes_of(y) + 4 * (bytes(index) - bytes_of(y)), added);
  const Tensor picture = index.clone();
  picture.narrow(0, 0, tokens).fill_(151655);
  const auto [picture_key, picture_use] = at::sort(picture, true, 0, false);
  SumByRow repeated = sums;
  repeated.key = picture_key.const_data_ptr<int64_t>();
  repeated.use = picture_use.const_data_ptr<int64_t>();
  kernel(bench, "sum_by_row, one row 2/5 of" + shape, bytes(picture), repeated);
  const Tensor places = at::randperm(count, on(at::kLong)).narrow(0, 0, tokens).contiguous();
  const Tensor source = at::empty({count}, on(at::kInt)), vision = randn({tokens, width});
  launch(InvertIndex{call, places.const_data_ptr<int64_t>(), source.mutable_data_ptr<int32_t>(), tokens, count, 0});
  for (const bool add : {false, true})
    kernel(bench,
           (add ? "add_at_rows" : "replace_rows") + shape,
           (add ? 2.4 : 2) * bytes_of(y),
           ScatterRows{call,
                       add,
                       data_of(y),
                       data_of(vision),
                       source.const_data_ptr<int32_t>(),
                       mutable_data_of(out),
                       count,
                       width});
}

/// Taps of images of 64 x 64 patches in a table of 48 x 48 positions.
void positions(const Bench& bench, int64_t images) {
  const int64_t side = 64, table_side = 48, patches = images * side * side, width = 1152;
  const Tensor place = at::arange(side, on(at::kDouble)) * (table_side - 1.0) / (side - 1.0);
  const Tensor low = place.floor().to(at::kLong), high = (low + 1).clamp_max(table_side - 1), part = place - low;
  std::vector<Tensor> index, shares;
  for (const bool down : {false, true})
    for (const bool right : {false, true}) {
      index.push_back((down ? high : low).unsqueeze(1) * table_side + (right ? high : low).unsqueeze(0));
      shares.push_back((down ? part : 1 - part).unsqueeze(1) * (right ? part : 1 - part).unsqueeze(0));
    }
  const auto taps_of = [&](const std::vector<Tensor>& of_image, at::ScalarType dtype) {
    return at::stack(of_image, -1).view({1, side * side, 4}).expand({images, -1, -1}).reshape({patches, 4}).to(dtype);
  };
  const Tensor taps = taps_of(index, at::kLong), share = taps_of(shares, at::kFloat);
  const Tensor table = randn({table_side * table_side, width}), y = at::empty({patches, width}, on(at::kBFloat16));
  const auto [key, use] = at::sort(taps.view({-1}), true, 0, false);
  const Tensor partial = at::empty({sum_by_row_partials(taps.numel()), width}, on(at::kFloat));
  const CudaCall call = cuda_call(y, "bench");
  const double bytes = bytes_of(y) + bytes_of(taps) + bytes_of(share) + bytes_of(table);
  kernel(
      bench,
      concat("interpolate_rows, ", images, " images"),
      bytes,
      InterpolateRowsForward{
          call, data_of(table), taps.const_data_ptr<int64_t>(), data_of(share), mutable_data_of(y), patches, 4, width});
  kernel(bench,
         concat("interpolate_rows backward, ", images, " images"),
         bytes + bytes_of(taps),  // a key and a use a tap
         SumByRow{call,
                  key.const_data_ptr<int64_t>(),
                  use.const_data_ptr<int64_t>(),
                  data_of(share),
                  data_of(y),
                  mutable_data_of(table),
                  false,
                  false,
                  mutable_data_of(partial),
                  taps.numel(),
                  4,
                  table_side * table_side,
                  width,
                  0});
}

void vocabulary(const Bench& bench, int64_t count, int64_t columns) {
  const Tensor z = randn({count, columns}), target = at::randint(0, columns, {count}, on(at::kLong));
  const Tensor max = at::zeros({count}, on(at::kFloat)), sum = at::ones_like(max), logit = at::zeros_like(max);
  const Tensor far = at::full({count}, 20.0, on(at::kFloat));
  const CudaCall call = cuda_call(z, "bench");
  const int64_t* targets = target.const_data_ptr<int64_t>();
  const std::string shape = concat(" BFloat16 ", count, "x", columns);
  kernel(bench,
         "vocab_softmax statistics" + shape,
         bytes_of(z),
         VocabRowStats{call,
                       data_of(z),
                       targets,
                       mutable_data_of(max),
                       mutable_data_of(sum),
                       mutable_data_of(logit),
                       count,
                       columns});
  kernel(bench,
         "vocab_softmax gradient" + shape,
         2 * bytes_of(z),
         VocabGradient{call, mutable_data_of(z), targets, data_of(far), data_of(sum), count, columns});
}

void optimizer(const Bench& bench, int64_t count) {
  const Tensor p = randn({count}, at::kFloat), m = randn({count}, at::kFloat) * 0.01,
               v = at::rand({count}, on(at::kFloat));
  const Tensor scale = at::full({}, 0.5, on(at::kFloat)), apply = at::ones({}, on(at::kBool));
  const Tensor steps = at::full({}, 5, on(at::kLong)), rounded = at::empty({count}, on(at::kBFloat16));
  const Tensor sum = at::empty({}, on(at::kDouble)), partial = at::empty({squared_norm_partials()}, on(at::kDouble));
  std::vector<AdamWRun> runs;  // as a model has them: large matrices, and norms without decay between them
  for (int64_t begin = 0; begin < count; begin += count / 64)
    runs.push_back({begin, std::min(count - begin, count / 64), 1e-5, runs.size() % 2 ? 1e-6 : 0});
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Tensor grad = randn({count}, dtype);
    const double bytes = static_cast<double>(count) * (24 + 2) + bytes_of(grad);
    kernel(bench,
           dtype == at::kFloat ? "adamw, f32 gradient" : "adamw, bf16 gradient",
           bytes,
           AdamWKernel{cuda_call(grad, "bench"),
                       CudaType::kBf16,
                       p.mutable_data_ptr<float>(),
                       m.mutable_data_ptr<float>(),
                       v.mutable_data_ptr<float>(),
                       data_of(grad),
                       mutable_data_of(rounded),
                       scale.const_data_ptr<float>(),
                       apply.const_data_ptr<bool>(),
                       steps.const_data_ptr<int64_t>(),
                       runs.data(),
                       static_cast<int64_t>(runs.size()),
                       0.9,
                       0.999,
                       1e-8});
    const int64_t begin = 0;
    kernel(bench,
           dtype == at::kFloat ? "squared_norm f32" : "squared_norm bf16",
           bytes_of(grad),
           SquaredNorm{cuda_call(grad, "bench"),
                       data_of(grad),
                       &begin,
                       &count,
                       1,
                       partial.mutable_data_ptr<double>(),
                       sum.mutable_data_ptr<double>()});
  }
}

void run() {
  const Tensor factor = randn({8192, 8192});
  for (int i = 0; i < 400; ++i) at::mm(factor, factor);  // half a second: an idle GPU has slow clocks
  Bench bench;
  const Tensor from = randn({int64_t{1} << 29}), to = at::empty_like(from);
  bench.copy_rate = 2 * bytes_of(from) / median_us([&] { to.copy_(from); }) * 1e6;
  std::printf("device copy of 1 GiB: %.0f GB/s, read and written\n", bench.copy_rate / 1e9);
  const Tensor small_from = randn({8192, 4096}), small_to = at::empty_like(small_from);
  bench("device copy of 64 MiB", 2 * bytes_of(small_from), [&] { small_to.copy_(small_from); });
  norms(bench, 8192, 4096, at::kBFloat16);
  norms(bench, 32768, 4096, at::kBFloat16);
  norms(bench, 32768, 2560, at::kBFloat16);
  norms(bench, 65536, 1152, at::kBFloat16);
  norms(bench, 16384, 4096, at::kFloat);
  units(bench, 8192, 12288);
  units(bench, 65536, 4304);
  rope(bench, {32768, 32, 8, 128}, true, false);
  rope(bench, {8192, 32, 8, 128}, true, false);
  rope(bench, {32768, 16, 16, 72}, false, true);
  rows(bench, 32768, 4096);
  positions(bench, 32);
  vocabulary(bench, 4096, 151936);
  vocabulary(bench, 1024, 151936);
  optimizer(bench, int64_t{1} << 28);
}

}  // namespace
}  // namespace hanok

int main() {
  if (!at::hasCUDA()) {
    std::fprintf(stderr, "kernel_bench: got no GPU, expected one\n");
    return 1;
  }
  try {
    hanok::run();
  } catch (const hanok::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
