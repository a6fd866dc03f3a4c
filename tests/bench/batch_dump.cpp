// The micro-batches of a run's first steps as safetensors, so that another library can be measured on the same ones.
// usage: batch_dump CONFIG NUM_BATCHES FILE [KEY=VALUE ...]
#include <cstdio>

#include "base/error.h"
#include "configs/schema/read.h"
#include "dataio/safetensors.h"
#include "trainer/data.h"
#include "trainer/weights.h"

int main(int argc, char** argv) {
  using namespace hanok;
  if (argc < 4) {
    std::fprintf(stderr, "usage: batch_dump CONFIG NUM_BATCHES FILE [KEY=VALUE ...]\n");
    return 2;
  }
  try {
    RunConfig config = read_config(argv[1], std::vector<std::string>(argv + 4, argv + argc));
    if (!config.model.path.empty()) read_model_folder(config.model);
    const Groups groups = make_single_groups();
    const SampleEncoder encoder = make_encoder(config);
    const auto datasets = open_datasets(config, encoder, groups);
    const StageData data = make_stage_data(config, config.stages.at(0), datasets, encoder.vision, groups);
    Loader loader(data.datasets, data.sampler, data.options, {0, 1}, {});
    std::vector<TensorPlan> plan;
    std::map<std::string, Tensor> tensors;
    const int wanted = std::atoi(argv[2]);
    for (int done = 0; done < wanted;) {
      for (const Batch& batch : loader.next_step()) {
        if (done == wanted) break;
        const std::pair<const char*, Tensor> fields[] = {{"tokens", batch.tokens_T},
                                                         {"targets", batch.targets_T},
                                                         {"weight", batch.weight_T},
                                                         {"position", batch.position_3T},
                                                         {"row_starts", batch.row_starts},
                                                         {"pixels", batch.pixels_PC},
                                                         {"grid", batch.grid_I3}};
        for (const auto& [name, tensor] : fields) {
          const std::string full = concat(done, ".", name);
          tensors[full] = tensor.contiguous();
          plan.push_back({full, tensor.scalar_type(), tensor.sizes().vec()});
        }
        ++done;
      }
    }
    std::stable_sort(plan.begin(), plan.end(), [](const TensorPlan& a, const TensorPlan& b) {
      return at::elementSize(a.dtype) > at::elementSize(b.dtype);
    });
    write_safetensors(argv[3], plan, {}, [&](const std::string& name) { return tensors.at(name); });
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
