"""What transformers says: logits and greedy tokens of a model, computed as plainly as the library can.

Eager attention and eager experts in float32, one thread: no fused kernel, nothing that depends on the machine more than
a matrix product does.
"""

import copy
import json
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

import dummy_weights
import published
from families import Case

GREEDY_TOKENS = 64
# A greedy path is only a fair demand where the best token wins by more than the error that is allowed to both.
MIN_GAP = 1e-3
MIN_DISTINCT = 8
# Limit for float32 against transformers' float32, as a share of the largest logit.
F32_TOLERANCE = 1e-4

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass
class Verdict:
    prompt: list[int]
    logits: np.ndarray  # float32 [prompt, vocab]
    greedy: list[int]
    min_gap: float  # smallest difference of best and second best logit along the greedy path
    max_abs: float
    bf16_error: np.ndarray  # [prompt]: largest |bfloat16 run - float32 run| at each position
    seed: int


def dtype_of(case: Case) -> torch.dtype:
    return getattr(torch, case.dtype)


def make_config(case: Case):
    config = getattr(transformers, case.config_class)(**copy.deepcopy(case.options))
    return config


def from_config(case: Case, dtype: torch.dtype):
    model = AutoModelForCausalLM.from_config(
        make_config(case), dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    return model.eval()


def dummy_model(case: Case, dtype: torch.dtype = torch.float32):
    model = from_config(case, dtype)
    dummy_weights.fill(model, dtype_of(case))
    return model


def random_model(case: Case, seed: int):
    """Normally distributed weights, norms around one, biases and sinks not zero, rounded to the case's dtype."""
    model = from_config(case, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    seen = set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            noise = torch.randn(tensor.shape, generator=generator) * case.std
            if tensor.dim() < 2 and ("norm" in name or "scal" in name):
                # Gemma 2 and 3 store the difference of a norm's weight from one; for them this is just a larger weight.
                noise += 1.0
            tensor.copy_(noise.to(dtype_of(case)).float())
    return model


def load(case: Case, directory: pathlib.Path, dtype: torch.dtype = torch.float32):
    """The model of a directory that save() wrote and published.rewrite() may have rewritten."""
    if case.mxfp4 and "quantization_config" in (directory / "config.json").read_text(encoding="utf-8"):
        model = from_config(case, dtype)
        published.load_mxfp4(directory, model)
        return model
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager", local_files_only=True)
    return model.eval()


def save(model, case: Case, directory: pathlib.Path) -> None:
    """A Hugging Face directory as transformers writes it, weights in the case's dtype."""
    target = copy.deepcopy(model).to(dtype_of(case))
    shard = {"max_shard_size": case.shard} if case.shard else {}
    target.save_pretrained(directory, **shard)


def write_config(model, case: Case, directory: pathlib.Path) -> None:
    """Only the config.json of save()."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype_of(case)
    config.save_pretrained(directory)


def logits(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy().copy()


def _gap(row: torch.Tensor) -> float:
    best = torch.topk(row.float(), 2).values
    return float(best[0] - best[1])


def greedy(model, ids: list[int], count: int = GREEDY_TOKENS) -> tuple[list[int], float]:
    """Tokens of generate() and the smallest gap between the best and the second best logit on the way."""
    # The attention mask is given, because generate() would otherwise hide prompt tokens that equal the padding token.
    config = GenerationConfig(max_new_tokens=count, do_sample=False, use_cache=True, eos_token_id=None,
                              pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    # What generation_config lacks is filled in from the model's own, so its stop tokens have to go, too.
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                             generation_config=config)
    tokens = out.sequences[0, len(ids):].tolist()
    if len(tokens) != count:
        raise RuntimeError(f"generate() stopped after {len(tokens)} of {count} tokens")
    return tokens, min(_gap(step[0]) for step in out.logits)


def greedy_frozen(model, ids: list[int], count: int = GREEDY_TOKENS) -> tuple[list[int], float]:
    """As greedy(), but the rotary frequencies of the prompt's length stay for the whole continuation."""
    rotary = model.model.rotary_emb
    tokens, gaps = [], []
    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=True)
        kept = rotary.max_seq_len_cached
        rotary.max_seq_len_cached = 1 << 30
        while True:
            row = out.logits[0, -1]
            tokens.append(int(row.argmax()))
            gaps.append(_gap(row))
            if len(tokens) == count:
                break
            position = torch.tensor([[len(ids) + len(tokens) - 1]])
            out = model(torch.tensor([tokens[-1:]]), position_ids=position, past_key_values=out.past_key_values,
                        use_cache=True)
        rotary.max_seq_len_cached = kept
    # The next prompt must find the frequencies of its own length.
    rotary.max_seq_len_cached = rotary.original_max_seq_len
    return tokens, min(gaps)


def prompt_ids(case: Case, vocab: int, seed: int) -> list[int]:
    rng = np.random.default_rng([seed, len(case.name), case.prompt])
    return [int(v) for v in rng.integers(0, vocab, case.prompt)]


def judge(case: Case, model, bf16_model, first_seed: int = 0, tries: int = 60) -> Verdict:
    """Looks for a prompt whose greedy path is unambiguous and lively, and returns what transformers makes of it."""
    vocab = model.config.get_text_config().vocab_size
    exact = copy.deepcopy(model).double()
    kept = None
    for seed in range(first_seed, first_seed + tries):
        ids = prompt_ids(case, vocab, seed)
        rows = logits(model, ids)
        max_abs = float(np.abs(rows).max())
        # Near-ties in an expert router would make float32 itself ambiguous; a double-precision run shows them.
        if np.abs(rows - logits(exact, ids)).max() > 0.1 * F32_TOLERANCE * max_abs:
            continue
        tokens, gap = (greedy_frozen if case.freeze_rope else greedy)(model, ids)
        if gap < MIN_GAP * max_abs:
            continue
        if kept is None or len(set(tokens)) > len(set(kept[2])):
            kept = (ids, rows, tokens, gap, max_abs, seed)
        if len(set(tokens)) >= MIN_DISTINCT:
            break
    if kept is None:
        raise RuntimeError(f"{case.name}: no prompt with an unambiguous greedy path in {tries} tries")
    ids, rows, tokens, gap, max_abs, seed = kept
    bf16_error = np.abs(logits(bf16_model, ids) - rows).max(axis=1)
    return Verdict(ids, rows, tokens, gap, max_abs, bf16_error, seed)


def versions() -> dict:
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}


def dump_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
