#!/usr/bin/env python3
"""Writes tests/fixtures/stories/expected.json: what transformers makes of models/stories260K (see stories.py).

    make_stories.py [--model DIR] [--text FILE] [--out FILE]

Keys: "versions"; "window", the most tokens that are run at once for the perplexity; "prompts", each with "text", "ids"
(beginning-of-sequence token first), "greedy" (the next tokens) and "min_gap" (the smallest difference between the best
and the second best logit on that path); "perplexity" with the "text" file's name, its "sha256", "value", "tokens" (how
many were predicted) and "windows".
"""

import argparse
import hashlib
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import judge
import stories

ROOT = pathlib.Path(__file__).resolve().parents[2]


def expected(directory: pathlib.Path, text: pathlib.Path) -> dict:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = model.config.bos_token_id
    prompts = []
    for prompt in stories.PROMPTS:
        ids = stories.encode(tokenizer, prompt, bos)
        tokens, gap = judge.greedy(model, ids, stories.TOKENS)
        prompts.append({"text": prompt, "ids": ids, "greedy": tokens, "min_gap": round(gap, 6)})
    cut = stories.windows(tokenizer, text, bos)
    value, count = stories.perplexity(lambda ids: judge.logits(model, ids), cut)
    return {
        "versions": judge.versions(),
        "window": stories.WINDOW,
        "prompts": prompts,
        "perplexity": {
            "text": text.name,
            "sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
            "value": round(value, 6),
            "tokens": count,
            "windows": len(cut),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/stories260K")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "../shared/data/text/tinystories_valid_30k.txt")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/fixtures/stories/expected.json")
    options = parser.parse_args()
    answer = expected(options.model, options.text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    judge.dump_json(options.out, answer)
    gaps = [prompt["min_gap"] for prompt in answer["prompts"]]
    print(f"{options.out}: smallest gaps {gaps}, perplexity {answer['perplexity']['value']:.4f} over "
          f"{answer['perplexity']['tokens']} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
