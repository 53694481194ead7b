"""Writes a GGUF twin of a Hugging Face directory, following the conventions of llama.cpp's converter.

The PyPI package gguf gives the file format, the metadata keys and the table of tensor names; what the converter does to
weights is done again here, in our own words: query and key rows reordered for interleaved rotary pairs, Gemma's norms
plus one, experts stacked, gpt-oss's interleaved gate and up apart and its MXFP4 blocks in ggml's order.
"""

import json
import math
import pathlib
import re

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

ARCHITECTURES = {
    "llama": "LLAMA", "mistral": "LLAMA", "mixtral": "LLAMA", "ministral3": "MISTRAL3", "qwen2": "QWEN2",
    "qwen3": "QWEN3", "qwen3_moe": "QWEN3MOE", "gemma2": "GEMMA2", "gemma3_text": "GEMMA3", "gemma4_text": "GEMMA4",
    "phi3": "PHI3", "olmo2": "OLMO2", "smollm3": "SMOLLM3", "glm": "CHATGLM", "glm4": "GLM4", "granite": "GRANITE",
    "gpt_oss": "GPT_OSS",
}
PERMUTED = {"llama", "mistral", "mixtral", "ministral3", "smollm3", "granite"}
NORMS_PLUS_ONE = {"gemma2", "gemma3_text"}
QUANTIZED = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16,
             "BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def inexpressible(config: dict) -> str:
    """Why a configuration has no GGUF twin; empty where it has one."""
    kind = config["model_type"]
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    types = set(config.get("layer_types") or ["full_attention"])
    if full.get("rope_type") == "dynamic":
        return "dynamic rope has no key"
    if full.get("rope_type") == "llama3":
        return "llama3 rope is stored as rounded divisors"
    if full.get("rope_type") == "longrope" and kind != "phi3":
        return "longrope factors exist for phi3 only"
    if full.get("rope_type") == "yarn" and kind not in ("ministral3", "gpt_oss") and (
            "mscale" in full or full.get("truncate") is False):
        return "yarn's mscale and truncate have no key"
    if kind in ("mistral", "mixtral", "ministral3") and config.get("sliding_window"):
        return "the converter drops the window"
    if kind in ("qwen2", "qwen3", "qwen3_moe", "smollm3") and "sliding_attention" in types:
        return "the converter drops the window"
    if kind == "qwen3_moe" and not config["norm_topk_prob"]:
        return "norm_topk_prob has no key"
    if kind == "qwen3_moe" and (config["mlp_only_layers"] or config["decoder_sparse_step"] != 1):
        return "all layers must have experts"
    if kind == "gemma2" and (config["attn_logit_softcapping"] is None or not config["tie_word_embeddings"]):
        return "the converter demands soft caps and a tied head"
    if kind in ("gemma2", "gemma3_text") and config["query_pre_attn_scalar"] != config["head_dim"]:
        return "query_pre_attn_scalar has no key"
    if kind == "gemma3_text" and config.get("attn_logit_softcapping"):
        return "the converter refuses attention soft caps"
    if kind == "smollm3" and any(bool(flag) != bool((i + 1) % 4) for i, flag in enumerate(config["no_rope_layers"])):
        return "no_rope_layers has no key"
    if kind in ("granite", "glm", "phi3") and config.get(
            "head_dim", config["hidden_size"] // config["num_attention_heads"]) * config["num_attention_heads"] != \
            config["hidden_size"]:
        return "the converter takes hidden / heads for the head's size"
    if kind == "gpt_oss" and config["swiglu_limit"] != 7.0:
        return "swiglu_limit has no key"
    return ""


def read_directory(directory: pathlib.Path) -> tuple[dict, dict[str, torch.Tensor]]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return config, tensors


def interleave_rows(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Within each head: row i of the first half, then row i of the second half, for all i."""
    half = tensor.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    return tensor[torch.tensor(order)]


def split_gate_up(tensors: dict[str, torch.Tensor]) -> None:
    """gpt-oss: transposes experts into [experts, rows, columns] and separates gate (even rows) from up (odd rows)."""
    for name in [n for n in tensors if ".mlp.experts." in n]:
        tensor = tensors.pop(name)
        base = name[:name.index("gate_up_proj")] if "gate_up_proj" in name else name[:name.index("down_proj")]
        if name.endswith(("_blocks", "_scales")):
            tensors[name] = tensor  # handled in pairs by mxfp4()
        elif name.endswith("gate_up_proj_bias"):
            tensors[base + "gate_proj.bias"], tensors[base + "up_proj.bias"] = tensor[:, ::2], tensor[:, 1::2]
        elif name.endswith("down_proj_bias"):
            tensors[base + "down_proj.bias"] = tensor
        elif name.endswith("gate_up_proj"):
            rows = tensor.transpose(1, 2)
            tensors[base + "gate_proj.weight"], tensors[base + "up_proj.weight"] = rows[:, ::2], rows[:, 1::2]
        else:
            tensors[base + "down_proj.weight"] = tensor.transpose(1, 2)


def stack_experts(tensors: dict[str, torch.Tensor]) -> None:
    """One tensor [experts, rows, columns] instead of one for each expert."""
    pattern = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    groups: dict[str, dict[int, torch.Tensor]] = {}
    for name in list(tensors):
        if match := pattern.fullmatch(name):
            base = match[1].replace("block_sparse_moe", "mlp")
            groups.setdefault(f"{base}.{names.get(match[3], match[3])}.weight", {})[int(match[2])] = tensors.pop(name)
    for name, experts in groups.items():
        tensors[name] = torch.stack([experts[i] for i in range(len(experts))])


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """[experts, rows, blocks, 16] bytes of neighbours, low half first, and scales -> rows of ggml blocks: a scale, then
    bytes of elements i (low half) and i + 16 (high half)."""
    elements = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    packed = elements[..., :16] | (elements[..., 16:] << 4)
    return torch.cat([scales.unsqueeze(-1), packed], dim=-1).flatten(-2).numpy()


class Twin:
    def __init__(self, directory: pathlib.Path, target: pathlib.Path, weights: str):
        self.config, self.tensors = read_directory(directory)
        self.kind = self.config["model_type"]
        self.type = QUANTIZED[weights]
        self.arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[self.kind])
        self.out = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[self.arch])
        self.names = gguf.get_tensor_name_map(self.arch, self.config["num_hidden_layers"])
        rope = self.config.get("rope_parameters") or {}
        self.rope = rope.get("full_attention", rope)
        self.sliding_rope = rope.get("sliding_attention", {})

    def write(self) -> None:
        self.sizes()
        self.rotary()
        self.special()
        self.weights()
        self.out.write_header_to_file()
        self.out.write_kv_data_to_file()
        self.out.write_tensors_to_file()
        self.out.close()

    def sizes(self) -> None:
        config, out = self.config, self.out
        out.add_block_count(config["num_hidden_layers"])
        out.add_context_length(config["max_position_embeddings"])
        out.add_embedding_length(config["hidden_size"])
        out.add_feed_forward_length(config["intermediate_size"])
        out.add_head_count(config["num_attention_heads"])
        if self.kind != "gemma4_text":
            out.add_head_count_kv(config["num_key_value_heads"])
        out.add_layer_norm_rms_eps(config["rms_norm_eps"])
        if config.get("head_dim") is not None and self.kind not in ("granite", "glm", "phi3", "gemma4_text"):
            out.add_key_length(config["head_dim"])
            out.add_value_length(config["head_dim"])
        if experts := config.get("num_local_experts") or config.get("num_experts"):
            out.add_expert_count(experts)
            out.add_expert_used_count(config.get("num_experts_per_tok") or config["top_k_experts"])
        for key, add in (("bos_token_id", out.add_bos_token_id), ("eos_token_id", out.add_eos_token_id)):
            if config.get(key) is not None:
                add(config[key])

    def rotary(self) -> None:
        out, rope, config = self.out, self.rope, self.config
        if self.kind != "gemma2":
            out.add_rope_freq_base(rope["rope_theta"])
        if "rope_theta" in self.sliding_rope:
            out.add_rope_freq_base_swa(self.sliding_rope["rope_theta"])
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if self.kind in PERMUTED:
            out.add_rope_dimension_count(head)
        elif self.kind in ("glm", "glm4", "phi3"):
            out.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
        if rope["rope_type"] == "linear":
            out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            out.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            out.add_rope_scaling_factor(rope["factor"])
            out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            for key, add in (("attention_factor", out.add_rope_scaling_yarn_attn_factor),
                             ("beta_fast", out.add_rope_scaling_yarn_beta_fast),
                             ("beta_slow", out.add_rope_scaling_yarn_beta_slow)):
                if rope.get(key) is not None:
                    add(rope[key])

    def special(self) -> None:
        if action := getattr(self, "special_" + self.kind, None):
            action(self.config, self.out)

    def special_ministral3(self, _config: dict, out: gguf.GGUFWriter) -> None:
        out.add_rope_scaling_yarn_log_mul(self.rope["mscale_all_dim"])
        out.add_attn_temperature_scale(self.rope["llama_4_scaling_beta"])

    def special_qwen3_moe(self, config: dict, out: gguf.GGUFWriter) -> None:
        out.add_expert_feed_forward_length(config["moe_intermediate_size"])

    def special_gemma2(self, config: dict, out: gguf.GGUFWriter) -> None:
        out.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        out.add_final_logit_softcapping(config["final_logit_softcapping"])
        out.add_sliding_window(config["sliding_window"])

    def special_gemma3_text(self, config: dict, out: gguf.GGUFWriter) -> None:
        if config.get("final_logit_softcapping"):
            out.add_final_logit_softcapping(config["final_logit_softcapping"])
        out.add_sliding_window(config["sliding_window"])

    def special_gemma4_text(self, config: dict, out: gguf.GGUFWriter) -> None:
        # transformers 5 saves the heads of full-attention layers layer by layer.
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
        full = next(iter((config.get("per_layer_config") or {}).values()), {})
        full_dim, full_kv = full.get("head_dim", config["head_dim"]), full.get("num_key_value_heads")
        shared = config["num_kv_shared_layers"]
        if full_kv is None:
            out.add_head_count_kv(config["num_key_value_heads"])
        else:
            out.add_head_count_kv([config["num_key_value_heads"] if flag else full_kv for flag in sliding])
        if config.get("final_logit_softcapping"):
            out.add_final_logit_softcapping(config["final_logit_softcapping"])
        out.add_sliding_window(config["sliding_window"])
        out.add_shared_kv_layers(shared)
        out.add_embedding_length_per_layer_input(config.get("hidden_size_per_layer_input") or 0)
        out.add_sliding_window_pattern(sliding)
        for add in (out.add_key_length, out.add_value_length, out.add_rope_dimension_count):
            add(full_dim)
        for add in (out.add_key_length_swa, out.add_value_length_swa, out.add_rope_dimension_count_swa):
            add(config["head_dim"])
        if config.get("moe_intermediate_size"):
            out.add_expert_feed_forward_length(config["moe_intermediate_size"])
        if config.get("use_double_wide_mlp"):
            own = config["num_hidden_layers"] - shared
            width = config["intermediate_size"]
            out.kv_data[0].pop(f"{out.arch}.feed_forward_length")
            out.add_feed_forward_length([width if i < own else 2 * width for i in range(config["num_hidden_layers"])])
        pairs = full_dim // 2
        rotating = int(full_dim * self.rope["partial_rotary_factor"] / 2)
        divisors = np.array([1.0] * rotating + [1e30] * (pairs - rotating), dtype=np.float32)
        out.add_tensor("rope_freqs.weight", divisors)

    def special_phi3(self, config: dict, out: gguf.GGUFWriter) -> None:
        original = config.get("original_max_position_embeddings") or self.rope["original_max_position_embeddings"]
        out.add_rope_scaling_orig_ctx_len(original)
        out.add_sliding_window(config["sliding_window"] or 0)
        if self.rope["rope_type"] == "longrope":
            scale = config["max_position_embeddings"] / original
            out.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
            for length in ("long", "short"):
                factors = np.array(self.rope[f"{length}_factor"], dtype=np.float32)
                out.add_tensor(f"rope_factors_{length}.weight", factors)

    def special_granite(self, config: dict, out: gguf.GGUFWriter) -> None:
        out.add_attention_scale(config["attention_multiplier"])
        out.add_embedding_scale(config["embedding_multiplier"])
        out.add_residual_scale(config["residual_multiplier"])
        out.add_logit_scale(config["logits_scaling"])

    def special_gpt_oss(self, config: dict, out: gguf.GGUFWriter) -> None:
        out.add_sliding_window(config["sliding_window"])
        out.add_expert_feed_forward_length(config["intermediate_size"])

    def weights(self) -> None:
        if self.kind == "gpt_oss":
            split_gate_up(self.tensors)
        stack_experts(self.tensors)
        self.blocks()
        for name, tensor in self.tensors.items():
            if self.config["tie_word_embeddings"] and name == "lm_head.weight":
                continue
            tensor = tensor.float()
            bias = name.endswith(".bias")
            if self.kind in PERMUTED and re.search(r"\.q_proj\.", name):
                tensor = interleave_rows(tensor, self.config["num_attention_heads"])
            if self.kind in PERMUTED and re.search(r"\.k_proj\.", name):
                tensor = interleave_rows(tensor, self.config["num_key_value_heads"])
            if self.kind in NORMS_PLUS_ONE and name.endswith("norm.weight"):
                tensor = tensor + 1
            kind = self.type if tensor.dim() > 1 and not bias and "router" not in name else QUANTIZED["F32"]
            if kind == QUANTIZED["Q8_0"] and tensor.shape[-1] % 32:
                kind = QUANTIZED["F16"]
            data = gguf.quantize(tensor.contiguous().numpy(), kind)
            self.out.add_tensor(self.gguf_name(name), data, raw_dtype=kind)

    def blocks(self) -> None:
        """gpt-oss's MXFP4 experts."""
        for name in [n for n in self.tensors if n.endswith("_blocks")]:
            base = name.removesuffix("_blocks")
            blocks, scales = self.tensors.pop(name), self.tensors.pop(base + "_scales")
            parts = {base + ".weight": (blocks, scales)}
            if base.endswith("gate_up_proj"):
                stem = base.removesuffix("gate_up_proj")
                parts = {stem + part + "_proj.weight": (blocks[:, offset::2], scales[:, offset::2])
                         for offset, part in enumerate(("gate", "up"))}
            for part, (block, scale) in parts.items():
                self.out.add_tensor(self.gguf_name(part), mxfp4(block, scale),
                                    raw_dtype=gguf.GGMLQuantizationType.MXFP4)

    def gguf_name(self, name: str) -> str:
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if self.kind == "gemma4_text" and layer:
            if name.endswith("router.scale"):
                return f"blk.{layer[1]}.ffn_gate_inp.scale"
            if name.endswith("router.per_expert_scale"):
                return f"blk.{layer[1]}.ffn_down_exps.scale"
        if name.endswith(("sinks", "layer_scalar", "experts.gate_up_proj", "experts.down_proj")):
            name += ".weight"
        found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"the gguf package has no name for {name}")
        return found


def write_twin(directory: pathlib.Path, target: pathlib.Path, weights: str = "F32") -> None:
    """`directory` as transformers 5 saves it; `weights`: F32, F16, BF16 or Q8_0, for matrices."""
    Twin(directory, target, weights).write()
