"""Write small dictionaries in every public file format and what the format's own code computes with them.

    python sae_formats_golden.py OUT_DIR [--seed N] [--openai-model model.py]

`OUT_DIR/index.json` lists the cases. `path`: the file or folder to open; `expect`: `ok`, or `refuse` with a
`reason`; `computed_by`: whose code computed the expected tensors; `expected`: where they are, relative to
OUT_DIR (`x` [9, d_in], `feature_acts` [9, d_sae], `recon` [9, d_out], float32, sometimes others that the
case's `comment` explains). Two runs agree to the byte, but for the key order of the `cfg.json` that SAELens
writes for inference (a set's).

The rows of `x` have scales from 0.05 to 30. A row is kept only if no latent switches when it is moved by one
part in a thousand in 64 random directions, so that rounding cannot switch one either.

The packages are those of requirements.txt and requirements-formats.txt. They are imported with stand-ins for
what they want and this does not use (inference engines, search indices). The code of openai/sparse_autoencoder
is not packaged: give the path of its model.py (commit 764586aedaeb469c3adea166859259a437b8353f).
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import warnings
import zlib
from pathlib import Path
from unittest.mock import MagicMock, patch

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # the CPU decoder
warnings.filterwarnings("ignore")

STAND_INS = {
    "nnsight", "faiss", "sentence_transformers", "blobfile", "orjson", "bitsandbytes", "vllm", "flask", "pymongo",
    "gridfs", "bson", "zstandard", "circuitsvis", "umap", "aiofiles", "fire", "wandb", "openai", "json_repair",
    "typer", "cattrs", "pydantic_settings", "torchvision",
}


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last in line: only for a package that is not installed."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(StandIn())

import huggingface_hub.constants

for name in ("HF_HUB_ENABLE_HF_TRANSFER",):  # gone from the hub's client, still imported by circuit-tracer
    if not hasattr(huggingface_hub.constants, name):
        setattr(huggingface_hub.constants, name, False)

import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_lens import SAE, TrainingSAE, saes
from sae_lens.loading import pretrained_sae_loaders as loaders

D_IN, D_SAE, D_OUT = 12, 32, 8
SCALES = [1.0, 1.0, 1.0, 0.05, 0.3, 3.0, 10.0, 30.0, 1.0]


class Writer:
    def __init__(self, out, seed):
        self.out, self.seed, self.cases = out, seed, []
        self.generator = torch.Generator()

    def start(self, case):
        """Each case has its own stream, so that adding one leaves the others alone."""
        self.generator.manual_seed(self.seed ^ zlib.crc32(case.encode()))
        folder = self.out / case
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def randn(self, *shape, scale=1.0):
        return scale * torch.randn(*shape, generator=self.generator)

    def threshold(self, *shape):
        return 0.2 + 0.8 * torch.rand(*shape, generator=self.generator)

    def fill(self, module):
        """Random weights, decoder rows of different norms; parameters keep their strides."""
        with torch.no_grad():
            for name, p in module.named_parameters():
                if name.endswith("log_jumprelu_threshold"):
                    p.copy_(self.threshold(*p.shape).log())
                elif name.endswith("threshold"):
                    p.copy_(self.threshold(*p.shape))
                elif p.ndim == 2:
                    p.copy_(self.randn(*p.shape, scale=0.25))
                else:
                    p.copy_(self.randn(*p.shape, scale=0.2))
        return module

    def inputs(self, encode, d_in=D_IN, scales=SCALES, margin=1e-3):
        rows = []
        for scale in scales:
            for _ in range(10_000):
                row = scale * (1.5 * self.randn(d_in) + 0.3)
                moved = row + margin * row.norm() / d_in**0.5 * self.randn(64, d_in)
                with torch.no_grad():
                    active = encode(row[None])[0] != 0
                    same = ((encode(moved) != 0) == active).all()
                if same:
                    rows.append(row)
                    break
            else:
                raise SystemExit("no row with clear margins found")
        return torch.stack(rows)

    def add(self, case, path, encode, decode, computed_by, comment="", d_in=D_IN, extra=None, expected=None, x=None):
        """`encode(x)` and `decode(features, x)` are the peer's; `extra(x, features)` may add tensors."""
        with torch.no_grad():
            x = self.inputs(encode, d_in) if x is None else x
            f = encode(x)
            tensors = {"x": x, "feature_acts": f, "recon": decode(f, x)}
            tensors |= extra(x, f) if extra else {}
        target = self.out / (expected or f"{path}/expected.safetensors")
        save_file({k: v.detach().contiguous().float() for k, v in tensors.items()}, target)
        l0 = (f != 0).float().sum(-1)
        print(f"{case}: L0 {l0.min():.0f}..{l0.max():.0f}")
        assert l0.sum() > 0
        self.cases.append({"case": case, "path": path, "expect": "ok", "computed_by": computed_by,
                           "comment": comment, "expected": str(target.relative_to(self.out))})
        return x

    def refuse(self, case, path, reason):
        self.cases.append({"case": case, "path": path, "expect": "refuse", "reason": reason})
        print(f"{case}: refused, {reason}")


# SAELens


def saelens_add(w, case, sae, computed_by="SAELens, SAE.load_from_disk", comment="", d_in=D_IN, path=None, **kwargs):
    w.add(case, path or case, sae.encode, lambda f, x: sae(x), computed_by, comment, d_in=d_in, **kwargs)


def write_flat(folder, cfg, tensors):
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")


