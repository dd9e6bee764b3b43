"""Write the further metrics that the SAEs of `eval_golden.py` must score, and a transcoder with all of its metrics.

    python eval_more_golden.py GEMMA2_CASE_DIR EVAL_DIR

EVAL_DIR is the folder that `eval_golden.py` wrote: its SAEs, tokens and `expected.json` are read and left as they are. Where it
has no transcoder one is trained, like the SAEs, for layer 1: from `blocks.1.ln2.hook_normalized` (x / rms(x), before the gain) to
`blocks.1.hook_mlp_out`, some of its latents dead and some rare. Then `more.json` is written: for each folder of parameters the
names below, and for the transcoder those of `eval_golden.py` as well.

Everything is computed in float64, the model too (a forward pass written out here, checked against Transformers' float32), from
the float32 weights of the files. Kept and scored positions are those of `eval_golden.py`: kept are all but PAD (0), EOS (1) and
BOS (2); scored are kept ones whose next token is kept. x is what is replaced (for a transcoder its target, not its input), x_hat
what the SAE says, f its latents, frequency the share of kept positions on which a latent is active.

`metrics`
  kl_zero, kl_mean            mean KL(clean || zero- or mean-ablated) over scored positions; ablation at kept positions only
  kl_score_zero, _mean        (kl_X - kl) / kl_X
  l1                          mean over kept positions of sum_j |f_j|
  l0_std                      population standard deviation of the number of active latents
  explained_variance_legacy   mean over kept positions of 1 - |x - x_hat|^2 / |x - mean(x)|^2
  frac_variance_explained     1 - sum_d Var_d(x - x_hat) / sum_d Var_d(x): a constant error costs nothing
  normalized_mse              mean over kept positions of |x - x_hat|^2 / |x|^2
  l2_loss                     mean over kept positions of |x - x_hat|
  l2_norm_in, l2_norm_out     means of |x| and of |x_hat|
  frac_over_1_percent, _10_   share of latents with a frequency over 0.01, over 0.1
  mass_over_1_percent, _10_   those latents' share of the sum of all frequencies
  consistent_activation_heuristic   mean over latents that fire of the latents' values below
  uniformity                  mean of `uniformity_by_position`
`l0_histogram`: [l0, kept positions with it], ascending
`latents`, one value each
  frequency (transcoder only), encoder_norm, decoder_norm, encoder_bias
  encoder_decoder_cosine      of column j of W_enc and row j of W_dec
  max_encoder_cosine, max_decoder_cosine   largest (signed) cosine with another latent's column, row
  consistent_activation_heuristic   kept positions on which it fires / sequences in which it does; null where it never fires
`by_position`, one entry for each column of the tokens
  kept, scored                how many
  ce_clean, ce_spliced        means over the scored ones, null where there are none
  mse, l0                     means over the kept ones, null where there are none
  fvu                         sum |x - x_hat|^2 / sum |x - m|^2 over the kept ones; m is the mean of all kept positions
`uniformity_by_position`: [sequence, position, r], scored positions at which some y is not zero. L is the logit (after the
  soft-cap) of the next token less the mean logit, at that position of the clean model; g = dL/dx at the same position;
  y = f * (W_dec g); p = |y| / sum |y| where y is not zero; r = exp(-sum p log p) / #(y not zero). Gemma Scope, App. D.5.
`bf16`: l0, fvu, ce_spliced, delta_loss of the SAE in bfloat16, the model as before: `pre = x.bfloat16() @ W_enc.bfloat16()` and
  then `+ b_enc.bfloat16()`, two roundings; active where pre > threshold, which stays float32; the same two steps to decode; the
  result back to float32. FVU is against the x that was not rounded. Gemma Scope, App. D.4.
"""

import argparse
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from eval_golden import WIDTH
from safetensors.torch import load_file
from transformers import Gemma2ForCausalLM

TRANSCODER_LAYER = 1
# Latents of the transcoder whose threshold is raised until they fire on so many tokens: in the SAEs none is dead or rare.
RARE = {3: 0, 17: 0, 20: 1, 31: 2, 40: 3, 52: 11, 63: 0}


