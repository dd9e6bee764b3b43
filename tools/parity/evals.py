"""Set the metrics of `gemma-scope eval` beside what SAELens, dictionary_learning and sparsify say of the same SAEs.

    python evals.py [--bin target/release/gemma-scope] [--fixtures fixtures] [--tolerance 1e-5] > docs/parity-evals.md

The SAEs, the tokens and the checkpoint are those of `fixtures/eval`. The peers' own code runs on them: SAELens' `run_evals` in
TransformerLens' HookedTransformer (the checkpoint's weights through its own conversion, special tokens excluded),
dictionary_learning's `evaluate` on the activations that count, and sparsify's `SparseCoder.forward` with the SAE's latents.

A number that differs has a letter for its reason. The reason is tested, not told: the reference run (float64,
`tools/golden/eval_more_golden.py`) computes the metric as the peer defines it, and what is "left" between that and the peer's
own number has to be below the tolerance, relative to the largest magnitude. So has what is left between our number and the
reference's by our definition. The exit status is 1 otherwise; a metric that the program does not print yet counts as nothing.

The packages: `tools/golden/requirements.txt`, then `tools/golden/requirements-formats.txt`.
"""

import argparse
import contextlib
import json
import logging
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to stdout
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
    import sae_formats_golden  # noqa: E402, F401  (stand-ins first)

    import numpy as np  # noqa: E402
    import torch  # noqa: E402
    from dictionary_learning.dictionary import JumpReluAutoEncoder  # noqa: E402
    from dictionary_learning.evaluation import evaluate  # noqa: E402
    from eval_more_golden import Case, Gemma2  # noqa: E402
    from sae_lens import saes  # noqa: E402
    from sae_lens.evals import get_eval_everything_config, run_evals  # noqa: E402
    from sae_lens.saes.sae import SAEMetadata  # noqa: E402
    from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
    from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402
    from sparsify.fused_encoder import EncoderOutput  # noqa: E402
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: E402
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights  # noqa: E402
    from transformers import Gemma2ForCausalLM  # noqa: E402

SPECIAL = [0, 1, 2]
ROWS_A_BATCH = 4  # of the second table

# metric here, peer, its name there, letters of REASONS
ROWS = [
    ("ce_clean", "SAELens", "ce_loss_without_sae", "a"),
    ("ce_spliced", "SAELens", "ce_loss_with_sae", "a"),
    ("ce_zero", "SAELens", "ce_loss_with_ablation", "a b"),
    ("loss_recovered_zero", "SAELens", "ce_loss_score", "a b"),
    ("kl", "SAELens", "kl_div_with_sae", "c"),
    ("kl_zero", "SAELens", "kl_div_with_ablation", "b c"),
    ("kl_score_zero", "SAELens", "kl_div_score", "b c"),
    ("explained_variance", "SAELens", "explained_variance", ""),
    ("explained_variance_legacy", "SAELens", "explained_variance_legacy", "d"),
    ("mse", "SAELens", "mse", ""),
    ("cosine", "SAELens", "cossim", ""),
    ("l2_norm_in", "SAELens", "l2_norm_in", ""),
    ("l2_norm_out", "SAELens", "l2_norm_out", ""),
    ("l2_ratio", "SAELens", "l2_ratio", ""),
    ("relative_reconstruction_bias", "SAELens", "relative_reconstruction_bias", "d"),
    ("l0", "SAELens", "l0", ""),
    ("l1", "SAELens", "l1", ""),
    ("frequency", "SAELens", "feature_density", ""),
    ("latents.consistent_activation_heuristic", "SAELens", "consistent_activation_heuristic", ""),
    ("encoder_norm", "SAELens", "encoder_norm", ""),
    ("encoder_bias", "SAELens", "encoder_bias", ""),
    ("encoder_decoder_cosine", "SAELens", "encoder_decoder_cosine_sim", ""),
    ("frac_variance_explained", "dictionary_learning", "frac_variance_explained", "d"),
    ("l2_loss", "dictionary_learning", "l2_loss", "d"),
    ("cosine", "dictionary_learning", "cossim", "d"),
    ("l2_ratio", "dictionary_learning", "l2_ratio", "d"),
    ("relative_reconstruction_bias", "dictionary_learning", "relative_reconstruction_bias", "d"),
    ("l0", "dictionary_learning", "l0", "d"),
    ("l1", "dictionary_learning", "l1_loss", "d"),
    ("dead_fraction", "dictionary_learning", "1 - frac_alive", ""),
    ("fvu", "sparsify", "fvu", "d"),
]
NO_PEER = [
    "delta_loss", "ce_mean", "kl_mean", "loss_recovered_mean", "kl_score_mean", "normalized_mse", "l0_std",
    "frac_over_1_percent", "frac_over_10_percent", "mass_over_1_percent", "mass_over_10_percent", "uniformity",
    "decoder_norm", "max_encoder_cosine", "max_decoder_cosine",
]
# Why SAELens' numbers differ for a transcoder. Zero in the MLP's place is zero at its input too: that is no reason.
TRANSCODER_WHY = {
    "ce_loss_without_sae": "a", "ce_loss_with_sae": "a e", "ce_loss_with_ablation": "a b", "ce_loss_score": "a b e",
    "kl_div_with_sae": "c e", "kl_div_with_ablation": "b c", "kl_div_score": "b c e",
}
REASONS = {
    "a": "SAELens takes the loss at every position whose own token is not special, also where the next token, which is the one"
         " predicted, is EOS, BOS or PAD. Here both have to count.",
    "b": "SAELens' zero ablation zeroes every position, BOS and padding too, while its SAE is spliced in at the positions that"
         " count only. Here both are done at those, so that the score compares like with like.",
    "c": "SAELens takes the divergence at every position whose own token is not special, the last of a row too. Here it is taken"
         " where the loss is.",
    "d": "The peer's number depends on how the tokens are cut into batches. SAELens' explained_variance_legacy takes the mean"
         " activation of the batch, and its relative_reconstruction_bias is the mean of the batches' ratios; all of"
         " dictionary_learning's but frac_alive, and sparsify's FVU, are the batches' numbers averaged without weights. Here sums"
         " run over all tokens and are divided once.",
    "e": "Neither SAELens' evals nor dictionary_learning's know an output hook: a transcoder's output is compared with its own"
         " input, and by SAELens put in that input's place. Here it is compared with the activation at the output's hook, and"
         " replaces that.",
}