def plain_tensors(w):
    return {"W_enc": w.randn(D_IN, D_SAE, scale=0.25), "b_enc": w.randn(D_SAE, scale=0.2),
            "W_dec": w.randn(D_SAE, D_IN, scale=0.25), "b_dec": w.randn(D_IN, scale=0.2)}


FLAT = {"model_name": "gemma-2-2b", "hook_point": "blocks.5.hook_resid_post", "hook_point_layer": 5,
        "hook_point_head_index": None, "dataset_path": "monology/pile-uncopyrighted", "context_size": 128,
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "lp_norm": 1.0, "lr": 4e-4,
        "use_ghost_grads": False, "noise_scale": 0.0, "from_pretrained_path": None}


def saelens_flat(w):
    named = {k: v for k, v in FLAT.items() if not k.startswith("hook_point")}
    for case, cfg, comment in [
        ("saelens-pre6-standard", FLAT, "no architecture, old hook names, apply_b_dec_to_input by default"),
        ("saelens-pre6-topk", FLAT | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}},
         "top-k said by the activation function; the k largest signed pre-activations, then ReLU"),
        ("saelens-pre6-layer-norm", named | {
            "hook_name": "blocks.5.hook_mlp_out", "hook_layer": 5, "hook_head_index": None,
            "architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {},
            "normalize_activations": "layer_norm", "apply_b_dec_to_input": False, "prepend_bos": False,
            "sae_lens_training_version": "5.3.0"}, "normalisation undone on the output"),
        ("saelens-pre6-bool-norm", FLAT | {"normalize_activations": True},
         "true means expected_average_only_in, which does nothing to a loaded SAE"),
        ("saelens-pre6-topk-without-k", FLAT | {"activation_fn_str": "topk", "activation_fn_kwargs": {}},
         "SAELens falls back to ReLU here"),
    ]:
        folder = w.start(case)
        write_flat(folder, cfg, plain_tensors(w))
        saelens_add(w, case, SAE.load_from_disk(folder), comment=comment)

    jump = named | {"hook_name": "blocks.5.hook_resid_post", "hook_layer": 5, "architecture": "jumprelu",
                    "activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": False,
                    "finetuning_scaling_factor": False, "normalize_activations": "none"}
    case = "saelens-pre6-jumprelu"
    folder = w.start(case)
    tensors = plain_tensors(w) | {"threshold": w.threshold(D_SAE)}
    write_flat(folder, jump, tensors | {"scaling_factor": torch.ones(D_SAE)})
    saelens_add(w, case, SAE.load_from_disk(folder), comment="a scaling_factor of ones is dropped")

    case = "saelens-pre6-scaling-factor"
    folder = w.start(case)
    write_flat(folder, jump | {"finetuning_scaling_factor": True},
               tensors | {"scaling_factor": 0.5 + torch.rand(D_SAE, generator=w.generator)})
    w.refuse(case, case, "scaling_factor is not one: SAELens 6.54.12 has no place for it and cannot load it either")

    case = "saelens-pre6-gated"
    folder = w.start(case)
    gated = {k: v for k, v in plain_tensors(w).items() if k != "b_enc"}
    gated |= {k: w.randn(D_SAE, scale=0.2) for k in ("b_gate", "b_mag", "r_mag")}
    write_flat(folder, named | {"hook_name": "blocks.5.hook_resid_post", "architecture": "gated"}, gated)
    saelens_add(w, case, SAE.load_from_disk(folder))

    case = "saelens-pre6-hook-z"
    folder = w.start(case)
    write_flat(folder, FLAT | {"hook_point": "blocks.5.attn.hook_z"}, plain_tensors(w))
    sae, heads = SAE.load_from_disk(folder), 4
    w.add(case, case, lambda x: sae.encode(x.unflatten(-1, (heads, -1))),
          lambda f, x: sae(x.unflatten(-1, (heads, -1))).flatten(-2), "SAELens, SAE.load_from_disk",
          "x and recon are the flattened heads; SAELens saw [n, 4, d_head]")


