"""plan, doctor and export through the real program."""
import os

from harness import expect, make_case, remove, run


def once():
    """What is asked of the program is answered once, however many ranks there are."""
    for flag, line in [("--version", "trainer "), ("--help", "usage: ")]:
        text = run(3, flag).stdout
        count = sum(l.startswith(line) for l in text.splitlines())
        expect(count == 1, f"{flag} on 3 ranks was answered {count} times:\n{text}")


def main():
    once()
    folder, config = make_case(**{"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 2}]})
    text = run(1, "plan", "--config", config, "--mesh", "tp2,dp3").stdout
    expect("tp2" in text and "(6 ranks)" in text, "plan does not name the layout")
    expect("decoder.embed.weight" in text and "[160, 32]" in text, "plan does not show the cut embedding")
    expect("nothing here would fail" in run(1, "doctor", "--config", config).stdout, "doctor finds a fault in a sound config")
    run(1, "--config", config)
    run(2, "export", "--config", config, "--output", f"{folder}/exported")
    expect(os.path.isfile(f"{folder}/exported/model.safetensors"), "export wrote no weights")
    print("plan, doctor and export ran")
    remove(folder)


if __name__ == "__main__":
    main()
