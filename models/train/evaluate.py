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
LENGTHS = (50, 100, 250, 500, 1000, 1900, 3000, 3900)
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}  # of a forward pass


def load(folder, tokenizer, device):
    model = Llama(Config.of_folder(folder))
    model.load_state_dict({k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items()})
    return model.eval().to(device), Tokenizer.from_file(tokenizer or f"{folder}/tokenizer.json")


def batches(rows, device):
    """The rows, and as one tensor what they are when filled up to the longest; what is filled up follows, so it is not seen."""
    longest = max(len(row) for row in rows)
    count = max(1, BATCH_TOKENS[device.type] // longest)
    for at in range(0, len(rows), count):
        part = rows[at : at + count]
        yield part, torch.tensor([row + [END_ID] * (longest - len(row)) for row in part], device=device)


def bits_per_byte(model, tok, text, limit):
    """(bits, bytes) of each window of WINDOW tokens, every one of them predicted after a BOS."""
    ids = tok.encode(text, add_special_tokens=False).ids[: limit * WINDOW]
    windows = [[BOS_ID] + ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    rows = []
    for part, filled in batches(windows, model.cos.device):
        logits = model(filled[:, :-1]).transpose(1, 2)
        nll = torch.nn.functional.cross_entropy(logits, filled[:, 1:], reduction="none").cpu()
        for row, losses in zip(part, nll):
            size = len(tok.decode(row[1:]).encode())
            rows.append((losses[: len(row) - 1].sum().item() / math.log(2), size))
    return rows


def ratio_with_interval(rows):
    """Mean bits per byte and the half width of its 95 % interval; windows are the independent samples."""
    bits, size = sum(b for b, _ in rows), sum(n for _, n in rows)
    mean = bits / size
    squares = sum((b - mean * n) ** 2 for b, n in rows)
    return mean, 1.96 * math.sqrt(squares * len(rows) / (len(rows) - 1)) / size


def count_right(model, tok, problems):
    """How many of them greedy decoding answers, and then ends. One forward pass tells: greedy decoding reproduces a given
    continuation exactly when each of its tokens is the most likely one after what precedes it."""
    rows = [chat_turns(tok, turns, ANSWER) for turns in problems]
    assert all(ids[-1] == END_ID and len(ids) <= model.cfg.max_position_embeddings for ids, _ in rows)
    counts = iter([kinds.count(ANSWER) for _, kinds in rows])
    right = 0
    for part, filled in batches([ids for ids, _ in rows], model.cos.device):
        for ids, hidden in zip(part, model.hidden(filled)):
            count = next(counts)
            found = model.head(hidden[len(ids) - 1 - count : len(ids) - 1]).argmax(-1)
            right += found.tolist() == ids[-count:]
    return right


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
    ap.add_argument("--tokenizer", help="tokenizer.json of the model's folder where nothing is said")
    ap.add_argument("--device", default="cpu", choices=BATCH_TOKENS)
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    if args.windows < 2 or args.problems < 1:
        ap.error("an interval needs at least 2 windows, a share at least 1 problem")
    torch.set_num_threads(args.threads)
    model, tok = load(args.model, args.tokenizer, torch.device(args.device))
    lengths = [length for length in LENGTHS if length + 100 <= model.cfg.max_position_embeddings]
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
            for length in lengths:
                rng = random.Random(f"{task} {length}")
                problems = [retrieval.make(task, rng, length, corpus.passage(rng)) for _ in range(args.problems)]
                right = count_right(model, tok, problems)
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
