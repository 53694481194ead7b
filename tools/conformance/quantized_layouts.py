"""The layouts that the judge of quantised checkpoints writes, the models it writes them for, and their directories."""

import dataclasses
import json
import pathlib
import re
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import judge
import published
from families import Case
from quantized_base import Scheme
from quantized_compressed import CompressedTensors, Group, activations
from quantized_float import FbgemmFp8, Fp8
from quantized_gptq import Awq, Gptq

SEED = 5
LINEAR = re.compile(r"(model\.layers\..*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj|w[123]))\.weight")


def _sizes(hidden, layers, heads, kv_heads, intermediate, **more) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "head_dim": 64,
        "vocab_size": 96,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    } | more


LLAMA = Case("llama", "LlamaConfig", _sizes(256, 2, 4, 2, 384), 24)
QWEN2 = Case("qwen2", "Qwen2Config", _sizes(256, 2, 4, 2, 384), 24)
# No side is a multiple of a block of 128, that of the attention not even of what a packed word holds.
ODD = Case("llama_odd", "LlamaConfig", _sizes(228, 2, 3, 1, 352, head_dim=68), 24)
_EXPERTS = _sizes(128, 2, 2, 1, 128, num_experts_per_tok=2)
MIXTRAL = Case("mixtral", "MixtralConfig", _EXPERTS | {"num_local_experts": 4}, 24)
QWEN3_MOE = Case(
    "qwen3_moe",
    "Qwen3MoeConfig",
    _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 128, "norm_topk_prob": True},
    24,
)


@dataclass(frozen=True)
class Layout:
    name: str
    scheme: Scheme
    cases: tuple[Case, ...] = (LLAMA, QWEN2)

    def case(self, case: Case) -> Case:
        """The case with the type that such a checkpoint has; Qwen 2 stands for the less usual one."""
        dtype = self.scheme.dtypes[-1 if case.name == QWEN2.name else 0]
        return dataclasses.replace(case, dtype=str(dtype).removeprefix("torch."))


@dataclass
class Written:
    """A quantised directory, and what its linear layers mean."""

    directory: pathlib.Path
    tensors: dict[str, torch.Tensor]  # of the file
    plain: dict[str, torch.Tensor]  # all of the model before it was quantised
    dense: dict[str, np.ndarray] = field(default_factory=dict)  # float32 weights by module

    def of(self, module: str) -> dict[str, torch.Tensor]:
        prefix = f"{module}."
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


_TOKENS_INT8 = activations(8, "int", "token", True)
_TOKENS_FP8 = activations(8, "float", "token", True)
_NVFP4 = Group(
    "nvfp4-pack-quantized",
    4,
    "tensor_group",
    16,
    scale_type="torch.float8_e4m3fn",
    activations=activations(4, "float", "tensor_group", "local", 16),
)
_NOT_EXPERTS = ("lm_head", r"re:.*mlp.gate$")


def _ct(*groups: Group, ignore: tuple[str, ...] = ("lm_head",)) -> CompressedTensors:
    return CompressedTensors(groups, ignore)


def _packed(bits: int, group: int | None, **more) -> Group:
    return Group("pack-quantized", bits, "group" if group else "channel", group, **more)


