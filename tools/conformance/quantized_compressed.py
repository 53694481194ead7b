"""compressed-tensors, as llm-compressor writes it: one or several groups of layers, each with a format of its own."""

import contextlib
import io
import pathlib
import re
from dataclasses import dataclass

import numpy as np
import torch

from quantized_base import (
    E2M1_COARSENESS,
    E2M1_MAX,
    E4M3_COARSENESS,
    E4M3_MAX,
    MXFP4_COARSENESS,
    Scheme,
    Tensors,
    from_e2m1,
    from_e4m3,
    input_order,
    integer_coarseness,
    largest,
    over_cells,
    pack,
    reduce_cells,
    rounded,
    siblings,
    to_e2m1,
    to_e4m3,
    unpack,
)

INTEGERS = ("int-quantized", "pack-quantized")


def activations(bits: int, kind: str, strategy: str, dynamic: bool | str, group: int | None = None) -> dict:
    """input_activations, which a reader of weights has to pass over."""
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": group,
        "num_bits": bits,
        "observer": None if dynamic is True else "static_minmax",
        "observer_kwargs": {},
        "scale_dtype": "torch.float8_e4m3fn" if bits == 4 else None,
        "strategy": strategy,
        "symmetric": True,
        "type": kind,
        "zp_dtype": None,
    }


@dataclass(frozen=True)
class Group:
    """One entry of config_groups."""

    format: str
    bits: int
    strategy: str
    group: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    actorder: str | None = None
    scale_type: str | None = None  # named in the configuration where the format fixes it
    activations: dict | None = None
    targets: tuple[str, ...] = ("Linear",)

    def config(self) -> dict:
        weights = {
            "actorder": self.actorder,
            "block_structure": list(self.block) if self.block else None,
            "dynamic": False,
            "group_size": self.group,
            "num_bits": self.bits,
            "observer": "minmax",
            "observer_kwargs": {},
            "scale_dtype": self.scale_type,
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "type": "int" if self.format in INTEGERS else "float",
            "zp_dtype": None if self.symmetric else "torch.int8",
        }
        return {
            "format": self.format,
            "input_activations": self.activations,
            "output_activations": None,
            "targets": list(self.targets),
            "weights": weights,
        }

    def cell(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many rows and columns share a scale."""
        by_strategy = {"tensor": shape, "channel": (1, shape[1]), "block": self.block}
        return by_strategy.get(self.strategy, (1, self.group))

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        tensors = self._write_weight(module, weight, dtype)
        if self.activations and self.activations["dynamic"] is False:
            tensors["input_scale"] = torch.full((1,), 0.0625, dtype=dtype)
        if self.activations and self.activations["dynamic"] == "local":
            tensors["input_global_scale"] = torch.tensor([384.0], dtype=torch.float32)
        return tensors

    def _write_weight(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        if self.format == "nvfp4-pack-quantized":
            return self._write_nvfp4(weight)
        if self.format == "mxfp4-pack-quantized":
            exponent = np.floor(np.log2(largest(weight, 1, self.group))) - 2
            return {
                "weight_packed": _bytes(to_e2m1(weight / over_cells(np.exp2(exponent), 1, self.group, weight.shape))),
                "weight_scale": torch.from_numpy((exponent + 127).astype(np.uint8)),
            }
        if self.format == "float-quantized":
            stored, scale = rounded(largest(weight, *self.cell(weight.shape)) / E4M3_MAX, dtype)
            values = to_e4m3(weight / over_cells(scale, *self.cell(weight.shape), weight.shape))
            return {"weight": values, "weight_scale": stored.reshape(1) if self.strategy == "tensor" else stored}
        return self._write_integers(module, weight, dtype)

    def _write_nvfp4(self, weight: np.ndarray) -> Tensors:
        overall = np.float32(E2M1_MAX * E4M3_MAX) / np.abs(weight).max()
        stored = to_e4m3(largest(weight, 1, self.group) / E2M1_MAX * overall)
        scale = from_e4m3(stored) / overall
        return {
            "weight_packed": _bytes(to_e2m1(weight / over_cells(scale, 1, self.group, weight.shape))),
            "weight_scale": stored,
            "weight_global_scale": torch.tensor([overall], dtype=torch.float32),
        }

    def _write_integers(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        half, cell = 1 << self.bits - 1, self.cell(weight.shape)
        ordered = self.actorder == "group"
        g_idx = input_order(siblings(module), weight.shape[1], self.group) if ordered else np.arange(weight.shape[1])
        sorting = np.argsort(g_idx, kind="stable")
        grouped = weight[:, sorting]
        if self.symmetric:
            stored, scale = rounded(largest(grouped, *cell) / (half - 0.5), dtype)
            zero = np.zeros_like(scale)
        else:
            low = np.minimum(reduce_cells(grouped, *cell, np.minimum), 0)
            high = np.maximum(reduce_cells(grouped, *cell, np.maximum), 0)
            stored, scale = rounded((high - low) / (2 * half - 1), dtype)
            zero = np.clip(np.rint(-low / scale) - half, -half, half - 1)
        scales, zeros = (over_cells(grid, *cell, weight.shape) for grid in (scale, zero))
        integers = np.empty(weight.shape, dtype=np.int64)
        integers[:, sorting] = np.clip(np.rint(grouped / scales) + zeros, -half, half - 1)
        if self.format == "int-quantized":
            assert self.symmetric, "zero points that are not packed are not written here"
            return {"weight": torch.from_numpy(integers.astype(np.int8)), "weight_scale": stored}
        tensors = {
            "weight_packed": torch.from_numpy(pack(integers + half, self.bits)),
            "weight_scale": stored,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not self.symmetric:
            tensors["weight_zero_point"] = torch.from_numpy(pack(zero.T.astype(np.int64) + half, self.bits).T.copy())
        if ordered:
            tensors["weight_g_idx"] = torch.from_numpy(g_idx)
        return tensors

    def coarseness(self) -> float:
        floats = {"float-quantized": E4M3_COARSENESS, "nvfp4-pack-quantized": E2M1_COARSENESS}
        floats["mxfp4-pack-quantized"] = MXFP4_COARSENESS
        return floats.get(self.format) or integer_coarseness(self.bits)

    def read(self, tensors: Tensors) -> np.ndarray:
        if "weight_packed" not in tensors:
            stored = tensors["weight"]
            values = stored.numpy().astype(np.float32) if stored.dtype == torch.int8 else from_e4m3(stored)
            return values * self._scales(tensors, values.shape)
        if self.format in INTEGERS:
            shape = tuple(tensors["weight_shape"].tolist())
            half = 1 << self.bits - 1
            values = unpack(tensors["weight_packed"].numpy(), self.bits, shape[1]) - half
            if not self.symmetric:
                zeros = unpack(tensors["weight_zero_point"].numpy().T.copy(), self.bits, shape[0]).T - half
                values -= zeros[:, self._columns(tensors, shape)]
            return values.astype(np.float32) * self._scales(tensors, shape)
        packed = tensors["weight_packed"].numpy()
        values = np.empty((packed.shape[0], packed.shape[1] * 2), dtype=np.float32)
        values[:, 0::2], values[:, 1::2] = from_e2m1(packed & 15), from_e2m1(packed >> 4)
        return values * self._scales(tensors, values.shape)

    def _scales(self, tensors: Tensors, shape: tuple[int, ...]) -> np.ndarray:
        """The scale of each weight."""
        stored = tensors["weight_scale"]
        if stored.dtype == torch.uint8:
            scale = np.ldexp(np.float32(1), stored.numpy().astype(np.int32) - 127)
        elif stored.dtype == torch.float8_e4m3fn:
            scale = from_e4m3(stored) / tensors["weight_global_scale"].numpy()
        else:
            scale = stored.float().numpy()
        if self.strategy == "tensor":
            return np.broadcast_to(scale, shape)
        rows = np.arange(shape[0]) // self.cell(shape)[0]
        return scale[rows[:, None], self._columns(tensors, shape)]

    def _columns(self, tensors: Tensors, shape: tuple[int, ...]) -> np.ndarray:
        """The column of a scale's grid that each input has."""
        if "weight_g_idx" in tensors:
            return tensors["weight_g_idx"].numpy()
        return np.arange(shape[1]) // self.cell(shape)[1]


def _bytes(codes: np.ndarray) -> torch.Tensor:
    """Two four-bit codes a byte, the first one low."""
    return torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)


