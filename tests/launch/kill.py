"""kill -9 of a random rank at random times, some in the middle of a save: the others end with an error in time, nothing is left
running, no committed step is lost, and the final weights are the bits of an undisturbed run.   usage: kill.py [KILLS] [SEED]"""
import os
import random
import signal
import sys
import time

from harness import committed, expect, make_case, model_hash, ranks_of, remove, run, start


def stage_order(checkpoint):
    return (["align", "all"].index(checkpoint[0]), checkpoint[1])


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"kill test: {kills} kills, seed {seed}")
    calm, calm_config = make_case()
    begin = time.time()
    run(2, "--config", calm_config)
    whole = time.time() - begin
    folder, config = make_case()
    newest = (-1, -1)
    mid_save = 0
    done = 0
    while done < kills:
        with open(f"{folder}/log", "ab") as log:
            process = start(2, "--config", config, log=log)
            saving = rng.random() < 0.4
            deadline = time.time() + rng.uniform(0.2, 1.2) * whole
            while time.time() < deadline and process.poll() is None:
                unfinished = [d for d, _, _ in os.walk(f"{folder}/run/checkpoints") if d.endswith(".tmp")]
                if saving and unfinished and ranks_of(config):
                    mid_save += 1
                    break
                time.sleep(0.002)
            victims = ranks_of(config)
            if process.poll() is not None or not victims:
                expect(process.wait(60) == 0, "an undisturbed restart ended with an error; see the log")  # it finished: begin anew
                expect(model_hash(f"{folder}/run/model") == model_hash(f"{calm}/run/model"), "final weights differ from the undisturbed run")
                remove(folder)
                folder, config = make_case()
                newest = (-1, -1)
                continue
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed = time.time()
            code = process.wait(30)
            expect(code != 0, "mpirun ended with 0 although a rank was killed")
            expect(time.time() - killed <= 15, f"the other ranks took {time.time() - killed:.1f} s to end")
        time.sleep(0.2)
        expect(not ranks_of(config), "ranks are still running after the job ended")
        points = [stage_order(c) for c in committed(folder)]
        expect(not points or max(points) >= newest, f"a committed step was lost: had {newest}, now {max(points, default=None)}")
        newest = max(points, default=newest)
        done += 1
    run(2, "--config", config)
    expect(model_hash(f"{folder}/run/model") == model_hash(f"{calm}/run/model"), "final weights differ from the undisturbed run")
    print(f"{done} kills ({mid_save} aimed at a save in flight), 0 lost committed steps, final weights bit-identical")
    remove(calm)
    remove(folder)


if __name__ == "__main__":
    main()
