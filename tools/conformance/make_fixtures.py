"""Writes tests/fixtures/logits: what transformers computes for every configuration of families.py.

The weights are the dummy weights, so that a fixture is a config.json and the expected numbers, and `make test` needs
neither PyTorch nor a checkpoint. See tests/fixtures/logits/README.md for the files.

    python make_fixtures.py [-k WORD ...] [--output DIR]
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import dummy_weights
import judge
import published
from families import select

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_published(case, directory: pathlib.Path, verdict: judge.Verdict) -> None:
    """The same configuration with the keys of published checkpoints, after transformers has agreed that it is the same."""
    saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    path = directory / "config_published.json"
    judge.dump_json(path, published.rewrite_config(saved))
    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
    dummy_weights.fill(model, judge.dtype_of(case))
    if not np.array_equal(judge.logits(model, verdict.prompt), verdict.logits):
        raise RuntimeError(f"{case.name}: the published form is another model for transformers")


def write(case, output: pathlib.Path) -> str:
    model = judge.dummy_model(case)
    bf16 = judge.dummy_model(case, torch.bfloat16)
    verdict = judge.judge(case, model, bf16)
    directory = output / case.name
    directory.mkdir(parents=True, exist_ok=True)
    judge.write_config(model, case, directory)
    write_published(case, directory, verdict)
    verdict.logits.astype("<f4").tofile(directory / "expected.bin")
    judge.dump_json(directory / "expected.json", {
        "prompt": verdict.prompt,
        "vocab": verdict.logits.shape[1],
        "greedy": verdict.greedy,
        "max_abs_logit": verdict.max_abs,
        "min_top2_gap": verdict.min_gap,
        "bf16_max_error": float(verdict.bf16_error.max()),
        "bf16_median_error": float(sorted(verdict.bf16_error)[len(verdict.bf16_error) // 2]),
        "prompt_seed": verdict.seed,
        "notes": case.notes,
        **judge.versions(),
    })
    return (f"max|logit| {verdict.max_abs:.2f}, gap {verdict.min_gap / verdict.max_abs:.1e}, "
            f"{len(set(verdict.greedy))} different tokens, bf16 {verdict.bf16_error.max() / verdict.max_abs:.1e}, "
            f"seed {verdict.seed}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-k", nargs="*", default=[], help="only configurations whose name or class has one of these")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "tests/fixtures/logits")
    arguments = parser.parse_args()
    cases = select(arguments.k)
    started = time.monotonic()
    for case in cases:
        print(f"{case.name:30} {write(case, arguments.output)}", flush=True)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*") if p.is_file())
    print(f"{len(cases)} configurations, {size / 1e6:.2f} MB in all, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
