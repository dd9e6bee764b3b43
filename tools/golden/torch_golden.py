"""Write `torch.save` files, and what they hold, for the reader that runs no Python.

    python torch_golden.py OUT_DIR

Each `CASE.pt` holds what `expected.json` says under CASE: None, bool, int and str as they are, and else one key:

  {"list": [...]}, {"tuple": [...]}   a list, or a tuple or torch.Size
  {"dict": [[key, value], ...]}       a dict or OrderedDict, in its order
  {"tensor": NAME}                    the tensor NAME of `expected.safetensors`, contiguous there
  {"float": TEXT}                     a float, to the last bit

dtypes and devices stand as their names. The cases:

  dtypes_pN     a dict of every dtype that is read, at pickle protocol N
  module        the state dict of a module: an OrderedDict with `_metadata`
  config        nested plain values beside a tensor, as SAE trainers save them
  views         transposed, strided, offset and permuted views, and two tensors of one storage
  shapes        tensors without axes, without elements, of one element; parameters
  one_tensor    a tensor alone
  long_list     more than a thousand entries, which pickle writes in batches
  protocol_N    a nested dict at pickle protocol N
"""

import argparse
import collections
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def dtypes():
    return {name: torch.arange(-3, 4).to(getattr(torch, name)) for name in DTYPES}


def module():
    """Names as in common SAE trainers, among them a decoder that is saved as a transposed view."""
    sae = torch.nn.Module()
    sae.encoder = torch.nn.Linear(6, 10)
    sae.decoder = torch.nn.Linear(10, 6, bias=False)
    sae.decoder.weight = torch.nn.Parameter(torch.randn(10, 6).T)
    sae.b_dec = torch.nn.Parameter(torch.randn(6))
    sae.register_buffer("k", torch.tensor(3, dtype=torch.int))
    sae.register_buffer("threshold", torch.tensor(-1.0))
    return sae.state_dict()


def config():
    shared = {"seed": 49, "notes": None}
    trainer = {
        "lr": 5e-5, "tiny": 1e-300, "minus": -0.0, "inf": math.inf, "steps": 10_000, "neg": -5, "far": 2**40,
        "low": -(2**63), "high": 2**63 - 1, "zero": 0, "byte": 255, "word": 65_535, "dict_class": "AutoEncoderTopK",
        "warm": True, "cold": False, "layers": [1, 2, [3.5, None, "x"]], "betas": (0.9, 0.999), "empty": [{}, [], ()],
        "name": "Gemma – é\n", 7: "an int is a key", (1, "a"): "so is a tuple", "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1), "cpu": torch.device("cpu"), "size": torch.Size([2, 3]),
        "first": shared, "second": shared,
    }
    return {"trainer": trainer, "state": collections.OrderedDict(w=torch.randn(2, 3)), "version": 1}


def views():
    base = torch.arange(60, dtype=torch.float32)
    square = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    return {
        "transposed": torch.arange(12, dtype=torch.float32).view(3, 4).T, "offset": base[17:23],
        "strided": base[3:50:7], "both": base.view(6, 10)[1:5:2, 2:9:3], "column": base.view(6, 10)[:, 4],
        "permuted": square.permute(2, 0, 1), "last": base[59], "whole": base, "again": base.view(6, 10),
        "shared": [base[:5], base[:5]],
    }


def shapes():
    return {
        "int": torch.tensor(7, dtype=torch.int32), "float": torch.tensor(2.5), "none": torch.empty(0),
        "wide": torch.empty(3, 0, 2), "one": torch.ones(1, 1, 1), "nan": torch.tensor([math.nan, -math.inf]),
        "parameter": torch.nn.Parameter(torch.randn(3)), "frozen": torch.nn.Parameter(torch.randn(2), requires_grad=False),
        "tail": torch.arange(4)[4:],
    }


def described(value, name, tensors):
    """`value` as `expected.json` has it; its tensors go to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [
            [described(k, f"{name}.key", tensors), described(v, f"{name}.{k}", tensors)] for k, v in value.items()
        ]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [described(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, float):
        return {"float": repr(value)}
    return value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    nested = {"a": {"b": [{"c": torch.randn(2, 2)}, (1, 2.5, "t")]}, "n": None}
    cases = {
        "module": (module(), 2), "config": (config(), 2), "views": (views(), 2), "shapes": (shapes(), 2),
        "one_tensor": (torch.randn(2, 5), 2), "long_list": ({"loss": [i / 8 for i in range(1100)]}, 2),
        **{f"dtypes_p{p}": (dtypes(), p) for p in (2, 5)}, **{f"protocol_{p}": (nested, p) for p in (2, 3, 4, 5)},
    }
    tensors, expected = {}, {}
    for case, (value, protocol) in cases.items():
        torch.save(value, options.out_dir / f"{case}.pt", pickle_protocol=protocol)
        expected[case] = described(value, case, tensors)
    # What torch.save wrote before 1.6, which is refused.
    torch.save({"w": torch.ones(2)}, options.out_dir / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, options.out_dir / "expected.safetensors")
    (options.out_dir / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
