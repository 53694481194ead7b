"""Writes tests/fixtures/quant: what the `gguf` package decodes from blocks of every number format.

For each format NAME.bin has some blocks, then the float32 values that they stand for. hashes.txt has a line
"NAME BLOCKS HASH" each for a larger set of blocks, which the test makes again from the same generator: HASH is FNV-1a of
64 bits over the bytes of the values.

    python quant_fixtures.py [--output DIR]
"""

import argparse
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Format: offsets of the half-precision scales in a block. They are kept finite; all other bytes may be anything.
SCALES = {
    "f32": [], "f16": [0], "bf16": [], "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_nl": [0], "iq4_xs": [0],
    "mxfp4": [],
}
# Zeros of both signs, the smallest and largest subnormal, the smallest normal, one, the largest.
EDGE_SCALES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]
EDGE_EXPONENTS = [0, 1, 2, 126, 127, 128, 253, 254]
FIXTURE_BYTES = 8000
HASHED_VALUES = 1 << 19


def random_bytes(seed: int, count: int) -> np.ndarray:
    """SplitMix64, eight little-endian bytes a step."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, (count + 7) // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z.view(np.uint8)[:count].copy()


def random_blocks(name: str, seed: int, count: int) -> np.ndarray:
    """Blocks of random bytes with finite scales: of an infinite one the highest bit of the exponent is cleared."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]][1]
    blocks = random_bytes(seed, size * count).reshape(count, size)
    for offset in SCALES[name]:
        high = blocks[:, offset + 1]
        high[(high & 0x7C) == 0x7C] &= 0xBF
    if name == "mxfp4":
        blocks[:, 0][blocks[:, 0] == 255] = 254
    return blocks


def set_edges(name: str, blocks: np.ndarray) -> None:
    """The first blocks get the extreme scales, a second scale of a block in the opposite order."""
    for i, offset in enumerate(SCALES[name]):
        edges = np.array(EDGE_SCALES[::-1] if i else EDGE_SCALES, dtype="<u2").view(np.uint8).reshape(-1, 2)
        edges = edges[: len(blocks)]
        blocks[: len(edges), offset:offset + 2] = edges
    if name == "mxfp4":
        blocks[: len(EDGE_EXPONENTS), 0] = EDGE_EXPONENTS


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "tests/fixtures/quant")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    hashes = []
    for index, name in enumerate(SCALES):
        kind = GGMLQuantizationType[name.upper()]
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = random_blocks(name, 1000 + index, FIXTURE_BYTES // (size + 4 * elements))
        set_edges(name, blocks)
        values = dequantize(blocks, kind).astype("<f4", copy=False)
        (output / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())
        count = HASHED_VALUES // elements
        values = dequantize(random_blocks(name, index, count), kind).astype("<f4", copy=False)
        hashes.append(f"{name} {count} {fnv1a(values.tobytes()):016x}\n")
    (output / "hashes.txt").write_text("".join(hashes), encoding="utf-8")


if __name__ == "__main__":
    main()