def saelens_six(w):
    base = dict(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu")
    meta = lambda **more: saes.sae.SAEMetadata(
        model_name="google/gemma-2-2b", hook_name="blocks.5.hook_resid_post", hook_head_index=None, prepend_bos=True,
        context_size=128, **more)
    wide = base | dict(d_out=D_OUT, apply_b_dec_to_input=False)
    for case, make, comment in [
        ("saelens-expected-average", lambda: saes.StandardSAE(saes.StandardSAEConfig(
            **base, normalize_activations="expected_average_only_in", metadata=meta())),
         "not folded: SAELens' load_from_disk leaves it at that and normalises nothing"),
        ("saelens-whitening-unfolded", lambda: saes.StandardSAE(saes.StandardSAEConfig(
            **base, normalize_activations="covariance_whitening", metadata=meta())), "as above"),
        ("saelens-layer-norm-transcoder", lambda: saes.Transcoder(saes.TranscoderConfig(
            **wide, normalize_activations="layer_norm", metadata=meta(hook_name_out="blocks.5.hook_mlp_out"))),
         "the input is normalised, the output is not un-normalised"),
        ("saelens-layer-norm-skip-transcoder", lambda: saes.SkipTranscoder(saes.SkipTranscoderConfig(
            **wide, normalize_activations="layer_norm", metadata=meta())), "the skip reads x as it came"),
        ("saelens-constant-norm-jumprelu", lambda: saes.JumpReLUSAE(saes.JumpReLUSAEConfig(
            **base, normalize_activations="constant_norm_rescale", metadata=meta())), ""),
        ("saelens-layer-norm-topk", lambda: saes.TopKSAE(saes.TopKSAEConfig(
            **base, k=6, rescale_acts_by_decoder_norm=True, normalize_activations="layer_norm", metadata=meta())), ""),
        ("saelens-topk-many", lambda: saes.TopKSAE(saes.TopKSAEConfig(**base, k=24, metadata=meta())),
         "more than are positive: ReLU after the selection"),
        ("saelens-layer-norm-gated", lambda: saes.GatedSAE(saes.GatedSAEConfig(
            **base, normalize_activations="layer_norm", apply_b_dec_to_input=False, metadata=meta())), ""),
    ]:
        folder = w.start(case)
        w.fill(make()).save_model(folder)
        saelens_add(w, case, SAE.load_from_disk(folder), comment=comment)

    case = "saelens-bfloat16"
    folder = w.start(case)
    w.fill(saes.StandardSAE(saes.StandardSAEConfig(**base, metadata=meta()))).to(torch.bfloat16).save_model(folder)
    saelens_add(w, case, SAE.load_from_disk(folder, dtype="float32"),
                comment="weights stored as bfloat16, computed in float32 (load_from_disk with dtype)")

    case = "saelens-v6-without-version"
    folder = w.start(case)
    write_flat(folder, {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "architecture": "topk", "k": 5,
                        "apply_b_dec_to_input": False, "metadata": {"hook_name": "blocks.5.hook_resid_post"}},
               plain_tensors(w))
    saelens_add(w, case, SAE.load_from_disk(folder), comment="takes the old path; SAELens loses the metadata")

    for case, make, reason in [
        ("saelens-abstopk", lambda: saes.AbsTopKSAE(saes.AbsTopKSAEConfig(**base, k=6)),
         "abstopk keeps negative features"),
        ("saelens-matching-pursuit", lambda: saes.MatchingPursuitSAE(saes.MatchingPursuitSAEConfig(**base)),
         "matching_pursuit encodes by iteration and has no encoder"),
        ("saelens-temporal", lambda: saes.TemporalSAE(saes.TemporalSAEConfig(
            **base | {"d_sae": 16}, n_heads=2, bottleneck_factor=4, kval_topk=4)),
         "temporal reads the whole sequence through attention"),
    ]:
        w.fill(make()).save_model(w.start(case))
        w.refuse(case, case, reason)


def saelens_training(w):
    base = dict(d_in=D_IN, d_sae=D_SAE, dtype="float32", device="cpu")
    for kind, make in [
        ("batchtopk", lambda: saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(**base, k=5.5))),
        ("batchtopk-plain", lambda: saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(
            **base, k=5.5, rescale_acts_by_decoder_norm=False))),
        ("matryoshka", lambda: saes.MatryoshkaBatchTopKTrainingSAE(saes.MatryoshkaBatchTopKTrainingSAEConfig(
            **base, k=5.5, matryoshka_widths=[6, 16, D_SAE]))),
    ]:
        training, inference = w.start(f"saelens-{kind}-training"), w.start(f"saelens-{kind}-inference")
        sae = w.fill(make())
        sae.topk_threshold.fill_(0.65)
        sae.save_model(training)
        sae.save_inference_model(inference)
        loaded = SAE.load_from_disk(inference)
        by = "SAELens: save_inference_model, then SAE.load_from_disk"
        x = w.inputs(loaded.encode)
        saelens_add(w, inference.name, loaded, by, x=x)
        saelens_add(w, training.name, loaded, by, "SAELens opens it only as a training SAE; expected: its own "
                    "conversion for inference", x=x)

    case = "saelens-topk-training"
    folder = w.start(case)
    w.fill(saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(**base, k=6))).save_model(folder)
    saelens_add(w, case, SAE.load_from_disk(folder), comment="a training checkpoint that also opens for inference")

    case = "saelens-log-threshold-training"
    folder = w.start(case)
    sae = w.fill(saes.JumpReLUTrainingSAE(saes.JumpReLUTrainingSAEConfig(**base)))
    sae.save_model(folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, folder / "sae_weights.safetensors")
    loaded = TrainingSAE.load_from_disk(folder)
    saelens_add(w, case, loaded, "SAELens, TrainingSAE.load_from_disk",
                "an older checkpoint: log_threshold; SAE.load_from_disk refuses it")


# dictionary_learning