# The peers


def transformer_lens(folder):
    """The checkpoint as TransformerLens runs a Gemma 2 (of which it knows the public sizes only)."""
    theirs = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    c = theirs.config
    cfg = HookedTransformerConfig(
        d_model=c.hidden_size, d_head=c.head_dim, n_heads=c.num_attention_heads, d_mlp=c.intermediate_size,
        n_layers=c.num_hidden_layers, n_ctx=c.max_position_embeddings, eps=c.rms_norm_eps, d_vocab=c.vocab_size,
        act_fn="gelu_pytorch_tanh", normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=c.head_dim,
        rotary_base=c.rope_parameters["rope_theta"], n_key_value_heads=c.num_key_value_heads, use_attn_scale=True,
        attn_scale=c.query_pre_attn_scalar ** 0.5, use_local_attn=True, window_size=c.sliding_window,
        attn_types=["local" if kind == "sliding_attention" else "global" for kind in c.layer_types],
        attn_scores_soft_cap=c.attn_logit_softcapping, output_logits_soft_cap=c.final_logit_softcapping, gated_mlp=True,
        final_rms=True, use_normalization_before_and_after=True, original_architecture="Gemma2ForCausalLM", device="cpu",
        dtype=torch.float32, seed=None,
    )
    model = HookedTransformer(cfg)
    missing = model.load_state_dict(convert_gemma_weights(theirs, cfg), strict=False).missing_keys
    assert all("mask" in key or "IGNORE" in key or "rotary" in key for key in missing), missing
    return model.eval(), theirs


class Store:
    """What SAELens' evals ask of an ActivationsStore."""

    def __init__(self, ids, rows):
        self.ids, self.store_batch_size_prompts, self.context_size, self.at = ids, rows, ids.shape[1], 0

    def get_batch_tokens(self, rows):
        self.at += rows
        return self.ids[self.at - rows:self.at]

    def reset_input_dataset(self):
        self.at = 0


def sae_lens(lens, case, rows, special=SPECIAL):
    d_in, d_sae = case.p32["W_enc"].shape
    sizes = dict(d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", apply_b_dec_to_input=False,
                 metadata=SAEMetadata(hook_name=case.read))
    if case.read == case.replaced:
        sae = saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**sizes))
    else:
        sae = saes.JumpReLUTranscoder(saes.JumpReLUTranscoderConfig(**sizes, d_out=case.p32["W_dec"].shape[1]))
    sae.load_state_dict(case.p32)
    batches = case.ids.shape[0] // rows
    config, store = get_eval_everything_config(rows, batches, batches), Store(case.ids, rows)
    groups, latents = run_evals(sae, store, lens, ActivationScaler(), config, exclude_special_tokens=special)
    return {name: value for group in groups.values() for name, value in group.items()} | latents