class Gemma2:
    """A forward pass in float64. `edits` maps the name of a hook point to what changes the tensor there."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.w = {k.removeprefix("model."): v.double() for k, v in load_file(folder / "model.safetensors").items()}

    def norm(self, x, name, hook=None):
        normal = x / (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return (normal if hook is None else hook(normal)) * (1 + self.w[name + ".weight"])

    def rotate(self, x):  # [batch, head, pos, d_head]
        half = self.config["head_dim"] // 2
        rate = self.config["rope_parameters"]["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rate
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    def attention(self, x, layer, hook):
        c, at = self.config, f"layers.{layer}.self_attn."
        batch, pos, _ = x.shape

        def heads(name):
            return (x @ self.w[at + name + ".weight"].T).view(batch, pos, -1, c["head_dim"]).transpose(1, 2)

        q, k, v = self.rotate(heads("q_proj")), self.rotate(heads("k_proj")), heads("v_proj")
        share = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = q @ k.transpose(2, 3) / c["query_pre_attn_scalar"] ** 0.5
        scores = torch.tanh(scores / c["attn_logit_softcapping"]) * c["attn_logit_softcapping"]
        back = torch.arange(pos)[:, None] - torch.arange(pos)
        hidden = back < 0
        if c["layer_types"][layer] == "sliding_attention":
            hidden = hidden | (back >= c["sliding_window"])
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        z = (pattern @ v).transpose(1, 2).reshape(batch, pos, -1)
        return hook("attn.hook_z", z) @ self.w[at + "o_proj.weight"].T

    def __call__(self, ids, edits=None):
        c, edits, seen = self.config, edits or {}, {}
        root = torch.tensor(c["hidden_size"] ** 0.5, dtype=torch.float32).double()  # the reference holds it in float32
        x = self.w["embed_tokens.weight"][ids] * root
        for layer in range(c["num_hidden_layers"]):
            def hook(name, value, block=f"blocks.{layer}."):
                seen[block + name] = value
                return edits.get(block + name, lambda t: t)(value)

            at = f"layers.{layer}."
            heads = self.attention(self.norm(x, at + "input_layernorm"), layer, hook)
            x = x + self.norm(heads, at + "post_attention_layernorm")
            h = self.norm(x, at + "pre_feedforward_layernorm", lambda t: hook("ln2.hook_normalized", t))
            gate = torch.nn.functional.gelu(h @ self.w[at + "mlp.gate_proj.weight"].T, approximate="tanh")
            h = (gate * (h @ self.w[at + "mlp.up_proj.weight"].T)) @ self.w[at + "mlp.down_proj.weight"].T
            x = x + hook("hook_mlp_out", self.norm(h, at + "post_feedforward_layernorm"))
            x = hook("hook_resid_post", x)
        logits = self.norm(x, "norm") @ self.w["embed_tokens.weight"].T
        cap = c["final_logit_softcapping"]
        return torch.tanh(logits / cap) * cap, seen


def hooks(site, layer):
    """What is read, and what is replaced."""
    block = f"blocks.{layer}."
    if site == "transcoder":
        return block + "ln2.hook_normalized", block + "hook_mlp_out"
    name = block + {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_z": "attn.hook_z"}[site]
    return name, name


def jumprelu(pre, threshold):
    return torch.where(pre > threshold, pre.relu(), torch.zeros((), dtype=pre.dtype))


def encode(p, x):
    return jumprelu(x @ p["W_enc"] + p["b_enc"], p["threshold"])


def decode(p, f):
    return f @ p["W_dec"] + p["b_dec"]


def train_transcoder(x, y, generator, steps=600):
    """As `eval_golden.py` trains its SAEs; only the target differs, and an encoder that starts apart from the decoder."""
    w_dec = torch.randn(WIDTH, y.shape[1], generator=generator)
    w_enc = torch.randn(x.shape[1], WIDTH, generator=generator) / x.shape[1] ** 0.5
    p = {"W_enc": w_enc, "W_dec": w_dec / w_dec.norm(dim=1, keepdim=True), "b_enc": torch.zeros(WIDTH), "b_dec": y.mean(0)}
    for tensor in p.values():
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(p.values(), lr=3e-3)
    for _ in range(steps):
        f = torch.relu(x @ p["W_enc"] + p["b_enc"])
        loss = ((decode(p, f) - y) ** 2).sum(-1).mean() + 0.2 * f.sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    p = {name: tensor.detach() for name, tensor in p.items()}
    threshold = 0.15 + 0.3 * torch.rand(WIDTH, generator=generator)
    for latent, tokens in RARE.items():
        top = (x @ p["W_enc"] + p["b_enc"])[:, latent].sort(descending=True).values
        threshold[latent] = top[0].abs() + 1 if tokens == 0 else (top[tokens - 1] + top[tokens]) / 2
    return p | {"threshold": threshold}


class Case:
    """One SAE in one model on one set of tokens."""

    def __init__(self, model, ids, site, layer, p, kept=None):
        self.model, self.ids, self.p32 = model, ids, p
        self.read, self.replaced = hooks(site, layer)
        self.p = {name: tensor.double() for name, tensor in p.items()}
        self.kept = ids > 2 if kept is None else kept
        self.scored = torch.zeros_like(self.kept)
        self.scored[:, :-1] = self.kept[:, :-1] & self.kept[:, 1:]
        self.logits, seen = model(ids)
        self.input, self.target = seen[self.read], seen[self.replaced]
        self.f = encode(self.p, self.input)
        self.recon = decode(self.p, self.f)
        x, x_hat = self.target[self.kept], self.recon[self.kept]
        self.mean = x.mean(0)
        self.error, self.spread = ((x - x_hat) ** 2).sum(-1), ((x - self.mean) ** 2).sum(-1)

    def run_with(self, replacement):
        keep = self.kept.unsqueeze(-1)
        return self.model(self.ids, {self.replaced: lambda a: torch.where(keep, replacement, a)})[0]

    def losses(self, logits):
        """Cross-entropy of the next token where it is scored, zero elsewhere. [batch, pos]"""
        following = self.ids.roll(-1, 1)
        loss = -logits.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)
        return torch.where(self.scored, loss, torch.zeros((), dtype=loss.dtype))

    def kl(self, logits):
        clean, other = (t[self.scored].log_softmax(-1) for t in (self.logits, logits))
        return (clean.exp() * (clean - other)).sum(-1).mean().item()

    def metrics(self):
        x, x_hat, f = self.target[self.kept], self.recon[self.kept], self.f[self.kept]
        outputs = {"spliced": self.run_with(self.recon), "zero": self.run_with(torch.zeros_like(self.target)),
                   "mean": self.run_with(self.mean.expand_as(self.target))}
        count = self.scored.sum()
        got = {f"ce_{k}": (self.losses(v).sum() / count).item() for k, v in {"clean": self.logits, **outputs}.items()}
        got["delta_loss"] = got["ce_spliced"] - got["ce_clean"]
        got["kl"], got["kl_zero"], got["kl_mean"] = (self.kl(v) for v in outputs.values())
        for name in ("zero", "mean"):
            ce, kl = got[f"ce_{name}"], got[f"kl_{name}"]
            got[f"loss_recovered_{name}"] = (ce - got["ce_spliced"]) / (ce - got["ce_clean"])
            got[f"kl_score_{name}"] = (kl - got["kl"]) / kl
        l0 = (f > 0).double().sum(-1)
        got["l0"], got["l0_std"] = l0.mean().item(), ((l0 - l0.mean()) ** 2).mean().sqrt().item()
        got["l1"] = f.abs().sum(-1).mean().item()
        got["fvu"] = (self.error.sum() / self.spread.sum()).item()
        got["explained_variance"] = 1 - got["fvu"]
        got["explained_variance_legacy"] = (1 - self.error / self.spread).mean().item()
        got["frac_variance_explained"] = (1 - (x - x_hat).var(0).sum() / x.var(0).sum()).item()
        got["mse"] = self.error.mean().item()
        got["normalized_mse"] = (self.error / (x ** 2).sum(-1)).mean().item()
        got["l2_loss"] = self.error.sqrt().mean().item()
        got["l2_norm_in"], got["l2_norm_out"] = x.norm(dim=-1).mean().item(), x_hat.norm(dim=-1).mean().item()
        got["l2_ratio"] = (x_hat.norm(dim=-1) / x.norm(dim=-1)).mean().item()
        got["cosine"] = ((x * x_hat).sum(-1) / (x.norm(dim=-1) * x_hat.norm(dim=-1))).mean().item()
        got["relative_reconstruction_bias"] = ((x_hat ** 2).sum() / (x * x_hat).sum()).item()
        frequency = (f > 0).double().mean(0)
        got["dead_fraction"] = (frequency == 0).double().mean().item()
        for percent in (1, 10):
            over = frequency > percent / 100
            got[f"frac_over_{percent}_percent"] = over.double().mean().item()
            got[f"mass_over_{percent}_percent"] = (frequency[over].sum() / frequency.sum()).item()
        values = [v for v in self.consistency() if v is not None]
        got["consistent_activation_heuristic"] = sum(values) / len(values)
        values = [r for _, _, r in self.uniformity]
        got["uniformity"] = sum(values) / len(values)
        return got

    def consistency(self):
        fires = (self.f > 0) & self.kept.unsqueeze(-1)
        tokens, rows = fires.sum((0, 1)), fires.any(1).sum(0)
        return [(t / r).item() if r > 0 else None for t, r in zip(tokens, rows)]

    def l0_histogram(self):
        l0, tokens = (self.f[self.kept] > 0).sum(-1).unique(return_counts=True)
        return [list(pair) for pair in zip(l0.tolist(), tokens.tolist())]

    def latents(self):
        columns, rows = self.p["W_enc"].T, self.p["W_dec"]
        unit = [w / w.norm(dim=1, keepdim=True) for w in (columns, rows)]

        def closest(w):
            cosines = w @ w.T
            return cosines.fill_diagonal_(-torch.inf).max(1).values.tolist()

        return {
            "frequency": (self.f[self.kept] > 0).double().mean(0).tolist(),
            "encoder_norm": columns.norm(dim=1).tolist(), "decoder_norm": rows.norm(dim=1).tolist(),
            "encoder_bias": self.p["b_enc"].tolist(), "encoder_decoder_cosine": (unit[0] * unit[1]).sum(1).tolist(),
            "max_encoder_cosine": closest(unit[0]), "max_decoder_cosine": closest(unit[1]),
            "consistent_activation_heuristic": self.consistency(),
        }

    def by_position(self):
        losses = {"ce_clean": self.losses(self.logits), "ce_spliced": self.losses(self.run_with(self.recon))}
        error, spread = ((self.target - self.recon) ** 2).sum(-1), ((self.target - self.mean) ** 2).sum(-1)
        l0 = (self.f > 0).double().sum(-1)
        entries = []
        for p in range(self.ids.shape[1]):
            kept, scored = self.kept[:, p], self.scored[:, p]
            entry = {"kept": kept.sum().item(), "scored": scored.sum().item()}
            entry |= {k: v[scored, p].mean().item() if scored.any() else None for k, v in losses.items()}
            entry["mse"] = error[kept, p].mean().item() if kept.any() else None
            entry["fvu"] = (error[kept, p].sum() / spread[kept, p].sum()).item() if kept.any() else None
            entry["l0"] = l0[kept, p].mean().item() if kept.any() else None
            entries.append(entry)
        return entries

    @cached_property
    def uniformity(self):
        found = []
        for row in range(self.ids.shape[0]):
            leaf = self.target[row:row + 1].clone().requires_grad_()
            logits, _ = self.model(self.ids[row:row + 1], {self.replaced: lambda _: leaf})
            for pos in self.scored[row].nonzero().flatten().tolist():
                at = logits[0, pos]
                centred = at[self.ids[row, pos + 1]] - at.mean()
                gradient = torch.autograd.grad(centred, leaf, retain_graph=True)[0][0, pos]
                y = self.f[row, pos] * (self.p["W_dec"] @ gradient)
                y = y[y != 0].abs()
                if len(y):
                    share = y / y.sum()
                    found.append([row, pos, ((-share * share.log()).sum().exp() / len(y)).item()])
        return found

    def bf16(self):
        p = {name: (t if name == "threshold" else t.bfloat16()) for name, t in self.p32.items()}
        x = self.input[self.kept].float()
        pre = x.bfloat16() @ p["W_enc"] + p["b_enc"]
        f = torch.where(pre.float() > p["threshold"], pre.relu(), torch.zeros((), dtype=torch.bfloat16))
        recon = (f @ p["W_dec"] + p["b_dec"]).float().double()
        error = ((self.target[self.kept] - recon) ** 2).sum()
        whole = self.target.clone()
        whole[self.kept] = recon
        ce, clean = (self.losses(t).sum() / self.scored.sum() for t in (self.run_with(whole), self.logits))
        return {"l0": (f > 0).double().sum(-1).mean().item(), "fvu": (error / self.spread.sum()).item(),
                "ce_spliced": ce.item(), "delta_loss": (ce - clean).item()}

    def margin(self):
        """How near a pre-activation comes to its threshold: above float32's rounding, every count is certain."""
        return ((self.input @ self.p["W_enc"] + self.p["b_enc"])[self.kept] - self.p["threshold"]).abs().min().item()


