"""FP8 as DeepSeek, Qwen, Mistral and AutoFP8 publish it (quant_method "fp8"), and as FBGEMM does ("fbgemm_fp8").

The weight is there as it was, in E4M3, with one scale for a block of it, for a row or for all of it. The scale is
multiplied with, also where it is called weight_scale_inv.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from quantized_base import E4M3_COARSENESS, E4M3_MAX, Scheme, Tensors, from_e4m3, largest, over_cells, rounded, to_e4m3


def scaled(weight: np.ndarray, cell: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 weights and their scales, one for each cell of so many rows and columns."""
    stored, scale = rounded(largest(weight, *cell) / E4M3_MAX, dtype)
    return to_e4m3(weight / over_cells(scale, *cell, weight.shape)), stored


@dataclass(frozen=True)
class Fp8(Scheme):
    """Scales for blocks, or with `block` None one for the whole weight under the name that either of two programs has."""

    block: tuple[int, int] | None = (128, 128)
    scale_name: str = "weight_scale_inv"  # "weight_scale" as AutoFP8 and vLLM have it
    scale_dtype: torch.dtype = torch.float32
    scale_shape: tuple[int, ...] = ()  # of the only one
    static: bool = False  # scales of activations are there, too
    not_converted: tuple[str, ...] = ()  # expressions for modules that are left, whole names in the configuration

    def config(self, kept: list[str]) -> dict:
        left = sorted({"lm_head", *kept})
        common = {"quant_method": "fp8", "activation_scheme": "static" if self.static else "dynamic"}
        if self.scale_name == "weight_scale":
            return common | {"ignored_layers": left}
        if self.block is None:
            return common | {"dequantize": False, "modules_to_not_convert": left, "weight_block_size": None}
        return common | {"fmt": "e4m3", "modules_to_not_convert": left, "weight_block_size": list(self.block)}

    def leaves(self, module: str) -> bool:
        return any(re.fullmatch(expression, module) for expression in self.not_converted)

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        values, scale = scaled(weight, self.block or weight.shape, self.scale_dtype)
        if self.block is None:
            scale = scale.reshape(self.scale_shape)
        tensors = {"weight": values, self.scale_name: scale}
        if self.static:
            name = "input_scale" if self.scale_name == "weight_scale" else "activation_scale"
            tensors[name] = torch.full(self.scale_shape, 0.0625, dtype=self.scale_dtype)
        return tensors

    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        values, scale = from_e4m3(tensors["weight"]), tensors[self.scale_name].float().numpy()
        if self.block is None:
            return values * scale.reshape(())
        rows, columns = self.block
        for i, j in np.ndindex(*scale.shape):
            values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] *= scale[i, j]
        return values

    def coarseness(self, module: str) -> float:
        return E4M3_COARSENESS

    def outside(self, module: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        weight, scale = tensors["weight"], tensors[self.scale_name]
        found = {}
        # transformers works out the size of a block from the number of scales, so that all have to be full.
        if self.block is None or not any(side % block for side, block in zip(weight.shape, self.block)):
            found["transformers"] = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
        if self.block:
            converter = FP8BlockDequantizer(weight_block_size=self.block, dtype=torch.float32)
            dense = converter.process({f"{module}.weight": weight, f"{module}.weight_scale_inv": scale})
            found["compressed-tensors"] = dense[f"{module}.weight"]
        return found


@dataclass(frozen=True)
class FbgemmFp8(Scheme):
    not_converted: tuple[str, ...] = ()

    def config(self, kept: list[str]) -> dict:
        return {
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": sorted({"lm_head", *kept}),
            "quant_method": "fbgemm_fp8",
        }

    def leaves(self, module: str) -> bool:
        return any(re.fullmatch(expression, module) for expression in self.not_converted)

    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        values, scale = scaled(weight, (1, weight.shape[1]), torch.float32)
        return {"weight": values, "weight_scale": scale}

    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        return from_e4m3(tensors["weight"]) * tensors["weight_scale"].numpy()

    def coarseness(self, module: str) -> float:
        return E4M3_COARSENESS

    def outside(self, module: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """transformers' needs a GPU; the same tensors are one of the layouts of compressed-tensors."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights})
        compressor = BaseCompressor.get_value_from_registry("float-quantized")
        return {"compressed-tensors": compressor.decompress(tensors, scheme)["weight"]}
