# SPDX-License-Identifier: Apache-2.0
"""Tables for the model card, from the evaluation and the training log; writes the log thinned beside the model.

    python card.py --model models/millrace-tiny --log build/train/log.jsonl
"""
import argparse
import json
import os

KEPT_LINES = 100
TABLE_LINES = 14
COLUMNS = ("step", "tokens", "seconds", "text_loss", "repeat", "copy", "key_value", "needle", "two_hop")


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True)
    ap.add_argument("--log", required=True)
    args = ap.parse_args()
    with open(args.log, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    with open(os.path.join(args.model, "evaluation.json"), encoding="utf-8") as f:
        report = json.load(f)
    with open(os.path.join(args.model, "training_log.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line) + "\n" for line in spread(lines, KEPT_LINES))
    for table in (log_table(lines), bits_table(report["bits_per_byte"]), retrieval_table(report["retrieval"])):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
