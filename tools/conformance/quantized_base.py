"""What every published layout of quantised weights is made of: packed words, small floats, grids of scales.

Writing and reading go different ways on purpose. A writer spreads values into bits and looks numbers up in a table; a
reader shifts and masks whole words and computes a number from its exponent and mantissa. A slip in one of the two is
then a difference between them, not an agreement on something wrong.
"""

import pathlib
import zlib
from abc import ABC, abstractmethod

import numpy as np
import torch

# Names of one module's tensors, such as "qweight" or "weight_scale".
Tensors = dict[str, torch.Tensor]

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=np.float32)
E2M1_MAX = 6.0
E4M3_MAX = 448.0
# See Scheme.coarseness. The highest four-bit floats are 4 and 6; what an exponent alone scales may reach 8.
E4M3_COARSENESS, E2M1_COARSENESS, MXFP4_COARSENESS = 0.04, 0.2, 0.35


class Scheme(ABC):
    """A way to store the weight of a linear layer, and its meaning."""

    # Types that a published checkpoint of this kind has for whatever is not quantised.
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)

    @abstractmethod
    def config(self, kept: list[str]) -> dict:
        """quantization_config of a model with these matrices as they were, embeddings aside."""

    @abstractmethod
    def write(self, module: str, weight: np.ndarray, dtype: torch.dtype) -> Tensors:
        """The tensors of float32 [out, in] in a model whose other weights have type `dtype`."""

    @abstractmethod
    def read(self, module: str, tensors: Tensors) -> np.ndarray:
        """float32 [out, in] from the definition of the layout."""

    def outside(self, module: str, tensors: Tensors) -> dict[str, torch.Tensor]:
        """What other people's programs make of the same tensors, by their names."""
        return {}

    def loaded(self, directory: pathlib.Path) -> dict[str, torch.Tensor] | None:
        """The weights that somebody else's program loads from the whole directory, by module; experts may be missing."""
        return None

    @abstractmethod
    def coarseness(self, module: str) -> float:
        """How far a weight may be from what was to be written, as a share of the largest: a bit over half a step."""

    def leaves(self, module: str) -> bool:
        """Whether this linear layer stays as it is."""
        return False


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers of `bits` bits as a dense stream of bits along the last axis, the lowest first; int32 words."""
    assert values.min() >= 0 and values.max() < 1 << bits
    spread = ((values.astype(np.int64)[..., None] >> np.arange(bits)) & 1).astype(np.uint8)
    spread = spread.reshape(*values.shape[:-1], values.shape[-1] * bits)
    padding = -spread.shape[-1] % 32
    spread = np.pad(spread, [(0, 0)] * (spread.ndim - 1) + [(0, padding)])
    return np.packbits(spread, axis=-1, bitorder="little").view("<i4")


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """int64 [..., count] from int32 words."""
    wide = words.view(np.uint32).astype(np.uint64)
    wide = np.concatenate([wide, np.zeros_like(wide[..., :1])], axis=-1)
    first = np.arange(count) * bits
    pair = wide[..., first // 32] | wide[..., first // 32 + 1] << np.uint64(32)
    return (pair >> (first % 32).astype(np.uint64) & np.uint64((1 << bits) - 1)).astype(np.int64)


def to_e2m1(values: np.ndarray) -> np.ndarray:
    """Codes of the nearest four-bit floats; minus zero occurs."""
    magnitude = np.abs(np.abs(values)[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    return magnitude | np.signbit(values).astype(np.uint8) << 3


def from_e2m1(codes: np.ndarray) -> np.ndarray:
    exponent, mantissa = (codes >> 1 & 3).astype(np.int32), (codes & 1).astype(np.float32)
    magnitude = np.where(exponent == 0, mantissa / 2, np.ldexp(1 + mantissa / 2, exponent - 1))
    return np.where(codes & 8, -magnitude, magnitude).astype(np.float32)


def to_e4m3(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.clip(values, -E4M3_MAX, E4M3_MAX).astype(np.float32)).to(torch.float8_e4m3fn)


def from_e4m3(values: torch.Tensor) -> np.ndarray:
    codes = values.view(torch.uint8).numpy()
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    magnitude = np.ldexp(np.where(exponent == 0, mantissa / 8, 1 + mantissa / 8), np.maximum(exponent, 1) - 7)
    magnitude = np.where(codes & 127 == 127, np.nan, magnitude)
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


def reduce_cells(weight: np.ndarray, rows: int, columns: int, what: np.ufunc) -> np.ndarray:
    """One value for each cell of rows x columns weights; the last cells may be smaller."""
    by_row = what.reduceat(weight, np.arange(0, weight.shape[0], rows), axis=0)
    return what.reduceat(by_row, np.arange(0, weight.shape[1], columns), axis=1)


def integer_coarseness(bits: int) -> float:
    return 1.25 / ((1 << bits) - 1)


def largest(weight: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return reduce_cells(np.abs(weight), rows, columns, np.maximum)


def over_cells(grid: np.ndarray, rows: int, columns: int, shape: tuple[int, ...]) -> np.ndarray:
    """The value of its cell for each weight."""
    return grid.repeat(rows, axis=0)[: shape[0]].repeat(columns, axis=1)[:, : shape[1]]


def rounded(scale: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """A scale as it is stored and its value, so that weights are rounded with what a reader will see."""
    stored = torch.from_numpy(np.ascontiguousarray(scale, dtype=np.float32)).to(dtype)
    return stored, stored.float().numpy()


def input_order(key: str, size: int, group: int) -> np.ndarray:
    """int32 [size]: a random group for each input, all groups full; the same for the same key."""
    order = np.random.default_rng(zlib.crc32(key.encode())).permutation(size)
    groups = np.empty(size, dtype=np.int32)
    groups[order] = np.arange(size) // group
    return groups


def siblings(module: str) -> str:
    """One name for the linear layers that read the same activations."""
    parent, _, name = module.rpartition(".")
    for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3")):
        if name in names:
            return f"{parent}.{names[0]}"
    return module
