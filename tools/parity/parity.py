"""Compare this project with Hugging Face's implementation at the true shapes of Gemma 2 2B.

    python parity.py build DIR [--layers 26] [--dtype float32]
    python parity.py tokens TOKENS.json [--length 64]
    python parity.py reference DIR REFERENCE.safetensors --tokens TOKENS.json [--dtype float32]
    python parity.py compare OURS.safetensors REFERENCE.safetensors [--tolerance 1e-3]

`build` writes a random checkpoint as Hugging Face lays one out, one shard in memory at a time. `reference` runs
it and writes the activations that `tools/golden/gemma2_golden.py` records, and the logits. `compare` prints, for
each kind of hook point, the layer with the largest difference. OURS is what `gemma-scope activations` writes:
README.md has the whole command.
"""

import argparse
import json
import re
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
from gemma2_golden import record  # noqa: E402

SHARD_BYTES = 5e9


def config_2b(layers, dtype):
    return Gemma2Config(vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=layers,
                        num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
                        sliding_window=4096, dtype=dtype, architectures=["Gemma2ForCausalLM"])


def parameters(config):
    """Name, shape and standard deviation of every tensor.

    Every block adds about one unit to the residual stream. Attention scores have a standard deviation near 4, and
    the logit of a position's own token comes near 20 in few layers: both soft-caps bend what they cap a little.
    """
    d, mlp = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, d), 0.02
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}."
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{block}{name}_layernorm.weight", (d,), 0.1
        for name, rows, columns, gain in (
                ("self_attn.q_proj", q, d, 2.0), ("self_attn.k_proj", kv, d, 2.0),
                ("self_attn.v_proj", kv, d, 1.0), ("self_attn.o_proj", d, q, 1.0),
                ("mlp.gate_proj", mlp, d, 1.0), ("mlp.up_proj", mlp, d, 1.0), ("mlp.down_proj", d, mlp, 1.0)):
            yield f"{block}{name}.weight", (rows, columns), gain / columns ** 0.5
    yield "model.norm.weight", (d,), 0.1


def shards(config, width):
    """The parameters in order, cut where the next would make a shard too large."""
    shard, size = [], 0
    for name, shape, std in parameters(config):
        count = torch.Size(shape).numel() * width
        if shard and size + count > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((name, shape, std))
        size += count
    yield shard


