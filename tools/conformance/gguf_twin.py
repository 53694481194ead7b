#!/usr/bin/env python3
"""Does a model mean the same from a GGUF file as from its safetensors directory?

For every configuration of families.py that GGUF can express, random weights are saved as a Hugging Face directory and
converted to a GGUF twin in float32 (gguf_convert.py); `millrace logits` must then print the same numbers for both, to
the last bit. `--fixtures` writes the small pairs in tests/fixtures/checkpoint instead, which the tests compare without
any package.

    gguf_twin.py [-k WORD ...] [--binary PATH] [--keep DIR] [--list]
    gguf_twin.py --fixtures
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

import judge
import published
from families import CASES, Case
from gguf_convert import inexpressible, write_twin
from millrace import Millrace, MillraceError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = 3
FIXTURES = ROOT / "tests" / "fixtures" / "checkpoint"

_TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "intermediate_size": 40, "vocab_size": 61, "max_position_embeddings": 256, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": None}
FIXTURE_CASES = [
    Case("llama", "LlamaConfig", _TINY | {"attention_bias": True, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}}, 24,
         dtype="bfloat16"),
    Case("qwen3", "Qwen3Config", _TINY | {"tie_word_embeddings": True}, 24),
    Case("gemma3", "Gemma3TextConfig", _TINY | {"query_pre_attn_scalar": 8, "sliding_window": 12, "hidden_size": 16,
                                                "num_hidden_layers": 6, "intermediate_size": 24}, 24,
         dtype="bfloat16"),
]

# Gemma 2 and 3 once more, without what GGUF cannot say.
_GEMMA = _TINY | {"head_dim": 20, "query_pre_attn_scalar": 20, "sliding_window": 12, "num_hidden_layers": 6}
TWIN_CASES = CASES + [
    Case("gemma2_twin", "Gemma2Config", _GEMMA, 40, dtype="bfloat16"),
    Case("gemma3_twin", "Gemma3TextConfig", _GEMMA | {
        "tie_word_embeddings": False, "final_logit_softcapping": 20.0, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}}, 40),
]


def save_directory(case: Case, directory: pathlib.Path) -> None:
    """As transformers saves it, with MXFP4 experts where the case has them."""
    judge.save(judge.random_model(case, SEED), case, directory)
    if case.mxfp4:
        path = directory / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        published.rewrite_mxfp4(directory, config, SEED)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def compare(millrace: Millrace, case: Case, root: pathlib.Path) -> str:
    """Empty where the two agree, else what differs; starts with 'skipped' where there is nothing to compare."""
    directory = root / case.name
    save_directory(case, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if reason := inexpressible(config):
        return f"skipped: {reason}"
    twin = root / f"{case.name}.gguf"
    write_twin(directory, twin)
    ids = judge.prompt_ids(case, config["vocab_size"], SEED)
    try:
        expected, found = (millrace.logits(path, ids, "--max-model-len", "256") for path in (directory, twin))
    except MillraceError as error:
        return str(error)
    if expected.shape != found.shape:
        return f"logits of shape {found.shape} instead of {expected.shape}"
    if not np.array_equal(expected, found):
        return f"logits differ by up to {np.abs(expected - found).max():.2e} of {np.abs(expected).max():.2e}"
    return ""


def write_fixtures() -> int:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for case in FIXTURE_CASES:
        directory = FIXTURES / case.name
        shutil.rmtree(directory, ignore_errors=True)
        save_directory(case, directory)
        reason = inexpressible(json.loads((directory / "config.json").read_text(encoding="utf-8")))
        if reason:
            raise SystemExit(f"{case.name}: {reason}")
        write_twin(directory, FIXTURES / f"{case.name}.gguf")
        (directory / "generation_config.json").unlink(missing_ok=True)
        (directory / "model.safetensors").chmod(0o644)
        size = sum(path.stat().st_size for path in [*directory.iterdir(), FIXTURES / f"{case.name}.gguf"])
        print(f"{case.name}: {size / 1024:.0f} KiB")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", dest="words", nargs="+", default=[], metavar="WORD", help="cases with one of the words")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build" / "release" / "bin" / "millrace")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="leaves the models there")
    parser.add_argument("--list", action="store_true", help="only names the cases")
    parser.add_argument("--fixtures", action="store_true", help="writes tests/fixtures/checkpoint")
    options = parser.parse_args()
    if options.fixtures:
        return write_fixtures()
    cases = [case for case in TWIN_CASES if not options.words or any(word in case.name for word in options.words)]
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not options.binary.is_file():
        parser.error(f"{options.binary} does not exist; run `make build`")
    millrace = Millrace(options.binary)
    failed = compared = 0
    with contextlib.ExitStack() as stack:
        root = options.keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for case in cases:
            outcome = compare(millrace, case, root)
            print(f"{case.name}: {outcome or 'same bits'}", flush=True)
            skipped = outcome.startswith("skipped")
            compared += not skipped
            failed += bool(outcome) and not skipped
    print(f"{compared - failed} of {compared} twins give the same bits; {len(cases) - compared} configurations have none")
    return 1 if failed or compared == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