LAYOUTS = [
    Layout("gptq", Gptq(), (LLAMA, QWEN2, MIXTRAL)),
    Layout("gptq_old", Gptq(old=True)),
    Layout("gptq_asym", Gptq(group=32, sym=False), (LLAMA, QWEN2, QWEN3_MOE)),
    Layout("gptq_act_order", Gptq(group=32, order="shared"), (LLAMA, QWEN2, MIXTRAL)),
    Layout("gptq_act_order_own", Gptq(group=32, sym=False, order="own")),
    Layout("gptq_rows", Gptq(group=-1)),
    Layout("gptq_8bit", Gptq(bits=8)),
    Layout("gptq_8bit_asym", Gptq(bits=8, sym=False)),
    Layout("gptq_2bit_asym", Gptq(bits=2, group=64, sym=False)),
    Layout("gptq_v2", Gptq(v2=True)),
    Layout("gptq_v2_asym", Gptq(group=32, sym=False, order="shared", v2=True)),
    Layout("awq", Awq()),
    Layout("awq_g32", Awq(group=32)),
    Layout("awq_experts", Awq(not_converted=("gate",)), (MIXTRAL,)),
    Layout("fp8_block", Fp8(), (LLAMA, QWEN2, ODD)),
    Layout("fp8_block_bf16", Fp8(scale_dtype=torch.bfloat16, not_converted=(r"model\.layers\.1\.mlp\.down_proj",))),
    Layout("fp8_block_experts", Fp8(), (QWEN3_MOE,)),
    Layout("fp8_tensor", Fp8(None, scale_dtype=torch.bfloat16, static=True), (LLAMA, QWEN2, ODD)),
    Layout("fp8_tensor_vllm", Fp8(None, "weight_scale"), (LLAMA, QWEN2)),
    Layout("fp8_tensor_vllm_static", Fp8(None, "weight_scale", scale_shape=(1,), static=True), (LLAMA, MIXTRAL)),
    Layout("fbgemm_fp8", FbgemmFp8((r"model\.layers\.0\..*", r".*\.self_attn\..*"))),
    Layout("ct_int8", _ct(Group("int-quantized", 8, "channel", activations=_TOKENS_INT8)), (LLAMA, QWEN2, ODD)),
    Layout(
        "ct_fp8_tensor",
        _ct(Group("float-quantized", 8, "tensor", activations=activations(8, "float", "tensor", False))),
    ),
    Layout(
        "ct_fp8_channel",
        _ct(
            Group("float-quantized", 8, "channel", activations=_TOKENS_FP8),
            ignore=("lm_head", "model.layers.1.mlp.down_proj"),
        ),
    ),
    Layout(
        "ct_fp8_block",
        _ct(
            Group(
                "float-quantized", 8, "block", block=(128, 128), activations=activations(8, "float", "group", True, 128)
            )
        ),
        (LLAMA, QWEN2, ODD),
    ),
    Layout("ct_int4", _ct(_packed(4, 128)), (LLAMA, QWEN2)),
    Layout("ct_int4_asym", _ct(_packed(4, 32, symmetric=False)), (LLAMA, QWEN2)),
    Layout("ct_int4_channel", _ct(_packed(4, None)), (LLAMA, QWEN2, ODD)),
    Layout("ct_int4_channel_asym", _ct(_packed(4, None, symmetric=False)), (LLAMA, ODD)),
    Layout("ct_int4_experts", _ct(_packed(4, 32), ignore=_NOT_EXPERTS), (QWEN3_MOE,)),
    Layout("ct_int8_packed", _ct(_packed(8, 128)), (LLAMA, QWEN2)),
    Layout("ct_int4_act_order", _ct(_packed(4, 128, actorder="group")), (LLAMA, QWEN2)),
    Layout("ct_int4_act_order_asym", _ct(_packed(4, 32, actorder="group", symmetric=False)), (LLAMA,)),
    Layout("ct_nvfp4", _ct(_NVFP4), (LLAMA, QWEN2)),
    Layout("ct_nvfp4_experts", _ct(_NVFP4, ignore=_NOT_EXPERTS), (QWEN3_MOE,)),
    Layout("ct_mxfp4", _ct(Group("mxfp4-pack-quantized", 4, "group", 32, scale_type="torch.uint8")), (LLAMA, QWEN2)),
    Layout(
        "ct_mixed_int",
        _ct(
            dataclasses.replace(_packed(4, 128), targets=("re:.*mlp.*",)),
            Group("int-quantized", 8, "channel", activations=_TOKENS_INT8, targets=("re:.*self_attn.*",)),
        ),
    ),
    Layout(
        "ct_mixed_float",
        _ct(
            Group(
                "float-quantized",
                8,
                "channel",
                activations=_TOKENS_FP8,
                targets=(r"re:.*self_attn\.(q|k|v|o)_proj$", r"re:.*layers\.1\.mlp\.(gate|up|down)_proj$"),
            ),
            dataclasses.replace(_NVFP4, targets=(r"re:.*layers\.0\.mlp\.(gate|up|down)_proj$",)),
        ),
    ),
]


def write(layout: Layout, case: Case, directory: pathlib.Path) -> Written:
    """A checkpoint with random weights as others would publish it. The case has its type from layout.case()."""
    judge.save(judge.random_model(case, SEED), case, directory)
    published.rewrite(directory, False, SEED)
    path = directory / "model.safetensors"
    plain = load_file(path)
    linears = [match[1] for name in sorted(plain) if (match := LINEAR.fullmatch(name))]
    quantized = [module for module in linears if not layout.scheme.leaves(module)]
    tensors = {name: value for name, value in plain.items() if name.removesuffix(".weight") not in quantized}
    for module in quantized:
        weight = plain[f"{module}.weight"].float().numpy()
        for name, value in layout.scheme.write(module, weight, judge.dtype_of(case)).items():
            tensors.setdefault(f"{module}.{name}", value)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    matrices = [name.removesuffix(".weight") for name, value in plain.items() if value.dim() == 2]
    kept = [module for module in matrices if module not in (*quantized, "model.embed_tokens")]
    config["quantization_config"] = layout.scheme.config(kept)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    written = Written(directory, load_file(path), plain)
    for module in quantized:
        written.dense[module] = np.ascontiguousarray(layout.scheme.read(module, written.of(module)), dtype=np.float32)
    return written


def write_dense(written: Written, directory: pathlib.Path) -> None:
    """The same model without quantisation, in float32."""
    config = json.loads((written.directory / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    config["torch_dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: value.float() for name, value in written.plain.items()}
    tensors |= {f"{module}.weight": torch.from_numpy(weight) for module, weight in written.dense.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
