# SPDX-License-Identifier: Apache-2.0
"""Train the built-in model. Stops by itself after --minutes, or at SIGTERM; goes on from its checkpoint when run again.

    python train.py --corpus ../shared/data/corpus/children_and_adventure.txt.xz \
        --tokenizer models/millrace-tiny/tokenizer.json --out build/train --minutes 90
"""
import argparse
import json
import os
import signal
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from books import load_books, split_books
from data import ANSWER, REPEAT, SKIP, TASK_NAMES, TEXT, Corpus, batch
from model import Config, Llama
from optim import Optimizer
from start import SLOW, induction_start

WARMUP_STEPS = 100
DECAY_SHARE = 0.35  # of the time: the learning rate falls to zero over the last part
# Few tokens are answers, and each of them says much more about retrieval than a token of a book does.
ANSWER_WEIGHT = 2.0


def learning_rate_scale(step, progress):
    """Warm up, stay, then fall linearly to zero (warmup-stable-decay)."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * max(0.0, min((1.0 - progress) / DECAY_SHARE, 1.0))


def shape_of_step(step, progress):
    """(rows, length, longest problem, shares of retrieval, repetition and story rows): short rows first, long ones later."""
    if progress < 0.12:
        return 16, 128, 110, (0.35, 0.10, 0.00)
    if progress < 0.5:
        return 4, 512, 440, (0.25, 0.03, 0.05)
    if (step * 0.6180339887) % 1.0 < 0.35:  # spread evenly
        return 2, 2048, 1900, (0.40, 0.00, 0.05)
    return 8, 512, 440, (0.20, 0.00, 0.05)


def save(path, model, optimizer, state):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **state}, path + ".new")
    os.replace(path + ".new", path)


def backward(model, ids, targets, kinds):
    """Adds up the gradients of the weighted mean cross entropy; returns {kind: (nats, right predictions, count)}.

    The head works on a part of the rows at a time, from the loss back to the hidden states: all logits at once would be
    larger than the cache and need fresh memory at every step.
    """
    wanted = kinds.flatten() != SKIP
    kinds, targets = kinds.flatten()[wanted], targets.flatten()[wanted]
    weights = torch.where(kinds >= ANSWER, ANSWER_WEIGHT, 1.0)
    weights /= weights.sum()
    hidden = model.hidden(ids).flatten(0, 1)[wanted]
    grads = []
    found = torch.zeros(ANSWER + len(TASK_NAMES), 3)
    for at in range(0, len(targets), 1024):
        part = slice(at, at + 1024)
        leaf = hidden[part].detach().requires_grad_()
        logits = F.linear(leaf, model.model.embed_tokens.weight)
        losses = F.cross_entropy(logits, targets[part], reduction="none")
        (losses * weights[part]).sum().backward()
        right = logits.argmax(-1) == targets[part]
        values = torch.stack((losses.detach(), right.float(), torch.ones(len(right))), dim=1)
        found.index_add_(0, kinds[part], values)
        grads.append(leaf.grad)
    hidden.backward(torch.cat(grads))
    return {kind: found[kind].tolist() for kind in kinds.unique().tolist()}


class Meter:
    """Sums since the last line of the log."""

    def __init__(self):
        self.sums = {}

    def add(self, found):
        for kind, values in found.items():
            self.sums[kind] = [a + b for a, b in zip(self.sums.get(kind, (0, 0, 0)), values)]

    def line(self):
        """Nats a token of book text; shares of tokens predicted right in answers and repetitions."""
        out = {}
        for kind, (loss, right, count) in sorted(self.sums.items()):
            if kind == TEXT:
                out["text_loss"] = round(loss / count, 4)
            else:
                out["repeat" if kind == REPEAT else TASK_NAMES[kind - ANSWER]] = round(right / count, 3)
        self.sums = {}
        return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--init", help="folder with an exported model whose weights are the start, where there is no checkpoint")
    ap.add_argument("--minutes", type=float, default=90)
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "pid"), "w") as f:
        f.write(f"{os.getpid()}\n")
    checkpoint = os.path.join(args.out, "checkpoint.pt")

    books, _ = split_books(load_books(args.corpus))
    corpus = Corpus(books, Tokenizer.from_file(args.tokenizer), cache=os.path.join(args.out, "corpus"))
    model = Llama(Config.of_folder(args.init) if args.init else Config())
    induction_start(model)
    optimizer = Optimizer(model, muon_lr=0.02, embedding_lr=1e-2, norm_lr=3e-3, slow=SLOW)
    state = {"step": 0, "tokens": 0, "seconds": 0.0}
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = {key: saved[key] for key in state}
    elif args.init:
        model.load_state_dict(load_file(os.path.join(args.init, "model.safetensors")))
    print(f"{model.parameter_count()} parameters, {len(corpus.ids)} tokens a pass, step {state['step']}", flush=True)

    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    log = open(os.path.join(args.out, "log.jsonl"), "a")
    meter, last, last_save = Meter(), time.monotonic(), time.monotonic()
    while not asked_to_stop and state["seconds"] < args.minutes * 60:
        progress = state["seconds"] / (args.minutes * 60)
        rows, length, longest, shares = shape_of_step(state["step"], progress)
        ids, targets, kinds = batch(corpus, state["step"], rows, length, shares, longest)
        meter.add(backward(model, ids, targets, kinds))
        optimizer.step(learning_rate_scale(state["step"], progress))
        now = time.monotonic()
        # A pause (SIGSTOP) must not count as training: no honest step takes a minute.
        state["seconds"] += min(now - last, 60.0)
        last = now
        state["step"] += 1
        state["tokens"] += ids.numel()
        if state["step"] % 25 == 0:
            line = {**state, "seconds": round(state["seconds"]), **meter.line()}
            log.write(json.dumps(line) + "\n")
            log.flush()
        if now - last_save > 180:
            save(checkpoint, model, optimizer, state)
            last_save = now
    save(checkpoint, model, optimizer, state)
    print(f"stopped at step {state['step']}, {state['tokens']} tokens", flush=True)


if __name__ == "__main__":
    main()