def dictionary_learning(w):
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    def write(folder, dict_class, state, **more):
        trainer = {"trainer_class": "Trainer", "dict_class": dict_class, "lr": 3e-4, "steps": 1000, "seed": 0,
                   "activation_dim": D_IN, "dict_size": D_SAE, "device": "cpu", "layer": 5,
                   "lm_name": "google/gemma-2-2b", "wandb_name": dict_class, "submodule_name": "resid_post_layer_5",
                   **more}
        buffer = {"d_submodule": D_IN, "io": "out", "n_ctxs": 122, "ctx_len": 128, "refresh_batch_size": 24,
                  "out_batch_size": 2048, "device": "cpu"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}, indent=4))
        torch.save(state, folder / "ae.pt")

    unit = lambda weight: weight.data.div_(weight.data.norm(dim=0, keepdim=True))
    for case, make, dict_class, more, comment in [
        ("autoencoder", lambda: AutoEncoder(D_IN, D_SAE), "AutoEncoder", {}, "decoder columns of norm one"),
        ("autoencoder-unnormalised", lambda: AutoEncoder(D_IN, D_SAE), "AutoEncoder", {},
         "from_pretrained scales the decoder columns to norm one, and the features with them; "
         "feature_acts_as_stored: without that, as SAELens reads it"),
        ("autoencoder-new", lambda: AutoEncoderNew(D_IN, D_SAE), "AutoEncoderNew", {}, "nothing subtracted from x"),
        ("gated", lambda: GatedAutoEncoder(D_IN, D_SAE), "GatedAutoEncoder", {}, ""),
        ("jumprelu", lambda: JumpReluAutoEncoder(D_IN, D_SAE), "JumpReluAutoEncoder", {},
         "nothing subtracted from x"),
        ("topk", lambda: AutoEncoderTopK(D_IN, D_SAE, 6), "AutoEncoderTopK", {"k": 6},
         "the stored threshold is not used"),
        ("batchtopk", lambda: BatchTopKSAE(D_IN, D_SAE, 6), "BatchTopKSAE", {"k": 6}, "the stored threshold is used"),
        ("batchtopk-no-threshold", lambda: BatchTopKSAE(D_IN, D_SAE, 6), "BatchTopKSAE", {"k": 6},
         "threshold -1 (never set): a ReLU"),
        ("matryoshka", lambda: MatryoshkaBatchTopKSAE(D_IN, D_SAE, 6, [6, 10, 16]), "MatryoshkaBatchTopKSAE",
         {"k": 6, "group_sizes": [6, 10, 16]}, ""),
    ]:
        name = f"dictionary-learning-{case}"
        folder = w.start(name)
        ae = w.fill(make())
        if case == "autoencoder":
            unit(ae.decoder.weight)
        if hasattr(ae, "threshold") and ae.threshold.ndim == 0 and case != "batchtopk-no-threshold":
            ae.threshold.fill_(0.6)
        write(folder, dict_class, {k: v.cpu() for k, v in ae.state_dict().items()}, **more)
        loaded, _ = load_dictionary(str(folder), "cpu")
        extra = None
        if case == "autoencoder-unnormalised":
            extra = lambda x, f, ae=ae: {"feature_acts_as_stored": ae.encode(x)}
        w.add(name, name, loaded.encode, lambda f, x, loaded=loaded: loaded.decode(f),
              "dictionary_learning, load_dictionary", comment, extra=extra)

    name = "dictionary-learning-topk-without-threshold"
    folder = w.start(name)
    state = w.fill(AutoEncoderTopK(D_IN, D_SAE, 6)).state_dict()
    write(folder, "AutoEncoderTopK", {k: v for k, v in state.items() if k != "threshold"}, k=6)
    sae = from_hub(folder.parent, loaders.dictionary_learning_sae_huggingface_loader_1, "none/none", name)
    saelens_add(w, name, sae, "SAELens, dictionary_learning_sae_huggingface_loader_1",
                "an older file; dictionary_learning 0.1.0 itself wants the threshold")

    for case, dict_class, state, reason in [
        ("identity", "IdentityDict", {}, "IdentityDict has no latents"),
        ("crosscoder", "CrossCoder", {"encoder.weight": w.randn(2, D_IN, 8), "encoder.bias": w.randn(8),
                                      "decoder.weight": w.randn(2, 8, D_IN), "decoder.bias": w.randn(2, D_IN)},
         "a CrossCoder reads several layers"),
    ]:
        name = f"dictionary-learning-{case}"
        write(w.start(name), dict_class, state)
        w.refuse(name, name, reason)


# sparsify


def sparsify(w):
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig

    for case, hookpoint, config, comment in [
        ("topk", "layers.5", dict(num_latents=D_SAE, k=6), ""),
        ("expansion", "layers.5", dict(expansion_factor=2, k=6), "num_latents 0: d_in times expansion"),
        ("multi-topk", "layers.5", dict(num_latents=D_SAE, k=6, multi_topk=True),
         "recon: decode(encode(x)); with multi_topk forward() returns the reconstruction from 4k latents instead"),
        ("groupmax", "layers.5", dict(num_latents=D_SAE, k=8, activation="groupmax"), "k groups of neighbours"),
        ("transcoder", "layers.5.mlp", dict(num_latents=D_SAE, k=6, transcode=True), "nothing subtracted from x"),
        ("skip-transcoder", "layers.5.mlp", dict(num_latents=D_SAE, k=6, transcode=True, skip_connection=True), ""),
        ("skip", "layers.5", dict(num_latents=D_SAE, k=6, skip_connection=True),
         "not a transcoder: b_dec is subtracted for the encoder, the skip reads x as it came"),
    ]:
        name = f"sparsify-{case}"
        folder = w.start(name)
        coder_config = SparseCoderConfig(**config)
        w.fill(SparseCoder(D_IN, coder_config)).save_to_disk(folder / hookpoint)
        TrainConfig(coder_config, hookpoints=[hookpoint]).save_json(folder / "config.json")
        coder = SparseCoder.load_from_disk(folder / hookpoint)

        def encode(x, coder=coder):
            top = coder.encode(x)
            return torch.zeros(x.shape[0], coder.num_latents).scatter_(-1, top.top_indices, top.top_acts)

        def decode(f, x, coder=coder):
            if not coder.cfg.multi_topk:
                return coder(x).sae_out
            top = coder.encode(x)
            return coder.decode(top.top_acts, top.top_indices)

        w.add(name, f"{name}/{hookpoint}", encode, decode,
              "sparsify, SparseCoder.load_from_disk", comment)


