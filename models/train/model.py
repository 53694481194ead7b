# SPDX-License-Identifier: Apache-2.0
"""A compact Llama: parameter names and conventions of Hugging Face's LlamaForCausalLM."""
import json
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"  # or relu2, the square of ReLU: most neurons are then exact zeros

    def to_dict(self):
        return asdict(self)

    @classmethod
    def of_folder(cls, folder):
        """The configuration of an exported model."""
        with open(f"{folder}/config.json", encoding="utf-8") as f:
            values = json.load(f)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


# Widths of `small` are multiples of 256, so that every block size of the number formats divides them. Its rope is that of
# `tiny` for twice the context: pairs that turn by so much over 2,048 tokens do so over 4,096.
CONFIGS = {
    "tiny": Config(),
    "tiny-relu2": Config(intermediate_size=512, hidden_act="relu2"),
    "small": Config(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        rope_theta=2000000.0,
    ),
}


def linear(x, weight):
    """The product in the type of x: parameters stay float32 where the rest is computed in BF16."""
    return F.linear(x, weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_tables(cfg):
    """cos and sin by position and element, [seq, head_dim]; the first half of sin is negative, as apply_rope wants it."""
    inv = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2).double() / cfg.head_dim)
    angle = torch.outer(torch.arange(cfg.max_position_embeddings).double(), inv)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x, cos, sin):
    """x: [batch, seq, heads, head_dim]; element i turns together with i + head_dim / 2."""
    return torch.addcmul(x * cos[:, None, :], x.roll(x.shape[-1] // 2, dims=-1), sin[:, None, :])


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.h, self.kv, self.d = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        self.q_proj = nn.Linear(cfg.hidden_size, self.h * self.d, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, self.kv * self.d, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, self.kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.h * self.d, cfg.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        # One product for the three projections: faster than three narrow ones.
        w = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qk, v = linear(x, w).view(b, t, self.h + 2 * self.kv, self.d).split((self.h + self.kv, self.kv), dim=2)
        q, k = apply_rope(qk, cos, sin).split((self.h, self.kv), dim=2)
        # In BF16 there are kernels that read the keys and values of a group where they are; for float32 they are repeated.
        grouped = x.dtype == torch.bfloat16
        if not grouped:
            k, v = (s.repeat_interleave(self.h // self.kv, dim=2) for s in (k, v))
        q, k, v = (s.transpose(1, 2) for s in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return linear(y.transpose(1, 2).reshape(b, t, self.h * self.d), self.o_proj.weight)


class MLP(nn.Module):
    """The gated feed-forward network.

    In training with relu2, `spread` and `density` tell of the last forward: mean of ReLU(gate) over the root mean square of
    gate, which falls as fewer neurons fire and not as gates grow smaller; share of the neurons that fired.
    """

    def __init__(self, cfg):
        super().__init__()
        self.relu2 = cfg.hidden_act == "relu2"
        self.spread = self.density = None
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x):
        gate, up = linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, dim=-1)
        if not self.relu2:
            return linear(F.silu(gate) * up, self.down_proj.weight)
        positive = F.relu(gate)
        if self.training:
            self.spread = positive.mean() / gate.square().mean().sqrt()
            self.density = (positive > 0).float().mean().detach()
        return linear(positive.square() * up, self.down_proj.weight)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.self_attn = Attention(cfg)
        self.mlp = MLP(cfg)
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)


class Llama(nn.Module):
    def __init__(self, cfg, compute=torch.float32):
        """compute: the type of all activations. Parameters are float32 in any case."""
        super().__init__()
        self.cfg, self.compute = cfg, compute
        self.model = Backbone(cfg)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self):
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        for block in self.model.layers:  # branches start small
            for proj in (block.self_attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(proj.weight, std=0.02 / (2 * self.cfg.num_hidden_layers) ** 0.5)

    def hidden(self, ids):
        """Hidden states after the last norm: [batch, seq, hidden]."""
        t = ids.shape[1]
        cos, sin = self.cos[:t].to(self.compute), self.sin[:t].to(self.compute)
        x = self.model.embed_tokens(ids).to(self.compute)
        for block in self.model.layers:
            x = block(x, cos, sin)
        return self.model.norm(x)

    def forward(self, ids):
        return self.head(self.hidden(ids))

    def head(self, hidden):
        return linear(hidden, self.model.embed_tokens.weight)  # tied

    def parameter_count(self):
        return sum(p.numel() for p in self.parameters())