def check(name, got, expected):
    for key in got.keys() & expected.keys():
        if abs(got[key] - expected[key]) > 1e-5 * max(1, abs(expected[key])):
            raise SystemExit(f"{name}: {key} is {got[key]} here and {expected[key]} in expected.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case_dir", type=Path)
    parser.add_argument("eval_dir", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    ids = torch.tensor(json.loads((options.eval_dir / "tokens.json").read_text())["input_ids"])
    expected = json.loads((options.eval_dir / "expected.json").read_text())
    model = Gemma2(options.case_dir)
    reference = Gemma2ForCausalLM.from_pretrained(options.case_dir, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        logits, seen = model(ids)
        apart = (logits - reference(ids, use_cache=False).logits).abs().max().item()
    print(f"logits apart from Transformers' float32: {apart:.1e}")
    assert apart < 2e-4

    cases = {name: (entry["site"], entry["layer"]) for name, entry in expected.items()}
    found = sorted(options.eval_dir.glob(f"transcoder/layer_{TRANSCODER_LAYER}/width_{WIDTH}/*/params.npz"))
    if not found:
        read, replaced = hooks("transcoder", TRANSCODER_LAYER)
        x, y = (seen[name][ids > 2].float() for name in (read, replaced))
        p = train_transcoder(x, y, torch.Generator().manual_seed(options.seed))
        l0 = (encode(p, x) > 0).float().sum(-1).mean().item()
        path = options.eval_dir / f"transcoder/layer_{TRANSCODER_LAYER}/width_{WIDTH}/average_l0_{round(l0)}/params.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, **{k: v.contiguous().numpy() for k, v in p.items()})
        found = [path]
    cases[found[0].parent.relative_to(options.eval_dir).as_posix()] = ("transcoder", TRANSCODER_LAYER)

    more = {}
    for name, (site, layer) in cases.items():
        with np.load(options.eval_dir / name / "params.npz") as arrays:
            case = Case(model, ids, site, layer, {k: torch.from_numpy(arrays[k]) for k in arrays.files})
        metrics, latents, before = case.metrics(), case.latents(), expected.get(name, {})
        check(name, metrics, before)
        more[name] = {
            "site": site, "layer": layer, "hook_in": case.read, "hook_out": case.replaced,
            "tokens": case.kept.sum().item(), "scored": case.scored.sum().item(),
            "metrics": {k: v for k, v in metrics.items() if k not in before},
            "latents": {k: v for k, v in latents.items() if k not in before},
            "l0_histogram": case.l0_histogram(), "by_position": case.by_position(),
            "uniformity_by_position": case.uniformity, "bf16": case.bf16(),
        }
        print(f"{name}: nearest threshold {case.margin():.1e}", {k: round(v, 4) for k, v in metrics.items()}, more[name]["bf16"])
    (options.eval_dir / "more.json").write_text(json.dumps(more, indent=1))
