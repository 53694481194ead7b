# SPDX-License-Identifier: Apache-2.0
"""Measure an exported model: bits per byte on the held-out books, retrieval accuracy by task and length.

    python evaluate.py --model models/millrace-tiny --corpus ../shared/data/corpus/children_and_adventure.txt.xz \
        --out models/millrace-tiny/evaluation.json
"""
import argparse
import json
import math
import random
import sys

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import retrieval
from books import load_books, split_books
from data import ANSWER, Corpus, chat_turns
from model import Config, Llama
from tokenizer import BOS_ID, END_ID

WINDOW = 1024
LENGTHS = (50, 100, 250, 500, 1000, 1900)


def load(folder):
    model = Llama(Config.of_folder(folder))
    model.load_state_dict({k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(f"{folder}/tokenizer.json")


def bits_per_byte(model, tok, text, limit):
    """(bits, bytes) of each window of WINDOW tokens, every one of them predicted after a BOS."""
    ids = tok.encode(text, add_special_tokens=False).ids[: limit * WINDOW]
    rows = []
    for start in range(0, len(ids), WINDOW):
        part = ids[start : start + WINDOW]
        logits = model(torch.tensor([[BOS_ID] + part[:-1]]))[0]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(part), reduction="sum").item()
        rows.append((nll / math.log(2), len(tok.decode(part).encode())))
    return rows


def ratio_with_interval(rows):
    """Mean bits per byte and the half width of its 95 % interval; windows are the independent samples."""
    bits, size = sum(b for b, _ in rows), sum(n for _, n in rows)
    mean = bits / size
    squares = sum((b - mean * n) ** 2 for b, n in rows)
    return mean, 1.96 * math.sqrt(squares * len(rows) / (len(rows) - 1)) / size


def answers_right(model, tok, turns):
    """True when greedy decoding gives the answer and then ends. One forward pass tells: greedy decoding reproduces a
    given continuation exactly when each of its tokens is the most likely one after what precedes it."""
    ids, kinds = chat_turns(tok, turns, ANSWER)
    count = kinds.count(ANSWER)
    assert ids[-1] == END_ID and len(ids) <= model.cfg.max_position_embeddings
    logits = model(torch.tensor([ids[:-1]]))[0, -count:]
    return logits.argmax(-1).tolist() == ids[-count:]


def wilson(right, count):
    """95 % interval of a share (Wilson 1927)."""
    z, p = 1.96, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--out", help="file for the report, which is printed otherwise")
    ap.add_argument("--windows", type=int, default=20, help="most of each held-out book, at least 2")
    ap.add_argument("--problems", type=int, default=50, help="of each task and length")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    if args.windows < 2 or args.problems < 1:
        ap.error("an interval needs at least 2 windows, a share at least 1 problem")
    torch.set_num_threads(args.threads)
    model, tok = load(args.model)
    _, held_out = split_books(load_books(args.corpus))
    # Bits per byte: [mean, half width of the 95 % interval]. Retrieval: task -> length -> [right, asked, low, high].
    report = {"bits_per_byte": {}, "retrieval": {task: {} for task in retrieval.TASKS}}
    with torch.no_grad():
        every = []
        for name, text in held_out:
            rows = bits_per_byte(model, tok, text, args.windows)
            every += rows
            mean, half = ratio_with_interval(rows)
            report["bits_per_byte"][name] = [round(mean, 3), round(half, 3)]
        mean, half = ratio_with_interval(every)
        report["bits_per_byte"]["all"] = [round(mean, 4), round(half, 4)]
        corpus = Corpus(held_out, tok)
        for task in retrieval.TASKS:
            for length in LENGTHS:
                rng = random.Random(f"{task} {length}")
                right = 0
                for _ in range(args.problems):
                    right += answers_right(model, tok, retrieval.make(task, rng, length, corpus.passage(rng)))
                low, high = wilson(right, args.problems)
                report["retrieval"][task][length] = [right, args.problems, round(low, 2), round(high, 2)]
                print(task, length, report["retrieval"][task][length], file=sys.stderr, flush=True)
    text = json.dumps(report, indent=1) + "\n"
    if args.out:
        with open(args.out, "w", encoding="utf-8") as f:
            f.write(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
