"""Write three Gemma 2 checkpoints for the ways of running one, and what Hugging Face's implementation computes.

    python modes_golden.py OUT_DIR

OUT_DIR is `fixtures/gemma2`. All is float32, eager attention, with the weights of `gemma2_golden.randomise`. Each
folder holds the checkpoint as `save_pretrained` writes it, and

`window-4096`  one sequence past the real window. `tokens.json` ({"input_ids": [[...]]}), `expected.safetensors`:
               `positions` (int64 [n]), and at those positions only `logits` [1, n, vocab] and
               `blocks.I.hook_resid_post` [1, n, hidden].
`packed`       several documents in a row. `tokens.json` ({"input_ids", "attention_mask", "document_ids"}, each
               [batch, pos], padding is document -1), `expected.safetensors`: `logits`,
               `blocks.I.hook_resid_post` and `blocks.I.attn.hook_z`, each document run alone from position 0 and
               put into its place, zero at padding.
`generate`     greedy decoding of three prompts at once, padded on the left, that no token ends. `generate.json`
               ({"prompts": [[...]], "new_ids": [[...]]}), `expected.safetensors`: `logits_first` and
               `logits_last` [3, vocab], those that chose the first and the last new token.

The script asserts what makes each of them worth a test, and that Hugging Face agrees with itself there.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from gemma2_golden import randomise, record

THIN = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=4096, vocab_size=64,
            max_position_embeddings=8192)
# The shapes of `mini-2b`, but for a smaller MLP and vocabulary.
MINI = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, vocab_size=256,
            max_position_embeddings=64)

WINDOW_SEQ = 4160
POSITIONS = [0, 1, 2000, *range(4093, 4100), *range(4150, 4160)]
DOCUMENTS = [(5, 12, 7), (9, 3, 8)]  # two rows of 24; the second ends with padding
PACKED_SEQ = 24
PROMPTS = (3, 7, 12)
NEW_TOKENS = 20
OFF_BY_ONE = 0.02  # what a window of one more or one fewer must change
MARGIN = 0.01  # between the best two logits of each greedy step: far above what float32 can turn


def checkpoint(folder, spec, generator, change=lambda base: None):
    """A random model, through the files."""
    model = Gemma2ForCausalLM(Gemma2Config(**spec, attn_implementation="eager"))
    randomise(model, generator)
    with torch.no_grad():
        change(model.model)
    model.save_pretrained(folder)
    return Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def tokens(spec, length, generator):
    """[1, length], random after BOS."""
    ids = torch.randint(3, spec["vocab_size"], (1, length), generator=generator)
    ids[:, 0] = 2
    return ids


def save(folder, tensors, name, data):
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    (folder / name).write_text(json.dumps(data))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(folder.name, f"{size / 1e3:.0f} kB,", len(tensors), "tensors")


def residuals(model, ids):
    """Logits and the residual stream after each block, without the patterns that `record` keeps."""
    got, handles = {}, []
    for i, layer in enumerate(model.model.layers):
        def hook(_module, _args, out, name=f"blocks.{i}.hook_resid_post"):
            got[name] = out.detach().clone()
        handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        got["logits"] = model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return got


def window(folder, generator):
    def blunt(base):  # else the best of 4,096 keys takes it all, and one at the window's edge nothing
        for layer in base.layers:
            layer.self_attn.q_proj.weight.mul_(0.4)

    model = checkpoint(folder, THIN, generator, blunt)
    ids = tokens(THIN, WINDOW_SEQ, generator)
    got = residuals(model, ids)
    # Of the queries after token 0, those up to 4095 see it in block 0, a sliding one, and no later one does.
    other = ids.clone()
    other[0, 0] = 5
    first = "blocks.0.hook_resid_post"
    moved = (residuals(model, other)[first] - got[first]).abs().amax(-1)[0]
    print("token 0 moves block 0's output by", [f"{at}: {moved[at].item():.1e}" for at in (1, 4094, 4095, 4096)])
    assert moved[4095] > 1e-3, "position 4095 does not see token 0"
    assert (moved[4096:] == 0).all(), "a position past the window sees token 0"
    expected = {name: tensor[:, POSITIONS] for name, tensor in got.items()}
    for wrong in (4095, 4097):  # a window one off must show where the fixture looks
        model.config.sliding_window = wrong
        off = residuals(model, ids)
        differences = {name: (off[name][:, POSITIONS] - t).abs().max().item() for name, t in expected.items()}
        print("window", wrong, {name: f"{difference:.1e}" for name, difference in differences.items()})
        assert min(differences.values()) > OFF_BY_ONE, "a window one off does not show: take another seed"
    expected["positions"] = torch.tensor(POSITIONS)
    save(folder, expected, "tokens.json", {"input_ids": ids.tolist()})


def packed(folder, generator):
    model = checkpoint(folder, MINI, generator)
    shape = (len(DOCUMENTS), PACKED_SEQ)
    ids, document, position = torch.zeros(shape).long(), torch.full(shape, -1), torch.zeros(shape).long()
    expected = {}
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for number, length in enumerate(lengths):
            span = slice(start, start + length)
            alone = tokens(MINI, length, generator)
            ids[row, span], document[row, span], position[row, span] = alone[0], number, torch.arange(length)
            got, logits = record(model, alone, None)
            for name, tensor in (got | {"logits": logits}).items():
                if name.endswith(("hook_resid_post", "attn.hook_z", "logits")):
                    whole = expected.setdefault(name, torch.zeros(*shape, *tensor.shape[2:]))
                    whole[row, span] = tensor[0]
            start += length
    # Hugging Face finds documents in positions that begin again: it must say the same.
    with torch.no_grad():
        logits = model(ids, position_ids=position, use_cache=False).logits
    mask = document >= 0
    difference = (logits - expected["logits"])[mask].abs().max().item()
    print("Hugging Face's own packing differs by", f"{difference:.1e}")
    assert difference < 1e-4, "packed and alone disagree"
    with torch.no_grad():
        mixed = model(ids, use_cache=False).logits
    assert (mixed - expected["logits"])[document > 0].abs().max() > 0.1, "documents do not matter"
    save(folder, expected, "tokens.json", {"input_ids": ids.tolist(), "attention_mask": mask.long().tolist(),
                                           "document_ids": document.tolist()})


def generate(folder, generator):
    def mix(base):  # with random signs here: else tied embeddings make a random model repeat its last token
        base.norm.weight.copy_(torch.randn(base.norm.weight.shape, generator=generator) - 1)

    model = checkpoint(folder, MINI, generator, mix)
    model.generation_config.eos_token_id = None
    prompts = [tokens(MINI, length, generator) for length in PROMPTS]
    longest = max(PROMPTS)
    ids = torch.cat([torch.nn.functional.pad(p, (longest - p.shape[1], 0)) for p in prompts])
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in PROMPTS])

    def greedy(ids, mask):
        out = model.generate(ids, attention_mask=mask, do_sample=False, use_cache=True, max_new_tokens=NEW_TOKENS,
                             output_logits=True, return_dict_in_generate=True)
        new = out.sequences[:, ids.shape[1]:]
        assert new.shape[1] == NEW_TOKENS, "generation stopped early"
        return new, torch.stack(out.logits).float()  # [step, batch, vocab]

    new, logits = greedy(ids, mask)
    best = logits.topk(2, dim=-1).values
    margin = (best[..., 0] - best[..., 1]).min().item()
    print("closest choice", f"{margin:.3f},", "distinct new ids per row", [len(set(row)) for row in new.tolist()])
    assert margin > MARGIN, "two tokens are nearly tied: take another seed"
    assert min(len(set(row)) for row in new.tolist()) > NEW_TOKENS // 2, "it repeats itself: take another seed"
    model.config.sliding_window = 64
    assert not greedy(ids, mask)[0].equal(new), "the window does not matter: take another seed"
    model.config.sliding_window = MINI["sliding_window"]
    for row, prompt in enumerate(prompts):
        alone, _ = greedy(prompt, torch.ones_like(prompt))
        assert alone[0].equal(new[row]), "alone and in a batch disagree"
        # And without the cache: one forward over the whole text chooses the same tokens.
        with torch.no_grad():
            whole = model(torch.cat([prompt, alone], 1), use_cache=False).logits[0, prompt.shape[1] - 1:-1]
        assert whole.argmax(-1).equal(new[row]), "with and without the cache disagree"
        difference = (whole - logits[:, row]).abs().max().item()
        assert difference < 1e-3, "the cache changes the logits"
    save(folder, {"logits_first": logits[0], "logits_last": logits[-1]}, "generate.json",
         {"prompts": [p[0].tolist() for p in prompts], "new_ids": new.tolist()})


# Each with a seed that passes its assertions.
CASES = {"window-4096": (window, 4), "packed": (packed, 4097), "generate": (generate, 4104)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    for name, (write, seed) in CASES.items():
        write(options.out_dir / name, torch.Generator().manual_seed(seed))