@dataclass(frozen=True)
class CompressedTensors(Scheme):
    groups: tuple[Group, ...] = ()
    ignore: tuple[str, ...] = ("lm_head",)

    dtypes = (torch.bfloat16, torch.float32)

    def config(self, kept: list[str]) -> dict:
        formats = {group.format for group in self.groups}
        return {
            "config_groups": {f"group_{i}": group.config() for i, group in enumerate(self.groups)},
            "format": "mixed-precision" if len(formats) > 1 else self.groups[0].format,
            "global_compression_ratio": None,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": "0.13.0",
        }

    def leaves(self, module: str) -> bool:
        return any(_matches(entry, module) for entry in self.ignore)

    def _group(self, module: str) -> Group:
        return next(group for group in self.groups if any(_matches(target, module) for target in group.targets))

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        return self._group(module).write(module, weight, dtype)

    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        return self._group(module).read(tensors)

    def coarseness(self, module: str) -> float:
        return self._group(module).coarseness()

    def outside(self, module: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        group = self._group(module)
        # The package computes in the type of the scale; of a scale of 16 bits it would only show a rounded weight.
        wide = {n: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for n, t in tensors.items()}
        scheme = QuantizationScheme.model_validate(group.config())
        if group.strategy == "block":  # its compressor guesses the size of a block from the number of scales
            return {"compressed-tensors": dequantize(wide["weight"], wide["weight_scale"], args=scheme.weights)}
        compressor = BaseCompressor.get_value_from_registry(group.format)
        return {"compressed-tensors": compressor.decompress(wide, scheme)["weight"]}

    def loaded(self, directory: pathlib.Path) -> dict[str, torch.Tensor] | None:
        """The package's way from the configuration on, which checks names and targets, too."""
        from transformers import AutoModelForCausalLM

        # Its empty modules have zero points that are not packed and its blocks have to fit: no way for these.
        if any(not group.symmetric or group.block for group in self.groups):
            return None
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
            model.hf_quantizer.compressor.decompress_model(model)
        return {name.removesuffix(".weight"): value for name, value in model.state_dict().items()}


def _matches(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), module) is not None
    return entry in ("Linear", module)