# OpenAI


def openai(w, source):
    spec = importlib.util.spec_from_file_location("openai_model", source)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    for case, activation, comment in [
        ("relu", lambda: torch.nn.ReLU(), "not normalised"),
        ("topk", lambda: model.TopK(6), "normalised: mean and unbiased deviation (1e-5 added to it)"),
        ("topk-identity", lambda: model.TopK(30, torch.nn.Identity()), "no ReLU after the selection"),
    ]:
        name = f"openai-{case}"
        folder = w.start(name)
        made = w.fill(model.Autoencoder(D_SAE, D_IN, activation=activation(), normalize=case != "relu"))
        state = made.state_dict()
        # The current code repeats these two under the names of the inner module and then cannot load them.
        state = {k: v for k, v in state.items() if not k.startswith("activation.")}
        torch.save(state, folder / "5.pt")
        ae = model.Autoencoder.from_state_dict(torch.load(folder / "5.pt"))
        if case == "topk-identity":
            w.refuse(name, f"{name}/5.pt", "TopK with postact_fn Identity has negative features")
            continue
        w.add(name, f"{name}/5.pt", lambda x, ae=ae: ae.encode(x)[0],
              lambda f, x, ae=ae: ae.decode(f, ae.preprocess(x)[1]), "openai/sparse_autoencoder, from_state_dict",
              comment, expected=f"{name}/expected.safetensors")

    name = "openai-tied"
    torch.save(w.fill(model.Autoencoder(D_SAE, D_IN, tied=True)).state_dict(), w.start(name) / "5.pt")
    w.refuse(name, f"{name}/5.pt", "a tied autoencoder has decoder.linear.weight, which its own code cannot load")


# Loaders of SAELens that expect a hub


def from_hub(root, load, repo_id, folder_name):
    """Open a folder with one of SAELens' hub loaders, `root` standing for the repository."""

    def download(repo_id=None, filename=None, subfolder=None, force_download=False, **_):
        path = root / (subfolder or "") / filename
        if not path.exists():
            raise EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id, filename):
        with safe_open(root / filename, "pt") as f:
            return {k: f.get_slice(k).get_shape() for k in f.keys()}

    def converter(path, device, cfg_overrides):
        return load(repo_id, folder_name, device, cfg_overrides=cfg_overrides)[:2]

    with patch.object(loaders, "hf_hub_download", download), patch.object(loaders, "get_safetensors_tensor_shapes", shapes):
        return SAE.load_from_disk(root, converter=converter, dtype="float32")


def gemma_scope_2(w):
    for case, folder_name, kind, affine, config in [
        ("sae", "resid_post/layer_5_width_16k_l0_small", "sae", False, True),
        ("attention", "attn_out/layer_5_width_16k_l0_medium", "sae", False, True),
        ("transcoder", "transcoder/layer_5_width_16k_l0_big", "transcoder", False, True),
        ("affine-transcoder", "transcoder/layer_5_width_16k_l0_big_affine", "transcoder", True, True),
        ("without-config", "resid_post/layer_5_width_16k_l0_small", "sae", False, False),
        ("affine-without-config", "transcoder_all/layer_5_width_16k_l0_small_affine", "transcoder", True, False),
    ]:
        name = f"gemma-scope-2-{case}"
        root = w.start(name)
        folder = root / folder_name
        folder.mkdir(parents=True, exist_ok=True)
        d_out = D_OUT if kind == "transcoder" else D_IN
        tensors = {"w_enc": w.randn(D_IN, D_SAE, scale=0.25), "w_dec": w.randn(D_SAE, d_out, scale=0.25),
                   "b_enc": w.randn(D_SAE, scale=0.2), "b_dec": w.randn(d_out, scale=0.2),
                   "threshold": w.threshold(D_SAE)}
        if affine:
            tensors["affine_skip_connection"] = w.randn(D_IN, d_out, scale=0.25)
        save_file(tensors, folder / "params.safetensors")
        at = {"resid_post": "output", "attn_out": "self_attn.o_proj.input"}.get(folder_name.split("/")[0])
        point_in = f"model.layers.5.{at or 'pre_feedforward_layernorm.output'}"
        point_out = point_in if at else "model.layers.5.post_feedforward_layernorm.output"
        if config:
            (folder / "config.json").write_text(json.dumps({
                "hf_hook_point_in": point_in, "hf_hook_point_out": point_out, "width": D_SAE,
                "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 20,
                "affine_connection": affine, "type": kind}))
        sae = from_hub(root, loaders.gemma_3_sae_huggingface_loader, "google/gemma-scope-2-1b-pt", folder_name)
        saelens_add(w, name, sae, "SAELens, gemma_3_sae_huggingface_loader", path=f"{name}/{folder_name}")

    name = "gemma-scope-2-clt"
    folder = w.start(name) / "clt/layer_0_width_262k_l0_medium"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w_enc": w.randn(D_IN, 8), "w_dec": w.randn(8, 3, D_IN), "b_enc": w.randn(8), "b_dec": w.randn(D_IN),
               "threshold": w.threshold(8)}, folder / "params.safetensors")
    w.refuse(name, f"{name}/clt/layer_0_width_262k_l0_medium", "w_dec has three dimensions: a cross-layer transcoder")


