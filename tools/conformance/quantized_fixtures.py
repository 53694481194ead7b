"""Writes tests/fixtures/quantized: one-layer checkpoints that are small enough for the repository.

Each has what it means beside it: dequantized.safetensors holds MODULE.weight in float32 for every quantised layer.
"""

import pathlib
import shutil
from collections.abc import Callable

import torch
from safetensors.torch import save_file

from families import Case
from quantized_base import Scheme
from quantized_compressed import CompressedTensors, Group, activations
from quantized_float import Fp8
from quantized_gptq import Awq, Gptq
from quantized_layouts import Layout, Written, write

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "quantized"
MOST_BYTES, MOST_BYTES_OF_ALL = 60_000, 600_000

# Two groups of 32 inputs, but for the layers that are only 32 wide.
_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
# Sizes of its own where the layout lets have any: 36 rows do not fill their second block, 24 not their first.
_SIZES = {
    "fp8_block": {"head_dim": 36, "intermediate_size": 24},
    "ct_int8": {"intermediate_size": 24},
    "ct_fp8_channel": {"intermediate_size": 24},
    "ct_nvfp4": {"intermediate_size": 16},
}


def _ct(group: Group) -> CompressedTensors:
    return CompressedTensors((group,))


SCHEMES: dict[str, Scheme] = {
    "gptq_sym": Gptq(group=32),
    "gptq_act_order": Gptq(group=32, sym=False, order="own"),
    "awq": Awq(group=32),
    "fp8_block": Fp8((32, 32)),
    "ct_int8": _ct(Group("int-quantized", 8, "channel", activations=activations(8, "int", "token", True))),
    "ct_fp8_channel": _ct(Group("float-quantized", 8, "channel", activations=activations(8, "float", "token", True))),
    "ct_int4_asym": _ct(Group("pack-quantized", 4, "group", 32, symmetric=False)),
    "ct_nvfp4": _ct(
        Group(
            "nvfp4-pack-quantized",
            4,
            "tensor_group",
            16,
            scale_type="torch.float8_e4m3fn",
            activations=activations(4, "float", "tensor_group", "local", 16),
        )
    ),
}


def write_all(problems_of: Callable[[Layout, Written], list[str]]) -> int:
    total = 0
    for name, scheme in SCHEMES.items():
        case = Case(name, "LlamaConfig", _TINY | _SIZES.get(name, {}), 8)
        layout = Layout(name, scheme, (case,))
        directory = FIXTURES / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        written = write(layout, layout.case(case), directory)
        if problems := problems_of(layout, written):
            raise SystemExit("\n".join(problems))
        dense = {f"{module}.weight": torch.from_numpy(weight) for module, weight in written.dense.items()}
        save_file(dense, directory / "dequantized.safetensors")
        (directory / "generation_config.json").unlink(missing_ok=True)
        sizes = {}
        for path in directory.iterdir():
            path.chmod(0o644)
            sizes[path.name] = path.stat().st_size
            if sizes[path.name] > MOST_BYTES:
                raise SystemExit(f"{path} has {sizes[path.name]} bytes")
        print(f"{name}: {', '.join(f'{file} {size}' for file, size in sorted(sizes.items()))}")
        total += sum(sizes.values())
    print(f"{total} bytes")
    return 0 if total <= MOST_BYTES_OF_ALL else 1