def dictionary_learning(case, batches):
    sae = JumpReluAutoEncoder(*case.p32["W_enc"].shape)
    sae.load_state_dict(case.p32)
    kept = [case.input[rows][case.kept[rows]].float() for rows in batches]
    got = evaluate(sae, iter(kept), n_batches=len(kept))
    return got | {"1 - frac_alive": 1 - got["frac_alive"]}


def sparsify(case, batches):
    """sparsify has no JumpReLU: its forward pass, and so its own FVU, with our latents in the place of its top k."""
    (d_in, d_sae), values = case.p32["W_enc"].shape, []
    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=d_sae, transcode=case.read != case.replaced))
    with torch.no_grad():
        coder.W_dec.copy_(case.p32["W_dec"])
        coder.b_dec.copy_(case.p32["b_dec"])
        for rows in batches:
            kept = case.kept[rows]
            f, x, y = (t[rows][kept].float() for t in (case.f, case.input, case.target))
            coder.encode = lambda _, f=f: EncoderOutput(f, torch.arange(d_sae).expand_as(f).contiguous(), f)
            values.append(coder(x, y).fvu.item())
    return {"fvu": sum(values) / len(values)}


# The same by the reference


def token_losses(case, logits):
    following = case.ids.roll(-1, 1).unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, following).squeeze(-1)


def divergences(case, logits):
    clean, other = case.logits.log_softmax(-1), logits.log_softmax(-1)
    return (clean.exp() * (clean - other)).sum(-1)


def at_the_input(case):
    """The transcoder as if its output were to stand where it reads."""
    case = SimpleNamespace(**vars(case), run_with=None)
    case.replaced, case.target = case.read, case.input
    case.run_with = lambda new: Case.run_with(case, new)
    return case


def by_sae_lens(case, batches):
    """SAELens' numbers, from the reference run, where they are not ours."""
    zero = {case.replaced: torch.zeros_like}
    outputs = {"with_sae": case.run_with(case.recon), "with_ablation": case.model(case.ids, zero)[0]}
    own = case.kept.clone()
    own[:, -1] = False
    got = {f"ce_loss_{k}": token_losses(case, v)[own].mean().item() for k, v in {"without_sae": case.logits, **outputs}.items()}
    got |= {f"kl_div_{k}": divergences(case, v)[case.kept].mean().item() for k, v in outputs.items()}
    top = got["ce_loss_with_ablation"]
    got["ce_loss_score"] = (top - got["ce_loss_with_sae"]) / (top - got["ce_loss_without_sae"])
    got["kl_div_score"] = (got["kl_div_with_ablation"] - got["kl_div_with_sae"]) / got["kl_div_with_ablation"]
    legacy, bias = [], []
    for rows in batches:
        x, x_hat = case.target[rows][case.kept[rows]], case.recon[rows][case.kept[rows]]
        legacy.append(1 - ((x - x_hat) ** 2).sum(-1) / ((x - x.mean(0)) ** 2).sum(-1))
        bias.append(((x_hat ** 2).sum() / (x * x_hat).sum()).item())
    got["explained_variance_legacy"] = torch.cat(legacy).mean().item()
    got["relative_reconstruction_bias"] = sum(bias) / len(bias)
    return got


def in_sae_lens_transcoder(case):
    """What SAELens says of a transcoder: everything against the input."""
    case = at_the_input(case)
    whole = slice(0, case.ids.shape[0])
    x, x_hat = case.target[case.kept], case.recon[case.kept]
    got = by_sae_lens(case, [whole])
    error = ((x - x_hat) ** 2).sum(-1)
    got["mse"] = error.mean().item()
    got["explained_variance"] = 1 - (error.sum() / ((x - x.mean(0)) ** 2).sum()).item()
    got["cossim"] = torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean().item()
    got["l2_norm_in"] = x.norm(dim=-1).mean().item()
    got["l2_ratio"] = (x_hat.norm(dim=-1) / x.norm(dim=-1)).mean().item()
    return got