def llama_scope(w):
    hyper = {"hook_point_in": "blocks.5.hook_resid_post", "hook_point_out": "blocks.5.hook_resid_post",
             "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": D_SAE / D_IN,
             "d_model": D_IN, "d_sae": D_SAE, "bias_init_method": "all_zero", "act_fn": "jumprelu",
             "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise",
             "dataset_average_activation_norm": {"in": 6.5, "out": 6.5}, "decoder_exactly_fixed_norm": False,
             "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "init_decoder_norm": None,
             "init_encoder_norm": None, "init_encoder_with_decoder_transpose": True, "lp": 1, "l1_coefficient": 8e-5,
             "l1_coefficient_warmup_steps": 100, "top_k": 50, "k_warmup_steps": 100, "use_batch_norm_mse": True,
             "use_ghost_grads": False, "tp_size": 1, "ddp_size": 1}

    def write(folder, hyper, tensors):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "hyperparams.json").write_text(json.dumps(hyper, indent=4))
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "checkpoints/final.safetensors")

    def tensors(unit):
        d = w.randn(D_IN, D_SAE, scale=0.25)
        d = d / d.norm(dim=0, keepdim=True) if unit else d
        return {"encoder.weight": w.randn(D_SAE, D_IN, scale=0.25), "encoder.bias": w.randn(D_SAE, scale=0.2),
                "decoder.weight": d, "decoder.bias": w.randn(D_IN, scale=0.2)}

    units = ("feature_acts: in units of the normalised input; feature_acts_openmoss: as OpenMOSS' code of that "
             "time gives them (decoder norms and input scale folded in), by formula")

    name = "llama-scope"
    folder = w.start(name)
    t = tensors(unit=True)
    write(folder, hyper, t)
    sae = from_hub(folder.parent, loaders.llama_scope_sae_huggingface_loader, "fnlp/Llama3_1-8B-Base-LXR-8x", name)
    scale = D_IN**0.5 / 6.5
    sae.fold_activation_norm_scaling_factor(scale)  # SAELens' from_pretrained, with the factor of its list
    saelens_add(w, name, sae, "SAELens, llama_scope_sae_huggingface_loader and the folding of from_pretrained",
                f"decoder columns of norm one, so that SAELens and OpenMOSS agree. {units}",
                extra=lambda x, f: {"feature_acts_openmoss": f / scale})

    for name, more, unit in [
        ("llama-scope-decoder-norm", {}, False),
        ("llama-scope-without-decoder-norm", {"sparsity_include_decoder_norm": False}, False),
        ("llama-scope-transcoder", {"hook_point_out": "blocks.5.hook_mlp_out",
                                    "dataset_average_activation_norm": {"in": 6.5, "out": 2.5}}, False),
        ("llama-scope-input-bias", {"apply_decoder_bias_to_pre_encoder": True}, False),
        ("llama-scope-topk-converted", {"act_fn": "topk", "top_k": 6}, False),
    ]:
        folder = w.start(name)
        t, h = tensors(unit), hyper | more
        write(folder, h, t)
        norms = h["dataset_average_activation_norm"]
        s_in, s_out = D_IN**0.5 / norms["in"], D_IN**0.5 / norms["out"]
        # What loading does to the weights, in its order: the dataset's norms, then the decoder's.
        b_e, b_d = t["encoder.bias"] / s_in, t["decoder.bias"] / s_out
        d = t["decoder.weight"] * s_in / s_out
        n = d.norm(dim=0) if h["sparsity_include_decoder_norm"] else torch.ones(D_SAE)
        w_e, b_e, d = t["encoder.weight"] * n[:, None], b_e * n, d / n

        def openmoss(x, h=h, w_e=w_e, b_e=b_e, b_d=b_d):
            x = x - b_d if h["apply_decoder_bias_to_pre_encoder"] else x
            pre = x @ w_e.T + b_e
            return torch.where(pre > h["jump_relu_threshold"], pre, torch.zeros(()))

        w.add(name, name, lambda x, n=n, s_in=s_in: openmoss(x) * s_in / n,
              lambda f, x, n=n, s_in=s_in, d=d, b_d=b_d: (f * n / s_in) @ d.T + b_d,
              "the formula of OpenMOSS/Language-Model-SAEs (the code of that time is not packaged)",
              f"SAELens would differ: it reads neither the decoder's norms nor the output's. {units}",
              extra=lambda x, f: {"feature_acts_openmoss": openmoss(x)})

    name = "llama-scope-glu"
    write(w.start(name), hyper | {"use_glu_encoder": True}, tensors(True) | {
        "encoder_glu.weight": w.randn(D_SAE, D_IN), "encoder_glu.bias": w.randn(D_SAE)})
    w.refuse(name, name, "use_glu_encoder: a gated linear encoder")

    name = "llama-scope-r1"
    folder = w.start(name)
    t = tensors(unit=True) | {"log_jumprelu_threshold": w.threshold(D_SAE).log()}
    t |= {f"dataset_average_activation_norm.{h}": torch.tensor(6.5) for h in {hyper["hook_point_in"]}}
    save_file({k: v.contiguous() for k, v in t.items()}, folder / "sae_weights.safetensors", {"version": "2.0.0"})
    (folder / "config.json").write_text(json.dumps({
        "sae_type": "sae", "d_model": D_IN, "expansion_factor": D_SAE / D_IN, "use_decoder_bias": True,
        "use_glu_encoder": False, "act_fn": "jumprelu", "jump_relu_threshold": 0.0,
        "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True, "force_unit_decoder_norm": False, "top_k": 50,
        "jumprelu_threshold_window": 2.0, "hook_point_in": "blocks.5.hook_resid_post",
        "hook_point_out": "blocks.5.hook_resid_post"}, indent=4))
    load = lambda *a, cfg_overrides, **k: loaders.llama_scope_r1_distill_sae_huggingface_loader(
        *a, cfg_overrides=cfg_overrides | {"d_sae": D_SAE}, **k)  # it would make d_sae a float
    sae = from_hub(folder.parent, load, "fnlp/Llama-Scope-R1-Distill", name)
    sae.fold_activation_norm_scaling_factor(scale)
    saelens_add(w, name, sae, "SAELens, llama_scope_r1_distill_sae_huggingface_loader and the folding of "
                "from_pretrained", "decoder columns of norm one: SAELens does not read the norms")


