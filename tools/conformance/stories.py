"""stories260K, a trained model: greedy continuations and perplexity, against transformers on the same directory.

Perplexity is defined so that any implementation can repeat it. A line of the text file is one story. A story is encoded
on its own by the directory's tokenizer.json, with the beginning-of-sequence token before it and nothing after it. Its
tokens are cut into consecutive windows of at most 512 tokens (the model's context) that do not overlap. A window is run
on its own; every token but the window's first is predicted from the tokens before it in the window. The perplexity is
exp of the mean negative log-likelihood over all predicted tokens of all windows; it is computed in double precision
from float32 logits.
"""

import pathlib

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import judge
from millrace import Millrace, MillraceError

PROMPTS = ["Once upon a time", "Lily and Tom went to the park.", "The big dog was sad because"]
TOKENS = 200
WINDOW = 512
# The perplexities of two correct float32 programs differ far less than this share.
PERPLEXITY_TOLERANCE = 1e-4


def encode(tokenizer: Tokenizer, text: str, bos: int) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [bos, *ids]


def windows(tokenizer: Tokenizer, text: pathlib.Path, bos: int) -> list[list[int]]:
    cut = []
    for story in text.read_text(encoding="utf-8").split("\n"):
        if story:
            ids = encode(tokenizer, story, bos)
            cut += [ids[i:i + WINDOW] for i in range(0, len(ids), WINDOW)]
    return [w for w in cut if len(w) > 1]


def negative_log_likelihood(rows: np.ndarray, ids: list[int]) -> float:
    scores = rows[:-1].astype(np.float64)
    peak = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - peak).sum(axis=1)) + peak[:, 0]
    return float((log_sum - scores[np.arange(len(ids) - 1), ids[1:]]).sum())


def perplexity(run, cut: list[list[int]]) -> tuple[float, int]:
    """run: ids -> logits [ids, vocab]."""
    total = sum(negative_log_likelihood(run(ids), ids) for ids in cut)
    count = sum(len(ids) - 1 for ids in cut)
    return float(np.exp(total / count)), count


def check(millrace: Millrace, directory: pathlib.Path, text: pathlib.Path) -> list[str]:
    """Prints a line for each comparison; returns what failed."""
    if not (directory / "config.json").is_file():
        print(f"stories260K  FAILED: no model in {directory}")
        return ["stories260K: the model directory is missing"]
    failures = []
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = model.config.bos_token_id

    for prompt in PROMPTS:
        ids = encode(tokenizer, prompt, bos)
        expected, gap = judge.greedy(model, ids, TOKENS)
        for how, arguments in (("ids", {"ids": ids}), ("text", {"text": prompt})):
            try:
                got = millrace.greedy(directory, TOKENS, **arguments)
                same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
                problem = "" if got == expected else f"{len(got)} tokens, the first {same} equal"
            except MillraceError as error:
                problem = str(error)
            print(f"stories260K  {TOKENS} greedy tokens after {prompt!r} given as {how}, smallest gap {gap:.1e}: "
                  f"{'FAILED: ' + problem if problem else 'identical'}", flush=True)
            if problem:
                failures.append(f"stories260K, greedy after {prompt!r} given as {how}: {problem}")

    if not text.is_file():
        print(f"stories260K  perplexity skipped: {text} is not there")
        return failures
    cut = windows(tokenizer, text, bos)
    expected, count = perplexity(lambda ids: judge.logits(model, ids), cut)
    print(f"stories260K  perplexity of transformers: {expected:.4f} over {count} tokens in {len(cut)} windows", flush=True)
    try:
        got, _ = perplexity(lambda ids: millrace.logits(directory, ids), cut)
        problem = "" if abs(got - expected) <= PERPLEXITY_TOLERANCE * expected else f"{got:.4f} instead of {expected:.4f}"
    except MillraceError as error:
        got, problem = float("nan"), str(error)
    print(f"stories260K  perplexity of millrace:     {got:.4f}  {'FAILED: ' + problem if problem else ''}")
    if problem:
        failures.append(f"stories260K, perplexity: {problem}")
    return failures
