"""Write the probabilities that Hugging Face's samplers make of fixed logits.

    python sampling_golden.py OUT.json [--seed N]

OUT.json is `fixtures/sampling.json`: a list of {"logits", "temperature", "top_k", "top_p", "min_p",
"probabilities"}, null where a filter is not set. The filters run in the order temperature, top_k, top_p, min_p,
in float64 (the logits are float32), then softmax: a token that a filter removed has probability 0.

The third vector has ties: two tokens share the largest logit, and four another, so that top_k keeps more than k.
Which of two tied tokens top_p removes is up to the sort, which is not stable: such a case is left out, printed.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

LENGTH = 40
# temperature, top_k, top_p, min_p
SETTINGS = [
    (1.0, None, None, None),
    (0.7, None, None, None),
    (1.8, None, None, None),
    (1.0, 5, None, None),
    (1.0, 1, None, None),
    (1.0, 100, None, None),  # more than there are
    (1.0, None, 0.9, None),
    (1.0, None, 1e-6, None),  # one token stays
    (1.0, None, 1.0, None),
    (1.0, None, None, 0.05),
    (1.0, None, None, 1.0),  # only the likeliest
    (0.5, 8, None, None),
    (1.3, None, 0.6, None),
    (1.5, None, None, 0.1),
    (0.8, 12, 0.95, None),
    (1.2, 20, 0.9, 0.03),
    (0.6, 3, 0.5, 0.5),
]


def vectors(generator):
    """Three float32 vectors, the last with ties at the top and across the fifth place."""
    plain = [spread * torch.randn(LENGTH, generator=generator) for spread in (1.2, 2.5, 2.0)]
    order = plain[2].argsort(descending=True)
    plain[2][order[1]] = plain[2][order[0]]
    plain[2][order[3:7]] = plain[2][order[4]].clone()
    return plain


def probabilities(logits, temperature, top_k, top_p, min_p):
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    for warper, value in ((TopKLogitsWarper, top_k), (TopPLogitsWarper, top_p), (MinPLogitsWarper, min_p)):
        if value is not None:
            scores = warper(value)(None, scores)
    return scores.softmax(-1)[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    for number, logits in enumerate(vectors(torch.Generator().manual_seed(options.seed))):
        for setting in SETTINGS:
            found = probabilities(logits.double(), *setting)
            if any(found[logits == value].unique().numel() > 1 for value in logits.unique()):
                print("left out, a tie is cut:", number, setting)
                continue
            # No probability may lie so near a cut that float32 would turn it.
            rough = probabilities(logits, *setting)
            assert torch.equal(found > 0, rough > 0), f"too near a cut: {setting}"
            case = dict(zip(("temperature", "top_k", "top_p", "min_p"), setting))
            cases.append({"logits": logits.tolist(), **case, "probabilities": found.tolist()})
            print(number, setting, "kept", int((found > 0).sum()))
    options.out.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