def openmoss(w):
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    base = dict(hook_point_in="blocks.5.hook_resid_post", hook_point_out="blocks.5.hook_resid_post", d_model=D_IN,
                expansion_factor=D_SAE / D_IN, device="cpu", dtype=torch.float32)
    norms = {"blocks.5.hook_resid_post": 6.5}
    for case, config, norms, comment in [
        ("jumprelu", dict(act_fn="jumprelu"), norms, "gated by the activation times the decoder's norm"),
        ("jumprelu-transcoder", dict(act_fn="jumprelu", hook_point_in="blocks.5.ln2.hook_normalized",
                                     hook_point_out="blocks.5.hook_mlp_out"),
         {"blocks.5.ln2.hook_normalized": 4.5, "blocks.5.hook_mlp_out": 1.5}, ""),
        ("jumprelu-plain", dict(act_fn="jumprelu", sparsity_include_decoder_norm=False), norms, ""),
        ("topk", dict(act_fn="topk", top_k=6), norms, ""),
        ("relu-inference", dict(act_fn="relu", norm_activation="inference", use_decoder_bias=False), norms,
         "no normalisation, no decoder bias"),
        ("relu-token-wise", dict(act_fn="relu", norm_activation="token-wise"), norms, ""),
    ]:
        name = f"openmoss-{case}"
        folder = w.start(name)
        config = SAEConfig(**base | config)
        made = w.fill(SparseAutoEncoder(config))
        made.set_dataset_average_activation_norm(norms)
        with patch("llamascopium.models.sparse_dictionary.version", return_value="2.0.0b34"):
            made.save_pretrained(folder)
        config.save_hyperparameters(folder)
        sae = SparseAutoEncoder.from_pretrained(str(folder), fold_activation_scale=False, device="cpu", dtype=torch.float32)
        point_in, point_out = config.hook_point_in, config.hook_point_out
        factor = lambda x, point, sae=sae: sae.compute_norm_factor(x, hook_point=point)
        w.add(name, name,
              lambda x, sae=sae, p=point_in, factor=factor: sae.encode(x * factor(x, p)),
              lambda f, x, sae=sae, p=point_out, factor=factor: sae.decode(f) / factor(x, p),
              "llamascopium, from_pretrained without fold_activation_scale", comment)

    for case, config, reason in [
        ("batchtopk", dict(act_fn="batchtopk"), "batchtopk depends on the rest of the batch"),
        ("batch-wise", dict(norm_activation="batch-wise"), "batch-wise normalisation depends on the rest of the batch"),
        ("glu", dict(use_glu_encoder=True), "use_glu_encoder: a gated linear encoder"),
    ]:
        name = f"openmoss-{case}"
        folder = w.start(name)
        config = SAEConfig(**base | config)
        made = w.fill(SparseAutoEncoder(config))
        made.set_dataset_average_activation_norm(norms)
        with patch("llamascopium.models.sparse_dictionary.version", return_value="2.0.0b34"):
            made.save_pretrained(folder)
        config.save_hyperparameters(folder)
        w.refuse(name, name, reason)
    for case, kind in [("crosscoder", "crosscoder"), ("lorsa", "lorsa")]:
        name = f"openmoss-{case}"
        folder = w.start(name)
        (folder / "config.json").write_text(json.dumps({"sae_type": kind, "d_model": D_IN, "expansion_factor": 2.0}))
        save_file({"W_E": w.randn(2, D_IN, 8)}, folder / "sae_weights.safetensors", {"version": "2.0.0b34"})
        w.refuse(name, name, f"sae_type {kind}")


# circuit-tracer


