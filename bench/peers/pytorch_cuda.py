#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What PyTorch reaches on a GPU with a Llama of a given shape: the peer of `millrace bench --device cuda`.

    bench/peers/pytorch_cuda.py --config config.json [--batch 1 64] [--prompt 2048] [--gen 64] [--depth 0]

Random bfloat16 weights. Decoding is one compiled layer (torch.compile) run for all layers within a CUDA graph, with
scaled_dot_product_attention over a cache of fixed length; prefill is the same layer without a graph. Also printed: the
rate of a large matrix product, and of scaled_dot_product_attention alone, as limits. One JSON document on standard
output; times are medians.
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """Norm, attention with rope and grouped queries, norm, gated feed-forward; projections that share an input fused."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["heads"], c["kv_heads"], c["head_dim"]
        hidden, inner = c["hidden"], c["intermediate"]
        linear = lambda i, o: nn.Linear(i, o, bias=False, device="cuda", dtype=torch.bfloat16)
        self.qkv = linear(hidden, (self.heads + 2 * self.kv_heads) * self.dim)
        self.out = linear(self.heads * self.dim, hidden)
        self.gate_up = linear(hidden, 2 * inner)
        self.down = linear(inner, hidden)
        self.norms = nn.ParameterList([torch.ones(hidden, device="cuda", dtype=torch.bfloat16) for _ in range(2)])

    def forward(self, x, cos, sin, keys, values, slots, mask):
        batch, length, hidden = x.shape
        qkv = self.qkv(F.rms_norm(x, (hidden,), self.norms[0])).view(batch, length, -1, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        rotate = lambda t: torch.cat((-t[..., self.dim // 2 :], t[..., : self.dim // 2]), -1)
        q, k = q * cos + rotate(q) * sin, k * cos + rotate(k) * sin
        keys.index_copy_(2, slots, k)
        values.index_copy_(2, slots, v)
        if mask is None:
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            a = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        x = x + self.out(a.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(F.rms_norm(x, (hidden,), self.norms[1])).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def median_seconds(run, repeats=7):
    """Of device time, after three warm-ups."""
    times = []
    for i in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def limits(c):
    """A matrix product of 8192 x 8192 x 8192, and attention alone at this shape."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = {"matmul_tflop_s": 2 * 8192**3 / median_seconds(lambda: a @ b) / 1e12}
    q = torch.randn(1, c["heads"], 8192, c["head_dim"], device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, c["kv_heads"], 8192, c["head_dim"], device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    found["attention_prefill_8192_tflop_s"] = 2 * c["heads"] * 8192 * 8192 * c["head_dim"] / seconds / 1e12
    q = torch.randn(64, c["heads"], 1, c["head_dim"], device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(64, c["kv_heads"], 4096, c["head_dim"], device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    found["attention_decode_64x4096_gb_s"] = 2 * k.numel() * 2 / seconds / 1e9
    return found


class Model:
    def __init__(self, c, compiled):
        self.c = c
        self.layers = [Layer(c) for _ in range(c["layers"])]
        for layer in self.layers:
            for weight in layer.parameters():
                if weight.dim() == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        self.head = nn.Linear(c["hidden"], c["vocab"], bias=False, device="cuda", dtype=torch.bfloat16)
        self.run_layer = torch.compile(lambda layer, *args: layer(*args), dynamic=False) if compiled else (
            lambda layer, *args: layer(*args))

    def caches(self, batch, length):
        shape = (batch, self.c["kv_heads"], length, self.c["head_dim"])
        return [[torch.zeros(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in self.layers]

    def step(self, x, caches, slots, mask):
        cos, sin = (torch.ones(x.shape[1], self.c["head_dim"], device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for layer, (keys, values) in zip(self.layers, caches):
            x = self.run_layer(layer, x, cos, sin, keys, values, slots, mask)
        return self.head(F.rms_norm(x[:, -1], (self.c["hidden"],)))

    @torch.no_grad()
    def decode_seconds(self, batch, depth, gen):
        """A token for each of `batch` sequences, halfway through `gen` tokens behind `depth`."""
        length = depth + gen
        caches = self.caches(batch, length)
        x = torch.randn(batch, 1, self.c["hidden"], device="cuda", dtype=torch.bfloat16)
        slots = torch.tensor([depth + gen // 2], device="cuda")
        mask = (torch.arange(length, device="cuda") <= slots).view(1, 1, 1, length)
        for _ in range(3):
            self.step(x, caches, slots, mask)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(x, caches, slots, mask)
        return median_seconds(graph.replay, 20)

    @torch.no_grad()
    def prefill_seconds(self, prompt):
        caches = self.caches(1, prompt)
        x = torch.randn(1, prompt, self.c["hidden"], device="cuda", dtype=torch.bfloat16)
        slots = torch.arange(prompt, device="cuda")
        return median_seconds(lambda: self.step(x, caches, slots, None))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--config", required=True)
    ap.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    ap.add_argument("--prompt", type=int, default=2048)
    ap.add_argument("--gen", type=int, default=64)
    ap.add_argument("--depth", type=int, default=0)
    ap.add_argument("--eager", action="store_true", help="without torch.compile")
    args = ap.parse_args()
    with open(args.config) as f:
        raw = json.load(f)
    heads = raw["num_attention_heads"]
    c = {"layers": raw["num_hidden_layers"], "hidden": raw["hidden_size"], "intermediate": raw["intermediate_size"],
         "heads": heads, "kv_heads": raw.get("num_key_value_heads", heads),
         "head_dim": raw.get("head_dim", raw["hidden_size"] // heads), "vocab": raw["vocab_size"]}
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "compiled": not args.eager,
              "limits": limits(c), "decode": {}, "prefill": {}}
    model = Model(c, not args.eager)
    for batch in args.batch:
        seconds = model.decode_seconds(batch, args.depth, args.gen)
        report["decode"][str(batch)] = {"seconds": seconds, "tokens_per_second": batch / seconds}
    if args.prompt > 0:
        seconds = model.prefill_seconds(args.prompt)
        report["prefill"][str(args.prompt)] = {"seconds": seconds, "tokens_per_second": args.prompt / seconds}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
