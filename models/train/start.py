# SPDX-License-Identifier: Apache-2.0
"""Initial weights with an induction circuit (Olsson et al. 2022, "In-context Learning and Induction Heads") built in.

A model of this size finds by itself only after very many tokens how to look up what followed an earlier occurrence of
the present token. Here it starts with that: on random tokens that repeat, it predicts most of them before the first step.
Nothing is fixed, but the layers that hold the circuit learn more slowly (SLOW), lest they lose it before it is of use.

  - Embeddings are random, but share one constant component (dimension 0), and leave a subspace MEMORY empty.
  - In layer 0 one query head of each group attends to the previous token: its queries and keys read only the constant
    component, and rope turns them to agree at distance one. It writes the token that it sees, as far as the subspace
    IDENTITY shows it, to MEMORY.
  - In layer 1 the queries read IDENTITY, the keys MEMORY, in the slowly turning pairs of rope: position j is attended to
    where the token before j equals the present one. What stands at j is copied (subspace COPIED) to the output.
"""
import torch

SLOW = {"layers.0.": 0.2, "layers.1.self_attn.": 0.2}  # factors of the learning rate, by part of a parameter's name
EMBEDDING_STD = 0.5
FINAL_NORM = 0.06  # keeps the first logits small, since the head is tied to the embeddings
FAST_PAIRS = 4  # of rope, that tell neighbours apart
SHARPNESS, MATCH, GAIN = 9.0, 4.0, 8.0  # the first two for heads of 32


@torch.no_grad()
def induction_start(model):
    cfg = model.cfg
    width, size = cfg.hidden_size, cfg.head_dim
    half, groups = size // 2, cfg.num_key_value_heads
    heads = cfg.num_attention_heads // groups  # query heads of a group
    rank = min(size, width // (3 * groups))  # a group's share of each of the three subspaces
    count = groups * rank
    sharper = (size / 32) ** 0.25  # on both sides of a product that attention divides by the root of the size

    basis = torch.zeros(width - 1, width)
    basis[:, 1:] = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    memory, identity, copied = basis[:count], basis[count : 2 * count], basis[-count:]

    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=EMBEDDING_STD)
    embedding[:, 0] = 0
    embedding -= embedding @ memory.t() @ memory
    embedding[:, 0] = EMBEDDING_STD * width**0.5
    model.model.norm.weight.fill_(FINAL_NORM)
    constant = (width / 2) ** 0.5  # of dimension 0 after the norm, where the rest is as large

    previous, lookup = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    turn = cfg.rope_theta ** (-torch.arange(half).float() / half)
    fast = (torch.arange(half) < FAST_PAIRS).float() * sharper * SHARPNESS / constant
    slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, size)))
    for group in range(groups):
        kv = slice(group * size, (group + 1) * size)
        held = slice(group * size, group * size + rank)  # of the values
        part = slice(group * rank, (group + 1) * rank)
        previous.k_proj.weight[kv] = 0
        previous.k_proj.weight[kv, 0] = torch.cat((fast, torch.zeros(half)))
        previous.v_proj.weight[held] = identity[part]
        mix = sharper * MATCH * torch.linalg.qr(torch.randn(rank, half))[0].t()
        lookup.k_proj.weight[kv] = 0
        lookup.k_proj.weight[group * size + slow] = mix @ memory[part]
        lookup.v_proj.weight[held] = copied[part]
        for head in range(heads):
            first = (group * heads + head) * size
            q, used = slice(first, first + size), slice(first, first + rank)
            distance = (head + 1) * turn
            previous.q_proj.weight[q] = 0
            previous.q_proj.weight[q, 0] = torch.cat((fast * distance.cos(), -fast * distance.sin()))
            previous.o_proj.weight[:, q] = 0
            if head == 0:
                previous.o_proj.weight[:, used] = memory[part].t() * 0.8 * EMBEDDING_STD * 2**0.5
            lookup.q_proj.weight[q] = 0
            lookup.q_proj.weight[first + slow] = mix @ identity[part]
            lookup.o_proj.weight[:, q] = 0
            lookup.o_proj.weight[:, used] = copied[part].t() * GAIN / heads * EMBEDDING_STD * 2**0.5


@torch.no_grad()
def start_from(model, weights):
    """Takes over the weights of a trained model, whose feed-forward networks may be narrower: further neurons keep what they
    have, so that a part of each tensor is what was learnt."""
    own = dict(model.named_parameters())
    if own.keys() != weights.keys():
        raise ValueError("the models do not have the same tensors")
    for name, tensor in weights.items():
        wider = all(have >= given for have, given in zip(own[name].shape, tensor.shape, strict=True))
        if not wider or (own[name].shape != tensor.shape and ".mlp." not in name):
            raise ValueError(f"{name}: {list(tensor.shape)} does not fit into {list(own[name].shape)}")
        own[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