def circuit_tracer(w):
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from circuit_tracer.utils.hf_utils import load_transcoders

    def yaml(kind, **more):
        fields = {"model_name": "google/gemma-2-2b", "model_kind": kind, "feature_input_hook": "mlp.hook_in",
                  "feature_output_hook": "hook_mlp_out", "scan": "gemma-2-2b", **more}
        return "".join(f"{k}: {v}\n" for k, v in fields.items())

    for case, jump, skip in [("relu", False, False), ("jumprelu", True, False), ("jumprelu-skip", True, True),
                             ("relu-skip", False, True)]:
        name = f"circuit-tracer-{case}"
        folder = w.start(name)
        (folder / "config.yaml").write_text(yaml("transcoder_set"))
        made = {}
        for layer in range(2):
            act = JumpReLU(torch.zeros(D_SAE), 0.1) if jump else torch.nn.functional.relu
            made[layer] = w.fill(SingleLayerTranscoder(D_IN, D_SAE, act, layer, skip_connection=skip,
                                                       device=torch.device("cpu"), dtype=torch.float32))
        TranscoderSet(made, "mlp.hook_in", "hook_mlp_out").to_safetensors(str(folder))
        paths = [str(folder / f"layer_{i}.safetensors") for i in range(2)]
        config = {"model_kind": "transcoder_set", "transcoders": paths, "scan": None,
                  "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
        loaded = load_transcoders(config, torch.device("cpu"), torch.float32, False, False)
        for layer in range(2):
            t = loaded[layer]
            w.add(f"{name}-{layer}", f"{name}/layer_{layer}.safetensors", t.encode, lambda f, x, t=t: t.decode(f, x),
                  "circuit-tracer, load_transcoders", f"layer {layer} of the set in {name}",
                  expected=f"{name}/expected_layer_{layer}.safetensors")

    name = "circuit-tracer-topk"
    folder = w.start(name)
    (folder / "config.yaml").write_text(yaml("transcoder_set", activation="topk", k=6))
    save_file({"W_enc": w.randn(D_SAE, D_IN), "W_dec": w.randn(D_SAE, D_IN), "b_enc": w.randn(D_SAE),
               "b_dec": w.randn(D_IN)}, folder / "layer_0.safetensors")
    w.refuse(name, name, "activation topk: circuit-tracer 0.5.0 itself would read it as ReLU")

    name = "circuit-tracer-clt"
    folder = w.start(name)
    clt = w.fill(CrossLayerTranscoder(2, 8, D_IN, activation_function="jump_relu", lazy_decoder=False,
                                      device=torch.device("cpu"), dtype=torch.float32))
    clt.to_safetensors(str(folder))
    (folder / "config.yaml").write_text(yaml("cross_layer_transcoder"))
    w.refuse(name, name, "model_kind cross_layer_transcoder")


# delphi


def delphi(w):
    from delphi.config import CacheConfig
    from delphi.latents.cache import LatentCache
    from delphi.latents.loader import TensorBuffer

    def write(name, modules, width, splits, rows, length, batch, comment):
        folder = w.start(name)
        raw = folder / "latents"
        cache = LatentCache(None, {}, batch_size=batch)
        tokens = torch.randint(0, 1000, (rows, length), generator=w.generator)
        dense, want = {}, {"tokens": tokens}
        for module in modules:
            latents = torch.zeros(rows, length, width)
            count = 40
            at = lambda high: torch.randint(0, high, (count,), generator=w.generator)
            latents[at(rows), at(length), at(width)] = w.randn(count, scale=2.0).abs() + 0.01
            for start in torch.linspace(0, width, splits + 1).long()[:-1].tolist():
                latents[0, 0, start] = 1.5  # no split may be empty: delphi cannot write that
            latents[0, 1, width - 1] = -0.75  # kept: the cache asks for the magnitude
            latents[0, 2, 1] = 9e-6  # dropped
            latents[0, 3, 2] = 2e-5  # kept
            latents[rows - 1, length - 1, width - 1] = 1234.567  # half precision
            dense[module] = latents
            for number in range(rows // batch):
                part = slice(number * batch, (number + 1) * batch)
                cache.cache.add(latents[part], tokens[part], number, module)
        cache.cache.save()
        cache.width = width
        cache.save_splits(splits, raw)
        cache.save_config(raw, CacheConfig(dataset_repo="monology/pile-uncopyrighted", batch_size=batch,
                                           cache_ctx_len=length, n_tokens=rows * length, n_splits=splits),
                          "google/gemma-2-2b")
        for module in modules:
            locations, activations = [], []
            for file in sorted((raw / module).glob("*.safetensors"), key=lambda f: int(f.stem.split("_")[0])):
                where, values, stored = TensorBuffer(str(file), module).load()
                assert torch.equal(stored, tokens)
                locations.append(where)
                activations.append(values)
            want[f"{module}.locations"], want[f"{module}.activations"] = torch.cat(locations), torch.cat(activations)
            back = torch.zeros(rows, length, width)
            back[tuple(torch.cat(locations).T)] = torch.cat(activations).float()
            assert torch.equal(back, torch.where(dense[module].abs() > 1e-5, dense[module], 0).half().float())
        save_file({k: v.contiguous() for k, v in want.items()}, folder / "expected.safetensors")
        w.cases.append({"case": name, "path": f"{name}/latents", "expect": "ok", "comment": comment,
                        "computed_by": "delphi, LatentCache.save_splits; read back with TensorBuffer",
                        "expected": f"{name}/expected.safetensors"})
        print(name, sorted(str(f.relative_to(raw)) for f in raw.rglob("*.safetensors")))

    write("delphi-cache", ["layers.5", "layers.7.mlp"], D_SAE, 3, 8, 12, 4,
          "locations u16, two modules, three splits; `expected`: MODULE.locations (i64, whole latent index) and "
          "MODULE.activations (f16) in the order of the files, tokens")
    write("delphi-cache-u32", ["layers.5"], 70_000, 1, 2, 8, 2, "locations u32: more than 65536 latents in one split")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=20240815)
    parser.add_argument("--openai-model", type=Path, help="openai/sparse_autoencoder's sparse_autoencoder/model.py")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    writer = Writer(options.out_dir.resolve(), options.seed)
    saelens_flat(writer)
    saelens_six(writer)
    saelens_training(writer)
    dictionary_learning(writer)
    sparsify(writer)
    if options.openai_model:
        openai(writer, options.openai_model)
    gemma_scope_2(writer)
    llama_scope(writer)
    openmoss(writer)
    circuit_tracer(writer)
    delphi(writer)
    for file in options.out_dir.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    (options.out_dir / "index.json").write_text(json.dumps(writer.cases, indent=1) + "\n")