def by_dictionary_learning(case, batches):
    """Batch by batch, averaged without weights."""
    each = []
    for rows in batches:
        kept = case.kept[rows]
        x, x_hat, f = (t[rows][kept] for t in (case.target, case.recon, case.f))
        each.append({
            "frac_variance_explained": 1 - (x - x_hat).var(0).sum() / x.var(0).sum(),
            "l2_loss": (x - x_hat).norm(dim=-1).mean(), "l1_loss": f.sum(-1).mean(), "l0": (f > 0).double().sum(-1).mean(),
            "cossim": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1).mean(),
            "l2_ratio": (x_hat.norm(dim=-1) / x.norm(dim=-1)).mean(),
            "relative_reconstruction_bias": (x_hat ** 2).sum() / (x * x_hat).sum(),
        })
    return {name: sum(one[name].item() for one in each) / len(each) for name in each[0]}


def by_sparsify(case, batches):
    each = []
    for rows in batches:
        x, x_hat = case.target[rows][case.kept[rows]], case.recon[rows][case.kept[rows]]
        each.append((((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()).item())
    return {"fvu": sum(each) / len(each)}


def steps(case):
    """From our CE and KL to SAELens', one difference at a time."""
    own = case.kept.clone()
    own[:, -1] = False
    everywhere = case.model(case.ids, {case.replaced: torch.zeros_like})[0]
    runs = {"clean": (case.logits, None), "spliced": (case.run_with(case.recon), None),
            "zero": (case.run_with(torch.zeros_like(case.target)), everywhere)}
    for name, (ours, theirs) in runs.items():
        for kind, of, wider in (("ce", token_losses, own), ("kl", divergences, case.kept)):
            if (kind, name) != ("kl", "clean"):
                values = [of(case, ours)[case.scored].mean(), of(case, ours)[wider].mean()]
                if theirs is not None:
                    values.append(of(case, theirs)[wider].mean())
                yield {"ce": f"ce_{name}", "kl": "kl" if name == "spliced" else f"kl_{name}"}[kind], values


# Ours


WEIGHTS = {"encoder_norm", "decoder_norm", "encoder_bias", "encoder_decoder_cosine", "max_encoder_cosine",
           "max_decoder_cosine"}


def ours(binary, fixtures, folder, *more):
    """Every number of the program's JSON by its name; a latent's are lists, and `latents.NAME` where a mean has the name too."""
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "eval.json"
        command = [binary, "eval", "--model", fixtures / "gemma2/mini-2b", "--tokens", fixtures / "eval/tokens.json",
                   "--sae", folder, "--threads", "2", "--neighbours", "--uniformity", "99", "--json", out, *more]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{folder}: {done.stderr.strip()}", file=sys.stderr)
            return {}
        (report,) = json.loads(out.read_text())
    latents = report.get("latents") or {}
    # The means over latents that the program prints of the weights have the lists' names: what peers print is the lists.
    metrics = {k: v for k, v in report["metrics"].items() if k not in WEIGHTS}
    return latents | metrics | {f"latents.{name}": values for name, values in latents.items()}


# The table


def apart(a, b):
    """Largest difference relative to the largest magnitude; null and NaN are each other's equal."""
    a, b = (np.atleast_1d(np.array(v, dtype=float)) for v in (a, b))
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return math.inf
    scale = np.nanmax(np.abs(b))
    return float(np.nanmax(np.abs(a - b)) / (scale if scale > 0 else 1))


def cell(value):
    if value is None:
        return "not printed"
    return f"{len(value)} values" if isinstance(value, list) else f"{value:.6f}"


COLUMNS = ["metric", "ours", "peer", "its name", "its value", "difference", "by its definition", "left", "why"]


class Table:
    def __init__(self, columns, tolerance):
        self.columns, self.tolerance, self.lines, self.wrong = columns, tolerance, [], []

    def row(self, cells, left):
        """`left` are the differences that have to vanish."""
        over = any(value > self.tolerance for value in left)
        self.lines.append(list(map(str, cells)))
        if over:
            self.wrong.append(" ".join(map(str, cells)))

    def markdown(self):
        return "\n".join("| " + " | ".join(line) + " |" for line in [self.columns, ["---"] * len(self.columns), *self.lines])


def reference(case, expected, more):
    return more["latents"] | expected | more["metrics"] | {f"latents.{k}": v for k, v in more["latents"].items()}


def side_by_side(case, lens, mine, golden, tolerance):
    """The three tables of one SAE: one batch, several, and the steps of CE and KL."""
    rows = case.ids.shape[0]
    whole, parts = [slice(0, rows)], [slice(i, i + ROWS_A_BATCH) for i in range(0, rows, ROWS_A_BATCH)]
    peers = {"SAELens": [sae_lens(lens, case, n) for n in (rows, ROWS_A_BATCH)],
             "dictionary_learning": [dictionary_learning(case, b) for b in (whole, parts)],
             "sparsify": [sparsify(case, b) for b in (whole, parts)]}
    theirs_by_us = {"SAELens": [by_sae_lens(case, b) for b in (whole, parts)],
                    "dictionary_learning": [by_dictionary_learning(case, b) for b in (whole, parts)],
                    "sparsify": [by_sparsify(case, b) for b in (whole, parts)]}
    one = Table(COLUMNS, tolerance)
    columns = ["metric", "ours", "peer", "its value in one batch", "in three", "by its definition", "left"]
    many = Table(columns, tolerance)
    for metric, peer, name, why in ROWS:
        value, again = (got[name] for got in peers[peer])
        by_it, again_by_it = (got.get(name, golden[metric]) for got in theirs_by_us[peer])
        own, left = mine.get(metric), apart(by_it, value)
        checks = [left] + ([] if own is None else [apart(own, golden[metric])])
        difference = apart(golden[metric] if own is None else own, value)
        reasons = " ".join(letter for letter in why.split() if letter != "d")
        same = difference <= tolerance
        if not same and not reasons:
            checks.append(math.inf)  # a difference without a reason
        one.row([f"`{metric.removeprefix('latents.')}`", cell(own), peer, f"`{name}`", cell(value), f"{difference:.0e}",
                 "the same" if same else cell(by_it), f"{left:.0e}", "" if same else reasons], checks)
        if apart(again, value) > tolerance:
            left = apart(again_by_it, again)
            many.row([f"`{metric}`", cell(own), peer, cell(value), cell(again), cell(again_by_it), f"{left:.0e}"],
                     [left] + ([] if "d" in why else [math.inf]))
    path = Table(["metric", "ours", "at its positions", "and zero everywhere", "SAELens", "left"], tolerance)
    named = {metric: name for metric, peer, name, _ in ROWS if peer == "SAELens"}
    for metric, values in steps(case):
        value = peers["SAELens"][0][named[metric]]
        left = apart(values[-1], value)
        shown = [f"{v:.6f}" for v in values] + ["–"] * (3 - len(values))
        path.row([f"`{metric}`", *shown, cell(value), f"{left:.0e}"], [left])
    return one, many, path


def nothing_excluded(case, lens, mine, golden, tolerance):
    """SAELens and ours with every position counted: (a) and (b) have no room there."""
    theirs, by_it = sae_lens(lens, case, case.ids.shape[0], special=False), by_sae_lens(case, [slice(None)])
    table = Table(COLUMNS[:1] + COLUMNS[1:2] + COLUMNS[3:], tolerance)
    for metric, peer, name, why in ROWS:
        if peer == "SAELens" and metric in golden:
            own, value, again = mine.get(metric), theirs[name], by_it.get(name, golden[metric])
            left, difference = apart(again, value), apart(golden[metric] if own is None else own, value)
            same = difference <= tolerance
            table.row([f"`{metric}`", cell(own), f"`{name}`", cell(value), f"{difference:.0e}",
                       "the same" if same else cell(again), f"{left:.0e}", "" if same else "c"],
                      [left] + ([] if own is None else [apart(own, golden[metric])])
                      + ([] if same or "c" in why else [math.inf]))
    return table


def transcoder_table(case, lens, mine, golden, tolerance):
    whole, table = [slice(0, case.ids.shape[0])], Table(COLUMNS, tolerance)
    peers = {"SAELens": sae_lens(lens, case, case.ids.shape[0]), "dictionary_learning": dictionary_learning(case, whole),
             "sparsify": sparsify(case, whole)}
    by_it = {"SAELens": in_sae_lens_transcoder(case), "dictionary_learning": by_dictionary_learning(at_the_input(case), whole),
             "sparsify": {}}
    for metric, peer, name, _ in ROWS:
        own, value, again = mine.get(metric), peers[peer][name], by_it[peer].get(name, golden[metric])
        left, difference = apart(again, value), apart(golden[metric] if own is None else own, value)
        same = difference <= tolerance
        table.row([f"`{metric.removeprefix('latents.')}`", cell(own), peer, f"`{name}`", cell(value), f"{difference:.0e}",
                   "the same" if same else cell(again), f"{left:.0e}", "" if same else TRANSCODER_WHY.get(name, "e")],
                  [left] + ([] if own is None else [apart(own, golden[metric])]))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("target/release/gemma-scope"))
    parser.add_argument("--fixtures", type=Path, default=Path("fixtures"))
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    folder = options.fixtures / "eval"
    ids = torch.tensor(json.loads((folder / "tokens.json").read_text())["input_ids"])
    expected, more = (json.loads((folder / name).read_text()) for name in ("expected.json", "more.json"))
    checkpoint = options.fixtures / "gemma2/mini-2b"
    with contextlib.redirect_stdout(sys.stderr):
        lens, transformers_model = transformer_lens(checkpoint)
    with torch.no_grad():
        logits = transformers_model(ids, use_cache=False).logits
        difference = apart(lens(ids).flatten(), logits.flatten())
    model, wrong, printed = Gemma2(checkpoint), [], set()
    if difference > 1e-5:
        wrong.append(f"TransformerLens' logits are {difference:.0e} from Transformers'")

    print("# Metrics beside the peers' own\n")
    print("Written by [`tools/parity/evals.py`](../tools/parity/README.md), whose docstring says how each column comes about,"
          f" from\n`fixtures/eval`: {ids.shape[0]} sequences of {ids.shape[1]} tokens with BOS, EOS and padding among them, a"
          f" Gemma 2 of random weights. TransformerLens'\nlogits are {difference:.0e} from Transformers' on it. Differences are"
          " relative to the largest magnitude. \"By its definition\" is what our\nreference finds when it computes the metric as that peer"
          " defines it; \"left\" is what separates that from the peer's own number.\n")
    print("Why a number differs:\n")
    for letter, text in REASONS.items():
        print(f"* **{letter}** {text}")
    print("\nThese three print no counterpart of " + ", ".join(f"`{name}`" for name in NO_PEER) + ". dictionary_learning's loss"
          " recovered\nneeds nnsight, and was not run.")
    for name, entry in more.items():
        with np.load(folder / name / "params.npz") as arrays:
            case = Case(model, ids, entry["site"], entry["layer"], {k: torch.from_numpy(arrays[k]) for k in arrays.files})
        golden = reference(case, expected.get(name, {}), entry)
        transcoder = entry["site"] == "transcoder"
        where = [] if transcoder else ["--hook", case.read]
        mine = ours(options.bin, options.fixtures, folder / name, *where)
        for metric in golden.keys() & mine.keys():
            printed.add(metric)
            # A difference of losses has their error, not its own size's.
            scale = golden["ce_zero"] / abs(golden[metric]) if metric == "delta_loss" else 1
            if apart(mine[metric], golden[metric]) > options.tolerance * max(1, scale):
                wrong.append(f"{name}: {metric} is {cell(mine[metric])}, the reference says {cell(golden[metric])}")
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            if transcoder:
                tables = {"": transcoder_table(case, lens, mine, golden, options.tolerance)}
            else:
                one, many, path = side_by_side(case, lens, mine, golden, options.tolerance)
                everywhere = Case(model, ids, entry["site"], entry["layer"], case.p32, torch.ones_like(case.kept))
                with torch.enable_grad():
                    golden_everywhere = everywhere.metrics()
                mine = ours(options.bin, options.fixtures, folder / name, *where, "--positions", "all")
                counted = nothing_excluded(everywhere, lens, mine, golden_everywhere, options.tolerance)
                tables = {"": one, f"In batches of {ROWS_A_BATCH} sequences, where that changes a peer's number (d):": many,
                          "From our loss and divergence to SAELens', one difference at a time:": path,
                          "With every position counted (`--positions all`, and no `exclude_special_tokens`):": counted}
        place = case.read if case.read == case.replaced else f"{case.read} → {case.replaced}"
        print(f"\n## {entry['site']}: `{place}`\n")
        for title, table in tables.items():
            print(*([title, ""] if title else []), table.markdown(), "", sep="\n")
            wrong += [f"{name}: {line}" for line in table.wrong]
    missing = sorted({k for k in golden if not k.startswith("latents.")} - printed)
    if missing:
        print("Where ours is not printed the difference is from our reference.")
    print("not printed by ours:", ", ".join(missing) or "nothing", file=sys.stderr)
    print(*wrong, sep="\n", file=sys.stderr)
    sys.exit(1 if wrong else 0)
