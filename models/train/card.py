# SPDX-License-Identifier: Apache-2.0
"""Tables for the model card, from the evaluation and the training log; writes the log thinned beside the model.

    python card.py --model models/millrace-tiny --log build/train/log.jsonl

With --readme the whole card of a model other than millrace-tiny (whose history is told by hand) is written as README.md
beside it. All its figures come from the files of the model and from the log.
"""
import argparse
import json
import os

from books import HELD_OUT
from model import Config, Llama
from plan import PLANS
from train import DECAY_SHARE

KEPT_LINES = 100
TABLE_LINES = 14
COLUMNS = ("step", "tokens", "seconds", "text_loss", "repeat", "copy", "key_value", "needle", "two_hop")

CARD = """\
# {name}

A larger sibling of [millrace-tiny](../millrace-tiny/README.md), with the same tokenizer and the same tasks over a longer
context. It is for seeing what a lossy method breaks (a cut of the KV cache, sparse attention, a number format): the tables
below say up to which length it can look things up in its context. It knows nothing and is good for nothing else.

## Architecture

| | |
|---|---|
| form | `LlamaForCausalLM`: RMSNorm, rope, grouped-query attention, SwiGLU, head tied to the embeddings, no biases |
| parameters | {parameters:,}, of which {embeddings:,} are embeddings; BF16, {megabytes:.1f} MB |
| layers, width | {cfg.num_hidden_layers}, {cfg.hidden_size}; feed-forward {cfg.intermediate_size} |
| attention | {cfg.num_attention_heads} query heads over {cfg.num_key_value_heads} key-value heads of {cfg.head_dim}; \
rope with theta {cfg.rope_theta:,.0f} |
| context | {cfg.max_position_embeddings:,} tokens |
| vocabulary, chat | those of millrace-tiny |

## Data

**Books.** {books} English books in the public domain, mostly for children and of adventure; {per_pass:.1f} million tokens a
pass. Further books are held out whole; neither the model nor the tokenizer saw a word of them:
{held_out}.

**Retrieval tasks**, generated without end (`models/train/retrieval.py`), as conversations; millrace-tiny's card shows one
of each.

## Training

`models/train/train.py` with PyTorch {torch} on {device}, {minutes:g} minutes from the start of the script to the end of
training: {tokens:,} tokens in {steps:,} steps, activations in {precision}. The weights at the start hold an induction
circuit by construction (`models/train/start.py`); the layers that hold it learn more slowly. Muon for the matrices, AdamW
for embeddings and norms; warm-up, constant, then linear decay to zero over the last {decay:.0f} % of the time. An answer
token weighs {weight:g} times as much as one of a book.

Rows of a step, by the share of the time until which they are taken; the rest of them is book text.

{phases}

The log, thinned (more lines: `training_log.jsonl`). `text_loss` is nats a token of book text over the last 25 steps;
the other columns are shares of the answer tokens predicted right in them.

{log}

## Measured

By `models/train/evaluate.py` on the exported BF16 weights, computed in float32; all figures in `evaluation.json`.

Bits per byte of the held-out books: windows of 1,024 tokens of each, every token predicted from those before it in its
window. ± is half of the 95 % interval over windows.

{bits}

Retrieval with greedy decoding, the whole answer right to the end token; {asked} problems for each cell, in brackets the
95 % Wilson interval. The length is that of question and answer together. The problems are new, their words are those of the
training problems; needles are put into held-out books.

{retrieval}

## Limits

- Right in less than nine cases of ten: {weak}.
- It was not taught facts, instructions or manners, and no other language than English. The books are a century old, and
  so are their views.

## Again

With what `models/train/requirements.txt` names installed:

    CORPUS=../shared/data/corpus/children_and_adventure.txt.xz
    TOKENIZER=models/millrace-tiny/tokenizer.json
    python models/train/train.py --size {size} --device {kind} --corpus $CORPUS --tokenizer $TOKENIZER \\
        --out build/train-{size} --minutes {minutes:g} --workers 12
    mkdir -p models/{name} && cp $TOKENIZER models/{name}
    python models/train/export.py --checkpoint build/train-{size}/checkpoint.pt --out models/{name}
    python models/train/evaluate.py --model models/{name} --device {kind} --corpus $CORPUS \\
        --out models/{name}/evaluation.json
    python models/train/card.py --model models/{name} --log build/train-{size}/log.jsonl --readme

Batches depend on the step and its place in the schedule, which follows the clock: another machine makes another model.

## Licence

Weights, tokenizer and scripts: Apache-2.0, as the rest of the project. The books are in the public domain.
"""