def build(o):
    config, dtype = config_2b(o.layers, o.dtype), getattr(torch, o.dtype)
    o.dir.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(o.dir)
    generator = torch.Generator().manual_seed(o.seed)
    plan = list(shards(config, dtype.itemsize))
    weight_map, total = {}, 0
    for number, shard in enumerate(plan, 1):
        file = f"model-{number:05}-of-{len(plan):05}.safetensors"
        tensors = {}
        for name, shape, std in shard:
            tensors[name] = torch.empty(shape).normal_(0, std, generator=generator).to(dtype)
            weight_map[name] = file
            total += tensors[name].nbytes
        save_file(tensors, o.dir / file, metadata={"format": "pt"})
        del tensors
        print(file, len(shard), "tensors", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (o.dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    print(f"{total / 1e9:.2f} GB, peak {peak_gb():.2f} GB of memory")


def tokens(o):
    generator = torch.Generator().manual_seed(o.seed)
    ids = torch.randint(5, 256000, (1, o.length), generator=generator)
    ids[:, 0] = 2
    o.out.write_text(json.dumps({"input_ids": ids.tolist()}))


def reference(o):
    data = json.loads(o.tokens.read_text())
    ids = torch.tensor(data["input_ids"])
    mask = torch.tensor(data["attention_mask"]) if "attention_mask" in data else None
    start = time.perf_counter()
    dtype = getattr(torch, o.dtype)
    model = Gemma2ForCausalLM.from_pretrained(o.dir, attn_implementation="eager", dtype=dtype).eval()
    loaded = time.perf_counter()
    got, logits = record(model, ids, mask)
    done = time.perf_counter()
    got["logits"] = logits.contiguous()
    save_file(got, o.out)
    print(f"load {loaded - start:.1f} s, run {done - loaded:.1f} s, peak {peak_gb():.2f} GB of memory, "
          f"{len(got)} tensors, largest logit {logits.abs().max():.1f}")


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(o):
    worst, missing, wrong = {}, [], []
    with safe_open(o.ours, "pt") as ours, safe_open(o.reference, "pt") as theirs:
        known = set(ours.keys())
        for name in theirs.keys():
            if name not in known:
                missing.append(name)
                continue
            a, b = ours.get_tensor(name).double(), theirs.get_tensor(name).double()
            if a.shape != b.shape:
                wrong.append(f"{name}: ours is {list(a.shape)}, the reference {list(b.shape)}")
                continue
            difference, largest = (a - b).abs().max().item(), b.abs().max().item()
            relative = difference / largest if largest else difference
            relative = float("inf") if relative != relative else relative  # NaN is the largest difference
            layer = re.match(r"blocks\.(\d+)\.", name)
            kind = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
            row = (relative, difference, largest, layer[1] if layer else "")
            if kind not in worst or relative > worst[kind][0]:
                worst[kind] = row
            if name == "logits":
                agree = (a.argmax(-1) == b.argmax(-1)).double().mean().item()
    print(f"{'hook point':<32}{'layer':>6}{'max |diff|':>13}{'largest':>11}{'relative':>11}")
    for kind, (relative, difference, largest, layer) in sorted(worst.items(), key=order):
        over = "" if relative <= o.tolerance else "  over"
        print(f"{kind:<32}{layer:>6}{difference:>13.2e}{largest:>11.2f}{relative:>11.2e}{over}")
    if "logits" in worst:
        print(f"top-1 agreement {100 * agree:.2f} %")
    for line in wrong:
        print("shape of", line)
    if missing:
        print(len(missing), "tensors of the reference are not in ours:", ", ".join(missing[:8]),
              "..." if len(missing) > 8 else "")
    held = all(row[0] <= o.tolerance for row in worst.values())
    sys.exit(0 if worst and held and not missing and not wrong else 1)


ORDER = ["hook_embed", "hook_resid_pre", "ln1", "hook_q", "hook_k", "hook_v", "hook_pattern", "hook_z",
         "hook_attn_out", "hook_resid_mid", "ln2", "hook_pre", "hook_pre_linear", "hook_post", "hook_mlp_out",
         "hook_resid_post", "ln_final", "logits"]


def order(item):
    """As the model computes them; what is not known here comes last."""
    parts = item[0].split(".")
    return next((n for n, name in enumerate(ORDER) if name in parts), len(ORDER))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    kinds = dict(choices=["float32", "bfloat16"], default="float32")

    command = commands.add_parser("build", help="write a random checkpoint of 2B shapes")
    command.add_argument("dir", type=Path)
    command.add_argument("--layers", type=int, default=26)
    command.add_argument("--dtype", **kinds)
    command.add_argument("--seed", type=int, default=2)
    command.set_defaults(run=build)

    command = commands.add_parser("tokens", help="write random tokens that begin with <bos>")
    command.add_argument("out", type=Path)
    command.add_argument("--length", type=int, default=64)
    command.add_argument("--seed", type=int, default=3)
    command.set_defaults(run=tokens)

    command = commands.add_parser("reference", help="run Hugging Face's implementation")
    command.add_argument("dir", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--tokens", type=Path, required=True)
    command.add_argument("--dtype", **kinds)
    command.set_defaults(run=reference)

    command = commands.add_parser("compare", help="print the differences; exit status 1 when one is too large")
    command.add_argument("ours", type=Path)
    command.add_argument("reference", type=Path)
    command.add_argument("--tolerance", type=float, default=1e-3)
    command.set_defaults(run=compare)

    options = parser.parse_args()
    options.run(options)
