// Rows of this rank meet the blocks of all ranks: gathered, or passed around the group.
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "parallel/collectives.h"
#include "parallel/kept.h"
#include "parallel/side_stream.h"

namespace hanok {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A block on its way to the next rank, while the one of the rank before arrives. On a GPU it travels on a stream of
/// its own, and work that was launched meanwhile does not wait for it.
class Passage {
 public:
  Passage(const Tensor& block, Comm& group) : sent_(block), arrived_(at::empty_like(block)) {
    const int n = group.size(), rank = group.rank();
    const int64_t rows = block.size(0);
    Splits splits{std::vector<int64_t>(n), std::vector<int64_t>(n)};
    splits.send[(rank + 1) % n] = rows;
    splits.receive[(rank + n - 1) % n] = rows;
    SideStream& side = travel_stream(block.device());
    side.run([&] { group.all_to_all(arrived_, sent_, splits); });
    done_ = side.mark();
  }

  /// Work after this call sees the block.
  Tensor arrived() {
    done_.wait();
    return arrived_;
  }

 private:
  Tensor sent_, arrived_;  // both outlive the journey
  SideStream::Mark done_;
};

int source_at(const Comm& group, int hop) {
  return (group.rank() - hop + group.size()) % group.size();
}

Tensor zeros_wide(const Tensor& like) {
  return at::zeros(like.sizes(), like.options().dtype(like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

struct Gradients {
  Tensor dx, dblock;
};

struct Gathered {
  static void forward(
      const Tensor& x, const Tensor& block, const BlockWork& work, Comm& group, std::vector<Tensor>& partial) {
    work.forward(-1, x, gathered(block, group), partial);
  }

  static Gradients backward(const Tensor& x,
                            const Tensor& block,
                            const Tensor& y,
                            const Tensor& dy,
                            const std::vector<Tensor>& kept,
                            const BlockWork& work,
                            Comm& group) {
    const Tensor all = gathered(block, group);
    Tensor dx = zeros_wide(x), dall = zeros_wide(all);
    work.backward(-1, x, all, y, dy, kept, dx, dall);
    Tensor dblock = at::empty(block.sizes(), block.options());
    group.reduce_scatter(dblock, dall.to(block.scalar_type()));
    return {dx.to(x.scalar_type()), dblock};
  }
};

struct Ring {
  static void forward(
      const Tensor& x, const Tensor& block, const BlockWork& work, Comm& group, std::vector<Tensor>& partial) {
    Tensor here = block;
    for (int hop = 0; hop < group.size(); ++hop) {
      std::optional<Passage> next;
      if (hop + 1 < group.size()) next.emplace(here, group);
      work.forward(source_at(group, hop), x, here, partial);
      if (next) here = next->arrived();
    }
  }

  /// The gradient of a block follows it one hop behind: each rank adds its share to what arrives and passes it on;
  /// after as many hops as there are ranks it is where the block came from.
  static Gradients backward(const Tensor& x,
                            const Tensor& block,
                            const Tensor& y,
                            const Tensor& dy,
                            const std::vector<Tensor>& kept,
                            const BlockWork& work,
                            Comm& group) {
    Tensor here = block, dx = zeros_wide(x);
    std::optional<Passage> gradient;
    for (int hop = 0; hop < group.size(); ++hop) {
      std::optional<Passage> next;
      if (hop + 1 < group.size()) next.emplace(here, group);
      Tensor share = zeros_wide(block);
      work.backward(source_at(group, hop), x, here, y, dy, kept, dx, share);
      if (gradient) share.add_(gradient->arrived());
      gradient.emplace(share, group);
      if (next) here = next->arrived();
    }
    return {dx.to(x.scalar_type()), gradient->arrived().to(block.scalar_type())};
  }
};

struct Saved : torch::CustomClassHolder {
  std::shared_ptr<const BlockWork> work;
  std::shared_ptr<Comm> group;
};

template <class Way>
struct WorkOnBlocks : torch::autograd::Function<WorkOnBlocks<Way>> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& block_in,
                        const std::shared_ptr<const BlockWork>& work,
                        const std::shared_ptr<Comm>& group) {
    const Tensor block = block_in.contiguous();
    const std::vector<Tensor> results = kept_attention([&] {
      std::vector<Tensor> all;
      Way::forward(x, block, *work, *group, all);
      const Tensor y = work->finish(x, all);
      all.insert(all.begin(), y);
      return all;
    });
    auto saved = c10::make_intrusive<Saved>();
    saved->work = work;
    saved->group = group;
    ctx->saved_data["saved"] = c10::IValue::make_capsule(std::move(saved));
    variable_list tensors{x, block};
    tensors.insert(tensors.end(), results.begin(), results.end());
    ctx->save_for_backward(std::move(tensors));
    return results.front();
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto& saved = static_cast<Saved&>(*ctx->saved_data["saved"].toCapsule());
    const variable_list tensors = ctx->get_saved_variables();
    const std::vector<Tensor> kept(tensors.begin() + 3, tensors.end());
    const Gradients out =
        Way::backward(tensors[0], tensors[1], tensors[2], grads[0].contiguous(), kept, *saved.work, *saved.group);
    return {out.dx, out.dblock, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor work_on_gathered(const Tensor& x,
                        const Tensor& block,
                        const std::shared_ptr<const BlockWork>& work,
                        const std::shared_ptr<Comm>& group) {
  return WorkOnBlocks<Gathered>::apply(x, block, work, group);
}

Tensor work_around_ring(const Tensor& x,
                        const Tensor& block,
                        const std::shared_ptr<const BlockWork>& work,
                        const std::shared_ptr<Comm>& group) {
  return WorkOnBlocks<Ring>::apply(x, block, work, group);
}

}  // namespace hanok
