"""Measures llama.cpp through llama-cpp-python: the tests of `millrace bench`, as one JSON document.

    llama_cpp_side.py MODEL --threads N --prompt N --gen N --batch 1,16 --depth 0,1024

Straight on the library's functions, without a sampler, as `millrace bench` runs without one. Depth is computed, since the
library has no way to fill its memory otherwise. Flash attention and the type of the KV memory (f16) are its defaults.
"""

import argparse
import ctypes
import json
import time

import llama_cpp as llama

BATCH = 512  # rows of a step at most, as in `millrace bench`
SHORT = 16  # tokens in front of what decoding generates, at depth 0


class Session:
    """A context with room for `sequences` sequences of `tokens` tokens."""

    def __init__(self, model, threads, sequences, tokens):
        params = llama.llama_context_default_params()
        params.n_ctx = sequences * ((tokens + 255) // 256 * 256)
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not make a context: too little memory?")
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.batch = llama.llama_batch_init(max(BATCH, sequences), 0, 1)

    def close(self):
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)

    def run(self, rows):
        """One step of rows (sequence, position, wants logits), until its results are there."""
        for i, (sequence, position, logits) in enumerate(rows):
            self.batch.token[i] = (7919 * (position + 1) + 104729 * sequence) % self.vocab
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = logits
        self.batch.n_tokens = len(rows)
        if llama.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(self.context)

    def compute(self, sequence, begin, end):
        for first in range(begin, end, BATCH):
            last = min(first + BATCH, end)
            self.run([(sequence, t, t + 1 == end) for t in range(first, last)])

    def prefill(self, tokens, depth):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        self.compute(0, 0, depth)
        start = time.perf_counter()
        self.compute(0, depth, depth + tokens)
        return tokens / (time.perf_counter() - start)

    def decode(self, steps, batch, depth):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        behind = max(depth, SHORT)
        for sequence in range(batch):
            self.compute(sequence, 0, behind)
        start = time.perf_counter()
        for step in range(steps):
            self.run([(sequence, behind + step, True) for sequence in range(batch)])
        return steps * batch / (time.perf_counter() - start)


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--gen", type=int, required=True)
    parser.add_argument("--batch", type=numbers, required=True)
    parser.add_argument("--depth", type=numbers, required=True)
    parser.add_argument("--stored-layout", action="store_true",
                        help="weights as they are in the file: without its kernels that lay them out anew, such as AMX's")
    args = parser.parse_args()

    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.use_extra_bufts = not args.stored_layout
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp could not load {args.model}")
    tests = []
    for depth in args.depth:
        cases = [("pp", args.prompt, 1)] if args.prompt else []
        cases += [("tg", args.gen, batch) for batch in args.batch] if args.gen else []
        for kind, tokens, batch in cases:
            session = Session(model, args.threads, batch, max(depth, SHORT) + tokens)
            for _ in range(2):  # the first run pays for page faults, as in `millrace bench`
                speed = session.prefill(tokens, depth) if kind == "pp" else session.decode(tokens, batch, depth)
            session.close()
            tests.append({"test": f"{kind}{tokens}", "batch": batch, "depth": depth, "tokens_per_second": speed})
    print(json.dumps({"version": llama.__version__, "system": llama.llama_print_system_info().decode().strip(),
                      "tests": tests}))


if __name__ == "__main__":
    main()
