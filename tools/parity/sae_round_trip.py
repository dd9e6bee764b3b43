"""Open what this program converts with the formats' own packages, and what they write with this program.

    python sae_round_trip.py [--bin target/release/gemma-scope] [--fixtures fixtures/sae] [--only TEXT] [--keep DIR]
    python sae_round_trip.py --delphi CACHE_DIR [--dense F.safetensors:NAME]

The first form prints a Markdown table, one row for each format, architecture and direction:

* `ours → peer`: `convert --sae IN --to FORMAT --out DIR` for every fixture, then the format's own package and
  `encode --sae DIR` on the same activations. `function` compares that with what `encode --sae IN` gives: a
  conversion may scale features, so it is the reconstruction that has to agree.
* `peer → ours`: the package writes a dictionary, and `encode` reads it.

A conversion that this program refuses is a row with its reason: not every architecture fits every format. The exit
status is 1 when a difference is over the tolerance (relative to the largest value) or other latents are active.

The second form opens a cache of latents with delphi's own reader and, given the dense activations
[sequences, positions, d_sae] or [sequences * positions, d_sae], compares every entry.

The packages: `tools/golden/requirements.txt`, then `tools/golden/requirements-formats.txt`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from sae_formats_golden import Writer, from_hub, loaders  # noqa: E402  (stand-ins first)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sae_lens import SAE, saes  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402

FORMATS = ["saelens", "gemma-scope", "gemma-scope-2", "sparsify"]
D_IN, D_SAE, D_OUT, ROWS = 64, 512, 48, 48


# Opening with the peers


def only(folder, name):
    found = [folder / name] if (folder / name).exists() else sorted(folder.rglob(name))
    if len(found) != 1:
        raise FileNotFoundError(f"{len(found)} files {name} were written")
    return found[0]


def saelens_pair(sae):
    sae.turn_off_forward_pass_hook_z_reshaping()  # the activations here are flat
    return sae.encode, lambda f, x: sae(x)


def open_saelens(folder):
    folder = only(folder, "sae_weights.safetensors").parent
    return folder, saelens_pair(SAE.load_from_disk(folder))


def open_gemma_scope(folder):
    file = only(folder, "params.npz")
    with np.load(file) as params:
        shapes = {k.lower(): v.shape for k, v in params.items()}
    (d_in, d_sae), d_out = shapes["w_enc"], shapes["w_dec"][1]
    transcoder = d_in != d_out
    name = "layer_5/width_16k/average_l0_70"
    with tempfile.TemporaryDirectory() as root:
        shutil.copytree(file.parent, Path(root) / name)
        sizes = {"d_in": d_in, "d_sae": d_sae} | ({"d_out": d_out} if transcoder else {})
        load = loaders.gemma_2_transcoder_huggingface_loader if transcoder else loaders.gemma_2_sae_huggingface_loader
        sized = lambda *a, cfg_overrides, **k: load(*a, cfg_overrides=cfg_overrides | sizes, **k)
        repo = "google/gemma-scope-2b-pt-" + ("transcoders" if transcoder else "res")
        return file.parent, saelens_pair(from_hub(Path(root), sized, repo, name))


def open_gemma_scope_2(folder):
    file = only(folder, "params.safetensors")
    with safe_open(file, "pt") as f:
        shapes = {k: f.get_slice(k).get_shape() for k in f.keys()}
    config = file.with_name("config.json")
    kind = json.loads(config.read_text()).get("type") if config.exists() else None
    affine = "affine_skip_connection" in shapes
    transcoder = affine or kind == "transcoder" or shapes["w_enc"][0] != shapes["w_dec"][1]
    name = f"{'transcoder' if transcoder else 'resid_post'}/layer_5_width_16k_l0_small{'_affine' if affine else ''}"
    with tempfile.TemporaryDirectory() as root:
        shutil.copytree(file.parent, Path(root) / name)
        load = loaders.gemma_3_sae_huggingface_loader
        return file.parent, saelens_pair(from_hub(Path(root), load, "google/gemma-scope-2-1b-pt", name))


def open_sparsify(folder):
    folder = only(folder, "sae.safetensors").parent
    coder = SparseCoder.load_from_disk(folder)

    def encode(x):
        top = coder.encode(x)
        return torch.zeros(x.shape[0], coder.num_latents).scatter_(-1, top.top_indices, top.top_acts)

    coder.cfg.multi_topk = False  # forward() would return the reconstruction from 4k latents
    return folder, (encode, lambda f, x: coder(x).sae_out)


OPEN = {"saelens": open_saelens, "gemma-scope": open_gemma_scope, "gemma-scope-2": open_gemma_scope_2,
        "sparsify": open_sparsify}


# Writing with the peers


def written_by_peers(w, root):
    """(format, architecture, folder)"""
    base = dict(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu")
    trans = base | dict(apply_b_dec_to_input=False)
    for name, sae in [
        ("standard", saes.StandardSAE(saes.StandardSAEConfig(**base))),
        ("topk", saes.TopKSAE(saes.TopKSAEConfig(**base, k=20))),
        ("topk, rescaled", saes.TopKSAE(saes.TopKSAEConfig(**base, k=20, rescale_acts_by_decoder_norm=True))),
        ("jumprelu", saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**trans))),
        ("gated", saes.GatedSAE(saes.GatedSAEConfig(**base))),
        ("transcoder", saes.Transcoder(saes.TranscoderConfig(**trans, d_out=D_OUT))),
        ("skip_transcoder", saes.SkipTranscoder(saes.SkipTranscoderConfig(**trans, d_out=D_OUT))),
        ("jumprelu_transcoder", saes.JumpReLUTranscoder(saes.JumpReLUTranscoderConfig(**trans, d_out=D_OUT))),
        ("jumprelu_skip_transcoder", saes.JumpReLUSkipTranscoder(saes.JumpReLUSkipTranscoderConfig(
            **trans, d_out=D_OUT))),
        ("standard, layer_norm", saes.StandardSAE(saes.StandardSAEConfig(**base, normalize_activations="layer_norm"))),
        ("jumprelu, constant_norm_rescale", saes.JumpReLUSAE(saes.JumpReLUSAEConfig(
            **base, normalize_activations="constant_norm_rescale"))),
    ]:
        folder = root / f"saelens {name}"
        w.fill(sae).save_model(folder)
        yield "saelens", name, folder
    for name, make in [("batchtopk", saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(**base, k=20.0)))]:
        folder = root / f"saelens {name}"
        w.fill(make).topk_threshold.fill_(1.1)
        make.save_inference_model(folder)
        yield "saelens", f"{name}, for inference", folder
    for name, config in [
        ("topk", dict(num_latents=D_SAE, k=20)),
        ("groupmax", dict(num_latents=D_SAE, k=16, activation="groupmax")),
        ("topk, transcode", dict(num_latents=D_SAE, k=20, transcode=True)),
        ("topk, transcode, skip", dict(expansion_factor=8, k=20, transcode=True, skip_connection=True)),
    ]:
        folder = root / f"sparsify {name}" / "layers.5"
        w.fill(SparseCoder(D_IN, SparseCoderConfig(**config))).save_to_disk(folder)
        yield "sparsify", name, folder

    def arrays(d_out):
        return {"w_enc": w.randn(D_IN, D_SAE, scale=0.25), "w_dec": w.randn(D_SAE, d_out, scale=0.25),
                "b_enc": w.randn(D_SAE, scale=0.2), "b_dec": w.randn(d_out, scale=0.2), "threshold": w.threshold(D_SAE)}

    upper = lambda tensors: {k.replace("w_", "W_"): v.numpy() for k, v in tensors.items()}
    for name, save in [("stored", np.savez), ("deflated", np.savez_compressed)]:
        folder = root / f"gemma-scope {name}"
        folder.mkdir()
        save(folder / "params.npz", **upper(arrays(D_IN)))
        yield "gemma-scope", f"jumprelu, {name}", folder
    for name, d_out, affine in [("jumprelu", D_IN, False), ("jumprelu_transcoder", D_OUT, False),
                                ("jumprelu_skip_transcoder", D_OUT, True)]:
        kind = "sae" if d_out == D_IN else "transcoder"
        folder = root / f"gemma-scope-2 {name}" / ("resid_post" if kind == "sae" else "transcoder")
        folder /= "layer_5_width_16k_l0_small" + ("_affine" if affine else "")
        folder.mkdir(parents=True)
        tensors = arrays(d_out) | ({"affine_skip_connection": w.randn(D_IN, d_out, scale=0.25)} if affine else {})
        save_file(tensors, folder / "params.safetensors")
        read = "output" if kind == "sae" else "pre_feedforward_layernorm.output"
        write = "output" if kind == "sae" else "post_feedforward_layernorm.output"
        (folder / "config.json").write_text(json.dumps({
            "hf_hook_point_in": f"model.layers.5.{read}", "hf_hook_point_out": f"model.layers.5.{write}",
            "width": D_SAE, "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 20,
            "affine_connection": affine, "type": kind}))
        yield "gemma-scope-2", name, folder


def fixtures(root):
    """(name, what to open, expected)"""
    for case in sorted(p.parent for kind in ("saelens", "gemma-scope") for p in (root / kind).glob("*/expected.safetensors")):
        yield f"{case.parent.name}/{case.name}", case, case / "expected.safetensors"
    formats = root / "formats"
    for case in json.loads((formats / "index.json").read_text()):
        if case["expect"] == "ok" and not case["case"].startswith("delphi"):
            yield case["case"], formats / case["path"], formats / case["expected"]


# The table


class Table:
    def __init__(self, tolerance):
        self.tolerance, self.failed, self.refused, self.rows = tolerance, 0, 0, []
        print("| format | architecture | direction | features, max abs diff | recon, max abs diff | same active latents "
              "| function |")
        print("|---|---|---|---|---|---|---|")

    def row(self, where, ours, theirs, source=None):
        diff = lambda a, b: float((a - b).abs().max()) if a.shape == b.shape else float("inf")
        close = lambda d, b: d <= self.tolerance * max(1.0, float(b.abs().max()))
        f, y = diff(ours["feature_acts"], theirs["feature_acts"]), diff(ours["recon"], theirs["recon"])
        same = ours["feature_acts"].shape == theirs["feature_acts"].shape and bool(
            ((ours["feature_acts"] != 0) == (theirs["feature_acts"] != 0)).all())
        good, function = close(f, theirs["feature_acts"]) and close(y, theirs["recon"]) and same, ""
        if source is not None:
            kept = diff(ours["recon"], source["recon"])
            good, function = good and close(kept, source["recon"]), f"{kept:.1e}"
        self.failed += not good
        of = lambda d, b: d / max(1e-30, float(b.abs().max()))
        kept = 0.0 if source is None else of(kept, source["recon"])
        self.rows.append((where, of(f, theirs["feature_acts"]), of(y, theirs["recon"]), same, kept))
        mark = "" if good else " ✗"
        print(f"| {' | '.join(where)} | {f:.1e} | {y:.1e} | {'yes' if same else 'no'}{mark} | {function} |", flush=True)

    def note(self, where, text, failed):
        self.failed += failed
        self.refused += not failed
        text = " ".join(text.split()).replace("|", "\\|")
        print(f"| {' | '.join(where)} | {'✗ ' if failed else 'refused: '}{text} | | | |", flush=True)


    def brief(self):
        """A row for each format, direction and family of sources, with the worst of each column, relative to the largest."""
        families = ("gemma-scope-2 gemma-scope saelens-pre6 saelens dictionary-learning sparsify openai llama-scope openmoss "
                    "circuit-tracer").split()
        worst = {}
        for (form, name, direction), f, y, same, kept in self.rows:
            family = next((x for x in families if name.startswith(x)), name) if direction == "ours → peer" else "its own"
            n, *old = worst.get((form, direction, family), (0, 0.0, 0.0, True, 0.0))
            new = (max(old[0], f), max(old[1], y), old[2] and same, max(old[3], kept))
            worst[form, direction, family] = (n + 1, *new)
        print("| written as | direction | SAEs of | cases | features | recon | same active latents | recon before and after |")
        print("|---|---|---|---|---|---|---|---|")
        for (form, direction, family), (n, f, y, same, kept) in sorted(worst.items(), key=lambda row: row[0][1::-1]):
            print(f"| {form} | {direction} | {family} | {n} | {f:.0e} | {y:.0e} | {'yes' if same else 'no'} | {kept:.0e} |")


# Where a factor that the function needs is in no file, or a k: SAELens goes on without it, and this program refuses.
STRICTER = {"saelens-pre6-bool-norm", "saelens-pre6-topk-without-k", "saelens-expected-average",
            "saelens-whitening-unfolded"}


class Refused(Exception):
    pass


def run(options, *arguments):
    done = subprocess.run([str(options.bin), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode < 0 or "panicked at" in done.stderr:
        raise RuntimeError(f"it died: {done.stderr.strip()[-300:]}")
    if done.returncode:
        raise Refused(done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"status {done.returncode}")


def ours(options, folder, x, scratch):
    save_file({"acts": x.contiguous()}, scratch / "acts.safetensors")
    run(options, "encode", "--sae", folder, "--input", scratch / "acts.safetensors", "--out",
        scratch / "features.safetensors", "--offline")
    return load_file(scratch / "features.safetensors")


def peer(pair, x):
    with torch.no_grad():
        f = pair[0](x)
        return {"feature_acts": f, "recon": pair[1](f, x)}


def to_peers(options, table, scratch):
    for name, source, expected in fixtures(options.fixtures):
        if options.only and options.only not in name:
            continue
        x = load_file(expected)["x"]
        try:
            before = ours(options, source, x, scratch)
        except (Refused, RuntimeError) as error:
            table.note(("", name, "ours"), str(error), failed=name not in STRICTER)
            continue
        for form in options.formats:
            where, out = (form, name, "ours → peer"), scratch / "out" / form / name
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Gemma Scope 2 names the model, and most fixtures name none.
                model = ["--model", "google/gemma-3-1b-pt"] if form == "gemma-scope-2" else []
                run(options, "convert", "--sae", source, "--to", form, "--out", out, *model)
            except Refused as error:
                table.note(where, str(error), failed=False)
                continue
            try:
                folder, pair = OPEN[form](out)
                table.row(where, ours(options, folder, x, scratch), peer(pair, x), before)
            except Exception as error:  # whatever the peer says of what we wrote
                table.note(where, f"{type(error).__name__}: {error}", failed=True)


def from_peers(options, table, scratch):
    w = Writer(scratch / "peers", seed=20240816)
    root = w.start("peers")
    for form, name, folder in written_by_peers(w, root):
        if form not in options.formats or (options.only and options.only not in name):
            continue
        where = (form, name, "peer → ours")
        try:
            _, pair = OPEN[form](folder)
            x = w.inputs(pair[0], D_IN, scales=[1.0, 0.1, 10.0] * (ROWS // 3), margin=1e-4)
            table.row(where, ours(options, folder, x, scratch), peer(pair, x))
        except (Refused, RuntimeError) as error:
            table.note(where, str(error), failed=True)


def delphi(cache_dir, dense):
    from delphi.latents.loader import TensorBuffer

    wrong, modules = 0, sorted({file.parent for file in cache_dir.rglob("*.safetensors")})
    for module in modules:
        config = json.loads((module / "config.json").read_text())
        assert "model_name" in config, f"{module}/config.json names no model"
        splits = sorted(tuple(map(int, file.stem.split("_"))) for file in module.glob("*.safetensors"))
        assert all(a[1] + 1 == b[0] for a, b in zip(splits, splits[1:])), f"{module}: splits with gaps: {splits}"
        parts = []
        for start, end in splits:
            where, values, tokens = TensorBuffer(str(module / f"{start}_{end}.safetensors"), module.name).load()
            key = (where * torch.tensor([2**42, 2**22, 1])).sum(1)
            assert bool((key.diff() > 0).all()), f"{module}/{start}_{end}: not in the order (row, position, latent)"
            assert len(where) == 0 or start <= int(where[:, 2].min()) <= int(where[:, 2].max()) <= end
            assert tokens is not None and values.dtype == torch.float16
            parts.append((where, values))
        where, values = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        text = f"{len(splits)} splits, {len(values)} activations, tokens {tuple(tokens.shape)}"
        if dense is not None:
            file, _, name = str(dense).partition(":")
            tensors = load_file(file)
            want = (tensors[name] if name else tensors["feature_acts"]).float()
            want = want.reshape(*tokens.shape, want.shape[-1])
            back = torch.zeros_like(want)
            back[tuple(where.T)] = values.float()
            worst = float((back - torch.where(want.abs() > 1e-5, want, torch.zeros(())).half().float()).abs().max())
            wrong += worst > 0
            text += f", largest difference from the dense activations {worst:.1e}"
        print(f"{module.relative_to(cache_dir)}: {text}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("target/release/gemma-scope"))
    parser.add_argument("--fixtures", type=Path, default=Path("fixtures/sae"))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--only", help="cases and architectures whose name contains this")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--keep", type=Path, help="leave what was written here")
    parser.add_argument("--delphi", type=Path, metavar="CACHE_DIR")
    parser.add_argument("--dense", help="F.safetensors[:NAME]")
    options = parser.parse_args()
    if options.delphi:
        raise SystemExit(1 if delphi(options.delphi, options.dense) else 0)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.keep or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        table = Table(options.tolerance)
        to_peers(options, table, scratch)
        from_peers(options, table, scratch)
        print()
        table.brief()
        print(f"\n{table.failed} failed, {table.refused} conversions refused")
        raise SystemExit(1 if table.failed else 0)