def spread(lines, count):
    """About `count` of the lines, evenly, the last one among them."""
    stride = max(1, -(-len(lines) // count))
    return [line for i, line in enumerate(lines) if (len(lines) - 1 - i) % stride == 0]


def row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def log_table(lines):
    out = [row(COLUMNS), "|" + "--:|" * len(COLUMNS)]
    return out + [row(line.get(name, "") for name in COLUMNS) for line in spread(lines, TABLE_LINES)]


def bits_table(bits):
    out = ["| held-out book | bits per byte |", "|---|--:|"]
    names = {"all": "**all**"}
    return out + [row((names.get(name, name), f"{mean:.3f} ± {half:.3f}")) for name, (mean, half) in bits.items()]


def retrieval_table(retrieval):
    lengths = list(next(iter(retrieval.values())))
    out = [row(["task", *(f"{length} tokens" for length in lengths)]), "|---|" + "--:|" * len(lengths)]
    for task, by_length in retrieval.items():
        cells = []
        for right, asked, low, high in by_length.values():
            cells.append(f"{100 * right / asked:.0f} % ({100 * low:.0f}–{100 * high:.0f})")
        out.append(row([task, *cells]))
    return out


def phase_table(plan, factor):
    out = [
        "| until | of the steps | rows × tokens | retrieval, repetition, story rows | longest problem | questions, at most |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for until, choices in plan.phases:
        before = 0.0
        for limit, rows in choices:
            rows = rows.scaled(factor)
            shares = ", ".join(f"{100 * share:.0f} %" for share in rows.shares)
            form = f"{rows.rows} × {rows.length}"
            out.append(row((f"{100 * until:.0f} %", f"{100 * (limit - before):.0f} %", form, shares, rows.longest, rows.asks)))
            before = limit
    return out


def weak_cells(retrieval):
    found = []
    for task, by_length in retrieval.items():
        lengths = [length for length, (right, asked, _, _) in by_length.items() if right < 0.9 * asked]
        if lengths:
            found.append(f"{task} at {', '.join(lengths)} tokens")
    return "; ".join(found) or "no cell of the table"


def card(folder, run, lines, end, report):
    cfg = Config.of_folder(folder)
    kind = "cpu" if run["device"] == "CPU" else "cuda"
    return CARD.format(
        name=os.path.basename(os.path.normpath(folder)),
        cfg=cfg,
        parameters=Llama(cfg).parameter_count(),
        embeddings=cfg.vocab_size * cfg.hidden_size,
        megabytes=os.path.getsize(os.path.join(folder, "model.safetensors")) / 1e6,
        books=run["books"],
        per_pass=run["pass"] / 1e6,
        held_out=";\n".join(name.replace(" / ", ", ") for name in HELD_OUT),
        torch=run["torch"],
        device="a CPU" if kind == "cpu" else f"one {run['device']}",
        kind=kind,
        size=run["size"],
        minutes=run["minutes"],
        tokens=end["tokens"],
        steps=end["step"],
        precision="float32" if kind == "cpu" else "BF16",
        decay=100 * DECAY_SHARE,
        weight=PLANS[run["size"]].answer_weight,
        phases="\n".join(phase_table(PLANS[run["size"]], run["rows"])),
        log="\n".join(log_table(lines)),
        bits="\n".join(bits_table(report["bits_per_byte"])),
        asked=next(iter(report["retrieval"]["copy"].values()))[1],
        retrieval="\n".join(retrieval_table(report["retrieval"])),
        weak=weak_cells(report["retrieval"]),
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--log", required=True)
    ap.add_argument("--readme", action="store_true", help="write the whole card")
    args = ap.parse_args()
    with open(args.log, encoding="utf-8") as f:
        entries = [json.loads(line) for line in f]
    runs, lines, ends = ([line for line in entries if key in line] for key in ("run", "step", "end"))
    with open(os.path.join(args.model, "evaluation.json"), encoding="utf-8") as f:
        report = json.load(f)
    with open(os.path.join(args.model, "training_log.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in runs + spread(lines, KEPT_LINES) + ends)
    if args.readme:
        with open(os.path.join(args.model, "README.md"), "w", encoding="utf-8") as f:
            f.write(card(args.model, runs[-1]["run"], lines, ends[-1]["end"] if ends else lines[-1], report))
        return
    for table in (log_table(lines), bits_table(report["bits_per_byte"]), retrieval_table(report["retrieval"])):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
