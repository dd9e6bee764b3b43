"""Kill a training run with SIGKILL at random moments, resume it each time, and compare what it ends with to a run that was left alone.

    python kills.py [--bin target/release/gemma-scope] [--kills 50] [--seed 1] [--steps 200]

Trains two SAEs (JumpReLU, TopK) of the embedded model on a text of its own making, one thread. The exported files and the logged losses of both runs
must be equal to the last bit; the exit status is 1 otherwise. Standard library only.
"""

import argparse
import filecmp
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
[data]
text = ["{text}"]
ctx = 64

[run]
steps = {steps}
batch = 256
buffer = 4096
log_every = 5
checkpoint_every = 7
scale_rows = 2000

[[sae]]
name = "jump"
hook = "blocks.3.hook_resid_post"
d_sae = 512
recipe = "gemma-scope"
objective.lambda = 0.005
objective.bandwidth = 0.05
objective.initial_threshold = 0.05
optimizer.lr = 0.002

[[sae]]
name = "top"
hook = "blocks.2.hook_mlp_out"
d_sae = 256
recipe = "topk"
objective.k = 8
dead_after = 2048
"""


def exported(run):
    return sorted(path.relative_to(run) for path in (run / "saes").rglob("*") if path.is_file() and not path.name.startswith(".partial-"))


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["sae"], line["loss"], line["l0"]) for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("target/release/gemma-scope"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        words = "river stone the captain of seven letters and a window was open before it rained".split()
        text = root / "corpus.txt"
        text.write_text("\n\n".join(" ".join(chance.choices(words, k=60)) + "." for _ in range(400)))
        config = root / "run.toml"
        config.write_text(CONFIG.format(text=text, steps=options.steps))
        train = [str(options.bin), "train", str(config), "--threads", "1"]

        whole = root / "whole"
        begun = time.monotonic()
        subprocess.run([*train, "--out", str(whole)], check=True, capture_output=True)
        seconds = time.monotonic() - begun
        print(f"uninterrupted: {seconds:.1f} s", flush=True)

        killed, run, kills, at = root / "killed", None, 0, []
        while kills < options.kills:
            place = ["--resume", str(killed)] if (killed / "settings.json").exists() else ["--out", str(killed)]
            run = subprocess.Popen([*train, *place], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # Late enough, on average, that the run gets on between two kills.
            time.sleep(chance.uniform(0.0, 2.5 * seconds / options.kills + 2.5))
            if run.poll() is not None:
                if run.returncode != 0:
                    sys.exit(f"a resumed run failed: {run.stderr.read().decode()}")
                break
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
            steps = sorted((killed / "checkpoints").glob("step-*")) if (killed / "checkpoints").exists() else []
            at.append(int(steps[-1].name[5:]) if steps else 0)
        if run.poll() is None or run.returncode != 0:
            place = ["--resume", str(killed)] if (killed / "settings.json").exists() else ["--out", str(killed)]
            subprocess.run([*train, *place], check=True, capture_output=True)
        print(f"killed {kills} times, at checkpoints of steps {at}")
        if exported(whole) != exported(killed):
            sys.exit("other files were exported")
        for path in exported(whole):
            if not filecmp.cmp(whole / path, killed / path, shallow=False):
                sys.exit(f"{path} differs")
        if losses(whole) != losses(killed):
            sys.exit("the logged losses differ")
        print(f"{len(exported(whole))} files and {len(losses(whole))} lines of metrics are the same to the last bit")


if __name__ == "__main__":
    main()
