"""tools/convert_llama2c on a tiny model that is made here: names, shapes, order of rows, merges, and broken files."""

import importlib.machinery
import importlib.util
import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_llama2c"
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT = 16, 6, 2, 4, 2, 8
HEAD_DIM, KV_DIM = DIM // HEADS, KV_HEADS * DIM // HEADS
SPACE = "\u2581"
PIECES = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", 0.0) for b in range(256)),
          ("ab", -0.0), (SPACE + "a", -1.0), (SPACE + "ab", -2.0), ("abb", -3.0),
          (SPACE, -4.0), ("a", -5.0), ("b", -6.0)]
VOCAB = len(PIECES)
TENSORS = [  # in the order of the file; the shapes that Hugging Face's Llama expects
    ("embed", VOCAB, DIM), ("rms_att", LAYERS, DIM), ("wq", LAYERS * DIM, DIM), ("wk", LAYERS * KV_DIM, DIM),
    ("wv", LAYERS * KV_DIM, DIM), ("wo", LAYERS * DIM, DIM), ("rms_ffn", LAYERS, DIM), ("w1", LAYERS * HIDDEN, DIM),
    ("w2", LAYERS * DIM, HIDDEN), ("w3", LAYERS * HIDDEN, DIM), ("rms_final", 1, DIM),
    ("cos", CONTEXT, HEAD_DIM // 2), ("sin", CONTEXT, HEAD_DIM // 2)]


def load_tool():
    loader = importlib.machinery.SourceFileLoader("convert_llama2c", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("convert_llama2c", loader))
    loader.exec_module(module)
    return module


def header(**changed):
    fields = {"dim": DIM, "hidden": HIDDEN, "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "vocab": VOCAB,
              "context": CONTEXT, **changed}
    return struct.pack("<7i", *fields.values())


def model_file(tied=True):
    """(bytes, {name: rows}); every weight is another number."""
    count, parts, rows = 0, [header(vocab=VOCAB if tied else -VOCAB)], {}
    for name, height, width in TENSORS + ([] if tied else [("wcls", VOCAB, DIM)]):
        rows[name] = [[float(count + r * width + c) for c in range(width)] for r in range(height)]
        count += height * width
        parts += [struct.pack(f"<{width}f", *row) for row in rows[name]]
    return b"".join(parts), rows


def bin_file(pieces=tuple(PIECES)):
    out = [struct.pack("<i", 10)]
    for index, (text, score) in enumerate(pieces):
        raw = f"\n{text}\n" if index in (1, 2) else text.replace(SPACE, " ")
        out.append(struct.pack("<fi", score, len(raw.encode())) + raw.encode())
    return b"".join(out)


def field(number, value):
    """A protobuf field: varint for an int, length-delimited for bytes, fixed for a float."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    tag, number_bytes = number << 3 | (0 if isinstance(value, int) else 2), b""
    for part in (tag, value if isinstance(value, int) else len(value)):
        while part > 127:
            number_bytes += bytes([part & 127 | 128])
            part >>= 7
        number_bytes += bytes([part])
    return number_bytes + (b"" if isinstance(value, int) else value)


def spm_file(kind=2, charsmap=b"", fallback=1, trims=0, prefix=1, pieces=tuple(PIECES), kinds=None):
    out = b""
    for index, (text, score) in enumerate(pieces):
        of_piece = (kinds or {}).get(index, 2 if index == 0 else 3 if index < 3 else 6 if index < 259 else 1)
        out += field(1, field(1, text.encode()) + field(2, score) + field(3, of_piece))
    out += field(2, field(3, kind) + field(35, fallback))
    return out + field(3, field(1, b"identity") + field(2, charsmap) + field(3, prefix) + field(4, trims))


class Convert(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out"

    def convert(self, model, tokenizer):
        (self.folder / "m.bin").write_bytes(model)
        (self.folder / "t.bin").write_bytes(tokenizer)
        return self.run_tool(self.folder / "m.bin", self.folder / "t.bin")

    def run_tool(self, model, tokenizer):
        command = [sys.executable, "-B", TOOL, "--model", model, "--tokenizer", tokenizer, "--out", self.out]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def read_tensors(self):
        data = (self.out / "model.safetensors").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        self.assertEqual(size % 8, 0)
        entries = json.loads(data[8 : 8 + size])
        self.assertEqual(entries.pop("__metadata__"), {"format": "pt"})
        tensors, end = {}, 0
        for name, entry in entries.items():
            start, stop = entry["data_offsets"]
            self.assertEqual((entry["dtype"], start), ("F32", end))
            end = stop
            self.assertEqual(stop - start, 4 * math.prod(entry["shape"]))
            values = struct.unpack_from(f"<{(stop - start) // 4}f", data, 8 + size + start)
            width = entry["shape"][-1]
            tensors[name] = (entry["shape"], [list(values[i : i + width]) for i in range(0, len(values), width)])
        self.assertEqual(8 + size + end, len(data))
        return tensors

    def test_tensors(self):
        for tied in (True, False):
            with self.subTest(tied=tied):
                model, rows = model_file(tied)
                run = self.convert(model, bin_file())
                self.assertEqual((run.returncode, run.stderr), (0, ""))
                tensors = self.read_tensors()
                self.assertEqual(len(tensors), 2 + 9 * LAYERS + (not tied))
                plain = {"self_attn.v_proj": ("wv", KV_DIM), "self_attn.o_proj": ("wo", DIM),
                         "mlp.gate_proj": ("w1", HIDDEN), "mlp.down_proj": ("w2", DIM), "mlp.up_proj": ("w3", HIDDEN)}
                for layer in range(LAYERS):
                    for name, (source, height) in plain.items():
                        shape, values = tensors[f"model.layers.{layer}.{name}.weight"]
                        self.assertEqual(values, rows[source][layer * height : (layer + 1) * height], name)
                        self.assertEqual(shape, [height, len(values[0])])
                    for name, source in (("input_layernorm", "rms_att"), ("post_attention_layernorm", "rms_ffn")):
                        self.assertEqual(tensors[f"model.layers.{layer}.{name}.weight"], ([DIM], [rows[source][layer]]))
                self.assertEqual(tensors["model.embed_tokens.weight"], ([VOCAB, DIM], rows["embed"]))
                self.assertEqual(tensors["model.norm.weight"], ([DIM], rows["rms_final"]))
                self.assertEqual(tensors.get("lm_head.weight"), None if tied else ([VOCAB, DIM], rows["wcls"]))
                config = json.loads((self.out / "config.json").read_text(encoding="utf-8"))
                self.assertEqual(config["tie_word_embeddings"], tied)
                names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "num_key_value_heads", "vocab_size", "max_position_embeddings")
                self.assertEqual([config[name] for name in names],
                                 [DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT])

    def test_rope_turns_the_same_pairs(self):
        """Scores of neighbouring pairs in the old order of rows are those of half-split pairs in the new one."""
        model, rows = model_file()
        self.assertEqual(self.convert(model, bin_file()).returncode, 0)
        tensors = self.read_tensors()
        half = HEAD_DIM // 2

        def turned(vector, position, first, second):
            out = list(vector)
            for i in range(half):
                angle = position * 10000.0 ** (-i / half)
                a, b = vector[first(i)], vector[second(i)]
                out[first(i)] = a * math.cos(angle) - b * math.sin(angle)
                out[second(i)] = a * math.sin(angle) + b * math.cos(angle)
            return out

        def scores(name, source, heads, position, layer):
            """Each head's vector for one input, turned: as llama2.c does it, as Hugging Face does it."""
            x = [math.sin(7 * i + position) / 1000 for i in range(DIM)]
            times = lambda matrix: [sum(w * v for w, v in zip(row, x)) for row in matrix]
            old = times(rows[source][layer * heads * HEAD_DIM : (layer + 1) * heads * HEAD_DIM])
            new = times(tensors[f"model.layers.{layer}.self_attn.{name}.weight"][1])
            cut = lambda values: [values[h * HEAD_DIM : (h + 1) * HEAD_DIM] for h in range(heads)]
            return ([turned(v, position, lambda i: 2 * i, lambda i: 2 * i + 1) for v in cut(old)],
                    [turned(v, position, lambda i: i, lambda i: i + half) for v in cut(new)])

        for layer in range(LAYERS):
            q_old, q_new = scores("q_proj", "wq", HEADS, 5, layer)
            k_old, k_new = scores("k_proj", "wk", KV_HEADS, 3, layer)
            for head in range(HEADS):
                group = head * KV_HEADS // HEADS
                dot = lambda q, k: sum(a * b for a, b in zip(q[head], k[group]))
                self.assertTrue(math.isclose(dot(q_old, k_old), dot(q_new, k_new), rel_tol=1e-9))
                self.assertNotEqual(q_old[head], q_new[head])

    def test_tokenizer(self):
        results = {}
        for kind, content in (("bin", bin_file()), ("spm", spm_file()), ("spm that trims", spm_file(trims=1))):
            run = self.convert(model_file()[0], content)
            self.assertEqual((run.returncode, run.stderr), (0, ""), kind)
            results[kind] = json.loads((self.out / "tokenizer.json").read_text(encoding="utf-8"))
        self.assertEqual(results["bin"], results["spm"])
        self.assertEqual(results["bin"]["model"], results["spm that trims"]["model"])
        self.assertEqual(len(results["spm that trims"]["normalizer"]["normalizers"]), 4)
        self.assertEqual(len(results["bin"]["normalizer"]["normalizers"]), 2)
        model = results["bin"]["model"]
        self.assertEqual(model["vocab"], {text: index for index, (text, _) in enumerate(PIECES)})
        # By the score of the union; both ways to make a piece.
        self.assertEqual(model["merges"], [["a", "b"], [SPACE, "a"], [SPACE, "ab"], [SPACE + "a", "b"], ["ab", "b"]])

    def check_error(self, run, said):
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        self.assertTrue(run.stderr.startswith("convert_llama2c: "), run.stderr)
        self.assertIn(said, run.stderr)
        self.assertFalse(self.out.exists())

    def test_broken_models(self):
        good, _ = model_file()
        body = good[28:]
        for said, data in {
            "0 bytes": b"",
            "27 bytes": good[:27],
            "the header says": good[:-4],
            f"{len(good) + 1} bytes": good + b"x",
            "dim is 0": header(dim=0) + body,
            "n_layers is -2": header(layers=-2) + body,
            "vocab_size is 2147483648": header(vocab=-(1 << 31)) + body,
            "hidden_dim is 2147483647": header(hidden=(1 << 31) - 1) + body,
            "n_layers is 1048577": header(layers=(1 << 20) + 1) + body,
            "not a multiple of n_heads": header(heads=3) + body,
            "not a multiple of n_kv_heads": header(kv_heads=3) + body,
            "head size 1 is odd": header(heads=DIM, kv_heads=1) + body,
            "model.embed_tokens.weight: a weight is not": header() + struct.pack("<f", math.nan) + body[4:],
        }.items():
            with self.subTest(said):
                self.check_error(self.convert(data, bin_file()), said)

    def test_broken_tokenizers(self):
        pieces = list(PIECES)
        other = lambda index, piece: bin_file(pieces[:index] + [piece] + pieces[index + 1 :])
        for said, data in {
            "0 bytes": b"",
            f"{VOCAB - 1} pieces": bin_file(pieces[:-1]),
            "is cut off": bin_file()[:-1],
            "has length 11, expected 0 to 10": other(VOCAB - 1, ("b" * 11, 0.0)),
            "not UTF-8": bin_file()[:-1] + b"\xff",
            "are both 'ab'": other(VOCAB - 1, ("ab", 0.0)),
            "is empty": other(VOCAB - 1, ("", 0.0)),
            "score is not finite": other(VOCAB - 1, ("b", math.inf)),
            "expected '<s>'": other(1, ("<bos>", 0.0)),
            "expected '<0x01>'": other(4, ("x", 0.0)),
            "another kind than BPE": spm_file(kind=1),
            "character map": spm_file(charsmap=b"x"),
            "without byte fallback": spm_file(fallback=0),
            "adds no space": spm_file(prefix=0),
            "is of kind 4": spm_file(kinds={VOCAB - 1: 4}),
            "cut off": spm_file()[:-1],
            "not a valid protobuf message": spm_file() + b"\xff" * 12,
        }.items():
            with self.subTest(said):
                self.check_error(self.convert(model_file()[0], data), said)

    def test_missing_files(self):
        (self.folder / "m.bin").write_bytes(model_file()[0])
        self.check_error(self.run_tool(self.folder / "m.bin", self.folder / "none"), "none: No such file")
        self.check_error(self.run_tool(self.folder, self.folder / "none"), f"{self.folder}: Is a directory")

    def test_damage_is_never_a_crash(self):
        """Truncations and flipped bits: a result or BadFile, nothing else."""
        tool, rng = load_tool(), random.Random(7)
        readers = [(model_file()[0], tool.read_model), (bin_file(), lambda d: tool.read_tokenizer(d, VOCAB)),
                   (spm_file(), lambda d: tool.read_tokenizer(d, VOCAB))]
        refused = 0
        for good, reader in readers:
            for _ in range(300):
                data = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.3 else good)
                for _ in range(rng.randrange(1, 4) if data else 0):
                    at = rng.randrange(min(len(data), rng.choice((28, len(data)))))
                    data[at] ^= 1 << rng.randrange(8)
                try:
                    reader(bytes(data))
                except tool.BadFile as error:
                    refused += 1
                    self.assertNotIn("\n", str(error))
        self.assertGreater(refused, 300)


if __name__ == "__main__":
    unittest.main()
