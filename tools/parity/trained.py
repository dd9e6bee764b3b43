"""Open the SAEs of a training run in SAELens and score them as SAELens scores any: beside `gemma-scope eval` of the same folders.

    python trained.py RUN [--bin target/release/gemma-scope] [--model assets/tiny-gemma2] [--tokens T.json] [--tolerance 1e-4]

RUN is a folder that `gemma-scope train` wrote: every `saes/*/saelens` in it is opened with `SAE.load_from_disk` and put through SAELens' own
`run_evals` in TransformerLens' HookedTransformer, on rows of random ids behind a BOS. Compared are the metrics that both define alike
(docs/parity-evals.md); `relative_reconstruction_bias` is averaged batch by batch there, which the tolerance allows for. The exit status is 1
where one is further apart than the tolerance, relative to the larger.

The packages: `tools/golden/requirements.txt`, then `tools/golden/requirements-formats.txt`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from evals import Store, transformer_lens
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

ROWS, LENGTH, SPECIAL = 8, 48, [0, 1, 2]
# ours: theirs
SAME = {"l0": "l0", "mse": "mse", "cosine": "cossim", "explained_variance": "explained_variance", "l1": "l1",
        "relative_reconstruction_bias": "relative_reconstruction_bias"}


def theirs(folder, lens, ids):
    sae = SAE.load_from_disk(str(folder))
    batches = ids.shape[0] // 4
    groups, _ = run_evals(sae, Store(ids, 4), lens, ActivationScaler(), get_eval_everything_config(4, batches, batches),
                          exclude_special_tokens=SPECIAL)
    return type(sae).__name__, {name: value for group in groups.values() for name, value in group.items()}


def ours(binary, model, tokens, folder):
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "eval.json"
        command = [binary, "eval", "--model", model, "--tokens", tokens, "--sae", folder, "--json", out]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        (report,) = json.loads(out.read_text())
    return report["metrics"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--bin", type=Path, default=Path("target/release/gemma-scope"))
    parser.add_argument("--model", type=Path, default=Path("assets/tiny-gemma2"))
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()
    folders = sorted(options.run.glob("saes/*/saelens"))
    if not folders:
        sys.exit(f"{options.run}: holds no saes/*/saelens")
    lens, _ = transformer_lens(options.model)
    with tempfile.TemporaryDirectory() as root:
        tokens = options.tokens
        if tokens is None:
            tokens = Path(root) / "tokens.json"
            generator = torch.Generator().manual_seed(1)
            ids = torch.randint(3, lens.cfg.d_vocab, (ROWS, LENGTH), generator=generator)
            ids[:, 0] = 2
            tokens.write_text(json.dumps({"input_ids": ids.tolist()}))
        ids = torch.tensor(json.loads(tokens.read_text())["input_ids"])
        worst = 0.0
        print("| SAE | opened as | metric | ours | SAELens | apart |\n|---|---|---|---|---|---|")
        for folder in folders:
            kind, them = theirs(folder, lens, ids)
            us = ours(options.bin, options.model, tokens, folder)
            for name, other in SAME.items():
                a, b = us[name], float(them[other])
                apart = abs(a - b) / max(abs(a), abs(b), 1e-12)
                worst = max(worst, apart)
                print(f"| {folder.parent.name} | {kind} | {name} | {a:.6g} | {b:.6g} | {apart:.1e} |")
    print(f"\nfurthest apart: {worst:.1e}")
    sys.exit(worst > options.tolerance)


if __name__ == "__main__":
    main()
