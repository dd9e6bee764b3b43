"""Run our bench and the peers' in turn, several times, and print the median rates and their ratios (with the extremes
that the slowest and fastest rounds of both would give).

    python beside.py forward --rounds 3 -- --layers 8 --seq 512
    python beside.py generate --rounds 3 -- --layers 4 --tokens 16

What stands behind `--` goes to both. Run with the peers' Python (tools/golden/requirements.txt); ours is the release binary, which
`cargo xtask bench` builds. Machines are shared and noisy: only ratios of runs that alternate mean anything.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "target/release/gemma-scope-bench"
PEERS = ROOT / "tools/bench/peer_bench.py"
ALONE = {"wide"}  # no peer does it


def run(command):
    """The JSON lines that a bench prints."""
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what")
    parser.add_argument("--rounds", type=int, default=3)
    own, _, flags = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    rates, memory, matmuls = {}, {}, {}
    for _ in range(options.rounds):
        for command in ([str(OURS), options.what, *flags.split()],
                        [sys.executable, str(PEERS), options.what, *flags.split()]):
            if command[0] != str(OURS) and options.what in ALONE:
                continue
            unit = None
            for line in run(command):
                print(json.dumps(line), file=sys.stderr, flush=True)
                # The encoder's plain product in the same run is the unit.
                unit = line["seconds"] if line.get("what") == "matmul" else unit
                if unit and "seconds" in line and line["what"] != "matmul":
                    matmuls.setdefault(line["what"], []).append(line["seconds"] / unit)
                if line.get("per_second"):
                    rates.setdefault(line["what"], []).append(line["per_second"])
                    memory.setdefault(line["what"], []).append(line.get("peak_over_start_gb") or line["peak_rss_gb"])
    print(f"{'what':<24}{'median/s':>12}{'lowest':>12}{'highest':>12}{'GB':>8}  rounds")
    for what, values in rates.items():
        print(f"{what:<24}{statistics.median(values):>12.1f}{min(values):>12.1f}{max(values):>12.1f}"
              f"{max(memory[what]):>8.2f}  {len(values)}")
    for what, values in matmuls.items():
        print(f"{what:<24}{statistics.median(values):>6.2f} matmuls ({min(values):.2f} to {max(values):.2f})")
    for what in rates:
        tool, _, work = what.partition(".")
        if tool not in ("ours", "matmul") and f"ours.{work}" in rates:
            ours, theirs = rates[f"ours.{work}"], rates[what]
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(f"ours.{work} / {what}: {ratio:.2f} ({min(ours) / max(theirs):.2f} to {max(ours) / min(theirs):.2f})")


if __name__ == "__main__":
    main()
