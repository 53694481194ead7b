"""Memory of a large checkpoint: what loading 2 GB of BF16 weights costs, and what is refused (takes minutes and 2.3 GB of disk)."""

import json
import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

BINARY = os.environ["MILLRACE"]
MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16",
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}


def tensor_shapes(config):
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", [vocab, hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [hidden]
        yield layer + "post_attention_layernorm.weight", [hidden]
        for name, shape in (("q", [q, hidden]), ("k", [kv, hidden]), ("v", [kv, hidden]), ("o", [hidden, q])):
            yield f"{layer}self_attn.{name}_proj.weight", shape
        for name, shape in (("gate", [inner, hidden]), ("up", [inner, hidden]), ("down", [hidden, inner])):
            yield f"{layer}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocab, hidden]


def random_bf16(count):
    """Random values of magnitude 2^-7 to 2^-5, as bytes."""
    data = bytearray(os.urandom(2 * count))
    data[1::2] = data[1::2].translate(bytes(0x3C | (b & 0x80) for b in range(256)))
    return data


def write_checkpoint(folder):
    header, offset = {}, 0
    for name, shape in tensor_shapes(CONFIG):
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            left = entry["data_offsets"][1] - entry["data_offsets"][0]
            while left:
                part = min(left, 64 * MIB)
                file.write(random_bf16(part // 2))
                left -= part
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return path.stat().st_size


def run_measured(*arguments):
    """Exit code, standard error and peak resident bytes of one run."""
    process = subprocess.Popen([BINARY, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, error, usage.ru_maxrss * 1024


class LargeCheckpoint(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.size = write_checkpoint(cls.folder)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_peak_memory_is_the_file_and_the_kv_and_little_more(self):
        code, error, peak = run_measured("run", str(self.folder), "--ids", ",".join("5" * 200), "-n", "4",
                                         "--ignore-eos", "--kv-memory", "128M")
        self.assertEqual(code, 0, error)
        print(f"file {self.size / MIB:.0f} MiB, KV 128 MiB, peak {peak / MIB:.0f} MiB, "
              f"over by {(peak - self.size) / MIB - 128:.0f} MiB")
        self.assertLessEqual(peak, self.size + 128 * MIB + 300 * 10**6)

    def test_too_little_kv_memory_is_refused_with_the_figures(self):
        code, error, _ = run_measured("run", str(self.folder), "--ids", ",".join("5" * 200), "--kv-memory", "4M")
        self.assertEqual(code, 1)
        self.assertEqual(error.count("\n"), 1, error)
        self.assertIn("200 tokens", error)

    def test_a_model_larger_than_the_machine_is_refused_before_anything_is_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            config = dict(CONFIG, hidden_size=32768, intermediate_size=131072, num_hidden_layers=200,
                          num_attention_heads=512, num_key_value_heads=512)
            pathlib.Path(folder, "config.json").write_text(json.dumps(config))
            code, error, peak = run_measured("run", folder, "--dummy", "--ids", "1")
        self.assertEqual(code, 1)
        self.assertEqual(error.count("\n"), 1, error)
        self.assertIn("memory is available", error)
        self.assertLess(peak, 200 * MIB)


if __name__ == "__main__":
    unittest.main()
