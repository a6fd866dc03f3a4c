"""A run that is stopped by its step count and goes on with another number of ranks and another cut: the checkpoint's weights and
moments load bit-identically (tests/trainer/checkpoint_test), and here the whole program ends near the one-layout run."""
import json

from harness import expect, make_case, metrics, remove, run


def main():
    stages = lambda steps: [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": steps, "tokens": 0}]
    reference, config = make_case(**{"stages": stages(12), "optimizer": {"lr": 1e-3, "schedule": "constant"}})
    run(1, "--config", config)
    expected = {m["step"]: m["loss"] for m in metrics(reference) if "grad_norm" in m}
    for ranks, settings in [(2, ["parallel.tp=2"]), (4, ["parallel.tp=2"]), (2, []), (4, ["parallel.tp=4", "parallel.sequence=false"]),
                            (2, ["parallel.cp=2"]), (4, ["parallel.cp=2", "parallel.tp=2", "parallel.context=ring", "stages.all.recompute=full"]),
                            (2, ["parallel.cp=2", "parallel.context=heads"])]:
        folder, config = make_case(**{"stages": stages(12), "optimizer": {"lr": 1e-3, "schedule": "constant"}})
        sets = [word for s in settings for word in ("--set", s)]
        run(ranks, "--config", config, *sets, "--set", "stages.all.steps=6")
        run(1, "--config", config)
        run_losses = {m["step"]: m["loss"] for m in metrics(folder) if "grad_norm" in m}
        expect(set(run_losses) == set(expected), f"steps {sorted(run_losses)} instead of {sorted(expected)}")
        worst = max(abs(run_losses[s] - expected[s]) / abs(expected[s]) for s in expected)
        print(json.dumps({"ranks": ranks, "settings": settings, "worst_relative_loss": worst}))
        expect(worst < 1e-4, f"losses differ by {worst}")
        remove(folder)
    remove(reference)


if __name__ == "__main__":
    main()
