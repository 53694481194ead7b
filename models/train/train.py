# SPDX-License-Identifier: Apache-2.0
"""Train a built-in model. Stops by itself after --minutes, or at SIGTERM; goes on from its checkpoint when run again.

    python train.py --corpus ../shared/data/corpus/children_and_adventure.txt.xz \
        --tokenizer models/millrace-tiny/tokenizer.json --out build/train --minutes 90
    python train.py --size small --device cuda --workers 12 --minutes 3.3 ...
"""
import time

STARTED = time.monotonic()  # before the imports, which take seconds: where minutes are all there is, these count

import argparse
import json
import os
import signal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from books import load_books, split_books
from data import ANSWER, REPEAT, TASK_NAMES, TEXT, Corpus, Feeder
from export import export
from model import CONFIGS, Config, Llama
from optim import Optimizer
from plan import PLANS
from start import SLOW, induction_start, start_from

WARMUP_STEPS = 100
DECAY_SHARE = 0.35  # of the time: the learning rate falls to zero over the last part
MUON_LR, EMBEDDING_LR, NORM_LR = 0.02, 1e-2, 3e-3


def learning_rate_scale(step, progress):
    """Warm up, stay, then fall linearly to zero (warmup-stable-decay)."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * max(0.0, min((1.0 - progress) / DECAY_SHARE, 1.0))


def save(path, model, optimizer, state):
    weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": model.cfg.to_dict()}
    torch.save({**weights, **state}, path + ".new")
    os.replace(path + ".new", path)


def on_device(array, device):
    tensor = torch.from_numpy(array.astype("int64"))
    if device.type == "cuda":  # a copy from pinned memory does not wait for the work that is queued before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def backward(model, plan, ids, places, targets, kinds):
    """Adds up the gradients of the weighted mean cross entropy; returns [kind, (nats, right predictions, count)].

    The head works on a part of the rows at a time, from the loss back to the hidden states: all logits at once would be
    larger than the cache and need fresh memory at every step. Nothing here waits for a GPU.
    """
    weights = torch.where(kinds >= ANSWER, plan.answer_weight, 1.0)
    weights /= weights.sum()
    hidden = model.hidden(ids).flatten(0, 1).index_select(0, places)
    grads = []
    found = torch.zeros(ANSWER + len(TASK_NAMES), 3, device=ids.device)
    for at in range(0, len(targets), plan.chunk):
        part = slice(at, at + plan.chunk)
        leaf = hidden[part].detach().requires_grad_()
        logits = model.head(leaf).float()
        losses = F.cross_entropy(logits, targets[part], reduction="none")
        (losses * weights[part]).sum().backward()
        right = logits.argmax(-1) == targets[part]
        values = torch.stack((losses.detach(), right.float(), torch.ones_like(losses)), dim=1)
        found.index_add_(0, kinds[part], values)
        grads.append(leaf.grad)
    ends, grads = [hidden], [torch.cat(grads)]
    if plan.spread_weight:
        ends.append(plan.spread_weight * torch.stack([block.mlp.spread for block in model.model.layers]).mean())
        grads.append(None)
    torch.autograd.backward(ends, grads)
    return found.double()


class Meter:
    """Sums since the last line of the log."""

    def __init__(self):
        self.sums = 0

    def add(self, found):
        self.sums = self.sums + found

    def line(self):
        """Nats a token of book text; shares of tokens predicted right in answers and repetitions."""
        out = {}
        for kind, (loss, right, count) in enumerate(self.sums.tolist()):
            if not count:
                continue
            if kind == TEXT:
                out["text_loss"] = round(loss / count, 4)
            else:
                out["repeat" if kind == REPEAT else TASK_NAMES[kind - ANSWER]] = round(right / count, 3)
        self.sums = 0
        return out


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--size", choices=CONFIGS, help="tiny, or the size of --init, where nothing is said")
    ap.add_argument("--init", help="folder with an exported model whose weights are the start, where there is no checkpoint")
    ap.add_argument("--export", help="folder for the exported model, written whenever the checkpoint is")
    ap.add_argument("--log", help="log.jsonl in --out where nothing is said")
    ap.add_argument("--minutes", type=float, default=90, help="from the start of the script, earlier runs counted in")
    ap.add_argument("--device", default="cpu", help="cpu (float32) or cuda (activations in BF16)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--workers", type=int, default=0, help="processes that make batches ahead")
    ap.add_argument("--rows", type=float, default=1.0, help="factor for the rows of every step")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "pid"), "w") as f:
        f.write(f"{os.getpid()}\n")
    checkpoint = os.path.join(args.out, "checkpoint.pt")
    device, plan = torch.device(args.device), PLANS[args.size or "tiny"]
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each form of row; the flash kernels start at once

    books, _ = split_books(load_books(args.corpus))
    corpus = Corpus(books, Tokenizer.from_file(args.tokenizer), cache=os.path.join(args.out, "corpus"))
    feeder = Feeder(corpus, args.workers)
    cfg = Config.of_folder(args.init) if args.init and not args.size else CONFIGS[args.size or "tiny"]
    model = Llama(cfg, torch.bfloat16 if device.type == "cuda" else torch.float32)
    induction_start(model)
    model.to(device)
    optimizer = Optimizer(model, MUON_LR, EMBEDDING_LR, NORM_LR, plan.weight_decay, slow=SLOW)
    state = {"step": 0, "tokens": 0, "seconds": 0.0}
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = {key: saved[key] for key in state}
    elif args.init:
        start_from(model, load_file(os.path.join(args.init, "model.safetensors")))

    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    log = open(args.log or os.path.join(args.out, "log.jsonl"), "a")

    def write(line):
        log.write(json.dumps(line) + "\n")
        log.flush()

    def keep():
        save(checkpoint, model, optimizer, state)
        if args.export:
            export(args.export, model)

    meter, last = Meter(), time.monotonic()
    budget = args.minutes * 60 - (last - STARTED)
    keep_every, last_kept = min(180.0, budget / 4), last
    run = {"size": args.size or "tiny", "device": device_name(device), "torch": torch.__version__, "minutes": args.minutes}
    write({"run": {**run, "rows": args.rows, "books": len(books), "pass": len(corpus.ids), "from_step": state["step"]}})
    print(f"{model.parameter_count()} parameters, {len(corpus.ids)} tokens a pass, step {state['step']}, "
          f"{last - STARTED:.1f} s to begin", flush=True)
    while not asked_to_stop and state["seconds"] < budget:
        progress = state["seconds"] / budget
        while len(feeder.waiting) < feeder.ahead:
            step = state["step"] + len(feeder.waiting)
            feeder.ask(step, plan.rows(step, progress).scaled(args.rows))
        ids, places, targets, kinds = (on_device(array, device) for array in feeder.take())
        meter.add(backward(model, plan, ids, places, targets, kinds))
        optimizer.step(learning_rate_scale(state["step"], progress))
        now = time.monotonic()
        # A pause (SIGSTOP) must not count as training: no honest step takes a minute.
        state["seconds"] += min(now - last, 60.0)
        last = now
        state["step"] += 1
        state["tokens"] += ids.numel()
        if state["step"] % 25 == 0:
            densities = [block.mlp.density for block in model.model.layers if block.mlp.density is not None]
            fired = {"density": [round(density.item(), 3) for density in densities]} if densities else {}
            write({**state, "seconds": round(state["seconds"]), **meter.line(), **fired})
        if now - last_kept > keep_every:
            keep()
            last_kept = now
    keep()
    write({"end": {**state, "seconds": round(state["seconds"])}})
    feeder.close()
    print(f"stopped at step {state['step']}, {state['tokens']} tokens, {time.monotonic() - STARTED:.1f} s", flush=True)


if __name__ == "__main__":
    main()
