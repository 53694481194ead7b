"""Rewrites a directory that transformers just saved into the form that published checkpoints have.

transformers 5 saves other keys than the ones in most config.json files on the Hub, which were written years earlier:
rope_theta and rope_scaling at the top level, torch_dtype, Gemma 3's rope_local_base_freq, and so on. A reader has to
know both forms, so the judge saves one set of weights in each. transformers itself loads the rewritten directory to give
the expected numbers, hence a mistake here shows as a difference between its two models, not as a wrong expectation.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

# Types that older checkpoints spell with the key "type"; llama3 always had "rope_type".
_TYPE_KEY = {"linear": "type", "dynamic": "type", "yarn": "type", "longrope": "type"}


def _flat_rope(config: dict) -> None:
    rope = config.pop("rope_parameters")
    kind = rope.pop("rope_type", "default")
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if "original_max_position_embeddings" in config:  # Phi-3 keeps it outside of rope_scaling
        rope.pop("original_max_position_embeddings", None)
    config["rope_scaling"] = None if kind == "default" else {_TYPE_KEY.get(kind, "rope_type"): kind} | rope


def _gemma3_rope(config: dict) -> None:
    rope = config.pop("rope_parameters")
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    full = rope["full_attention"]
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = None if full["rope_type"] == "default" else full
    config.pop("_sliding_window_pattern", None)
    pattern = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention"
               for i in range(config["num_hidden_layers"])]
    if config["layer_types"] == pattern:
        del config["layer_types"]
        config["sliding_window_pattern"] = 6


def _gemma4_heads(config: dict) -> None:
    overrides = config.pop("per_layer_config")
    # Empty where the full-attention layers have the same heads as the others.
    full = next(iter(overrides.values()), {})
    config["global_head_dim"] = full.get("head_dim", config["head_dim"])
    config["num_global_key_value_heads"] = full.get("num_key_value_heads")


def _qwen_window(config: dict) -> None:
    if not config["use_sliding_window"]:
        # Published configurations name a window even where it is switched off; it must have no effect.
        config["sliding_window"] = 8
        config["max_window_layers"] = 1
        config.pop("layer_types", None)
        return
    if "layer_types" in config:
        window = ["sliding_attention" if i >= config["max_window_layers"] else "full_attention"
                  for i in range(config["num_hidden_layers"])]
        if config["layer_types"] == window:
            del config["layer_types"]


def rewrite_config(config: dict) -> dict:
    config = json.loads(json.dumps(config))
    kind = config["model_type"]
    config["torch_dtype"] = config.pop("dtype")
    config.pop("transformers_version", None)
    if kind == "gemma3_text":
        _gemma3_rope(config)
    elif kind == "gemma4_text":
        _gemma4_heads(config)
    elif kind != "ministral3":  # newer than the change of form
        _flat_rope(config)
    if kind in ("qwen2", "qwen3", "qwen3_moe"):
        _qwen_window(config)
    if kind == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if kind == "gemma2":
        alternating = ["full_attention" if i % 2 else "sliding_attention" for i in range(config["num_hidden_layers"])]
        if config["layer_types"] == alternating:
            del config["layer_types"]
    if config.get("head_dim") in (None, config["hidden_size"] // config["num_attention_heads"]) and kind in (
            "llama", "mistral", "mixtral"):
        config.pop("head_dim", None)
    if kind == "llama" and config["num_key_value_heads"] == config["num_attention_heads"]:
        del config["num_key_value_heads"]
    if kind in ("llama", "granite"):
        for key in ("attention_bias", "mlp_bias"):
            if not config.get(key):
                config.pop(key, None)
    return config


def rewrite_mxfp4(directory: pathlib.Path, config: dict, seed: int) -> None:
    """Replaces a gpt-oss directory's expert matrices with random MXFP4 blocks: on disk [experts, rows, cols / 32, 16]
    bytes of two values each and one E8M0 scale for 32 values, transposed against the tensors that transformers holds."""
    generator = torch.Generator().manual_seed(seed)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, cols, rows = tensors.pop(name).shape
        # Bytes and exponents are drawn, not converted: every code of the format occurs.
        tensors[name + "_blocks"] = torch.randint(0, 256, (experts, rows, cols // 32, 16), generator=generator,
                                                  dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(121, 125, (experts, rows, cols // 32), generator=generator,
                                                  dtype=torch.uint8)
    save_file(tensors, path, metadata={"format": "pt"})
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                   "lm_head"],
    }


def load_mxfp4(directory: pathlib.Path, model) -> None:
    """Fills `model` from such a directory with transformers' own dequantiser (its loader would need a further package)."""
    tensors = load_file(directory / "model.safetensors")
    for name in [n.removesuffix("_blocks") for n in tensors if n.endswith("_blocks")]:
        tensors[name] = convert_moe_packed_tensors(tensors.pop(name + "_blocks"), tensors.pop(name + "_scales"))
    model.load_state_dict(tensors, strict=True)


def rewrite(directory: pathlib.Path, mxfp4: bool, seed: int) -> None:
    path = directory / "config.json"
    config = rewrite_config(json.loads(path.read_text(encoding="utf-8")))
    if mxfp4:
        rewrite_mxfp4(directory, config, seed)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
