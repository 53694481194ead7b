"""GPTQ as AutoGPTQ and GPTQModel save it, AWQ as AutoAWQ does (its "gemm" version).

Both keep a weight transposed, [in, out], with integers from zero on: weight = scale * (integer - zero point). They pack
along different sides: GPTQ its weights along the inputs and its zero points along the outputs, AWQ both along the
outputs and in an interleaved order.
"""

from dataclasses import dataclass

import numpy as np
import torch

from quantized_base import (
    Scheme,
    Tensors,
    input_order,
    integer_coarseness,
    over_cells,
    pack,
    reduce_cells,
    rounded,
    siblings,
    unpack,
)


def affine(weight: np.ndarray, group: int, bits: int, sym: bool, lowest_zero: int):
    """Scales and zero points [out, groups] and integers [out, in], each group of inputs from its own extremes."""
    top = (1 << bits) - 1
    low = np.minimum(reduce_cells(weight, 1, group, np.minimum), 0)
    high = np.maximum(reduce_cells(weight, 1, group, np.maximum), 0)
    if sym:
        high = np.maximum(-low, high)
        low = -high
    stored, scale = rounded((high - low) / top, torch.float16)
    zero = np.full(scale.shape, 1 << bits - 1) if sym else np.clip(np.rint(-low / scale), lowest_zero, top)
    spread = (over_cells(grid, 1, group, weight.shape) for grid in (scale, zero))
    integers = np.clip(np.rint(weight / next(spread)) + next(spread), 0, top)
    return stored, zero.astype(np.int64), integers.astype(np.int64)


@dataclass(frozen=True)
class Gptq(Scheme):
    bits: int = 4
    group: int = 128  # -1 for a whole row
    sym: bool = True
    order: str = ""  # "", "shared" by the layers that read the same activations, or every layer its "own"
    v2: bool = False  # zero points as they are; the first format stores them minus one
    old: bool = False  # as AutoGPTQ first saved it: no name of the format, a bias of zeros everywhere

    dtypes = (torch.float16,)

    def config(self, kept: list[str]) -> dict:
        common = {
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": bool(self.order),
            "sym": self.sym,
            "quant_method": "gptq",
        }
        if self.old:
            return common | {
                "damp_percent": 0.1,
                "true_sequential": True,
                "model_name_or_path": None,
                "model_file_base_name": "model",
            }
        if self.v2:
            return common | {
                "lm_head": False,
                "checkpoint_format": "gptq_v2",
                "pack_dtype": "int32",
                "dynamic": None,
                "meta": {"quantizer": ["gptqmodel:2.2.0"], "damp_percent": 0.05, "static_groups": False},
            }
        return common | {
            "damp_percent": 0.01,
            "static_groups": False,
            "true_sequential": True,
            "model_name_or_path": None,
            "model_file_base_name": None,
            "checkpoint_format": "gptq",
        }

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        inputs = weight.shape[1]
        group = inputs if self.group == -1 else self.group
        key = module if self.order == "own" else siblings(module)
        g_idx = input_order(key, inputs, group) if self.order else np.arange(inputs, dtype=np.int32) // group
        sorting = np.argsort(g_idx, kind="stable")
        # A zero point of zero cannot be stored minus one: programs disagree on what the overflow means.
        scales, zeros, in_groups = affine(weight[:, sorting], group, self.bits, self.sym, 0 if self.v2 else 1)
        integers = np.empty_like(in_groups)
        integers[:, sorting] = in_groups
        tensors = {
            "qweight": torch.from_numpy(pack(integers, self.bits).T.copy()),
            "qzeros": torch.from_numpy(pack(zeros.T - (0 if self.v2 else 1), self.bits)),
            "scales": scales.T.contiguous(),
            "g_idx": torch.from_numpy(g_idx),
        }
        if self.old:
            tensors["bias"] = torch.zeros(weight.shape[0], dtype=dtype)
        return tensors

    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        scales = tensors["scales"].float().numpy()
        groups = tensors["g_idx"].numpy()
        weight = np.empty((len(groups), scales.shape[1]), dtype=np.float32)
        zeros = unpack(tensors["qzeros"].numpy(), self.bits, scales.shape[1]) + (0 if self.v2 else 1)
        integers = unpack(tensors["qweight"].numpy().T.copy(), self.bits, len(groups))
        for i, group in enumerate(groups):
            weight[i] = scales[group] * (integers[:, i] - zeros[group])
        return weight.T

    def coarseness(self, module: str) -> float:
        return integer_coarseness(self.bits)


@dataclass(frozen=True)
class Awq(Scheme):
    group: int = 128
    not_converted: tuple[str, ...] = ()  # parts of names

    dtypes = (torch.float16,)
    # Which of eight outputs is in a word's first, second, ... four bits; and in which of them each output is.
    PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
    SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)

    def config(self, kept: list[str]) -> dict:
        return {
            "bits": 4,
            "group_size": self.group,
            "modules_to_not_convert": list(self.not_converted) or None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }

    def _pack(self, values: np.ndarray) -> torch.Tensor:
        eights = values.reshape(len(values), -1, 8)[..., list(self.PLACES)]
        return torch.from_numpy(pack(eights.reshape(values.shape), 4))

    def _unpack(self, words: torch.Tensor) -> np.ndarray:
        values = words.numpy().view(np.uint32)[..., None] >> np.array(self.SHIFTS, dtype=np.uint32) & 15
        return values.reshape(len(words), -1).astype(np.int64)

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        scales, zeros, integers = affine(weight, self.group, 4, False, 0)
        return {
            "qweight": self._pack(integers.T),
            "qzeros": self._pack(zeros.T),
            "scales": scales.T.contiguous(),
        }

    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        integers, zeros = self._unpack(tensors["qweight"]), self._unpack(tensors["qzeros"])
        scales = tensors["scales"].float().numpy()
        group = np.arange(len(integers)) // self.group
        return (scales[group] * (integers - zeros[group]).astype(np.float32)).T

    def coarseness(self, module: str) -> float:
        return integer_coarseness(4)

    def outside(self, module: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

        names = {f"{module}.{name}": value for name, value in tensors.items() if name != "scales"}
        names[f"{module}.scales"] = tensors["scales"].float()
        converter = AutoAWQConverter.from_autoawq_config(self.config([]))
        converted = {name.removeprefix(f"{module}."): value for name, value in converter.process(names).items()}
        group = next(iter(converter.create_config().config_groups.values()))
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        return {"compressed-tensors": compressor.decompress(converted, group)["weight"]}
