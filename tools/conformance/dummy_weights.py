"""Deterministic weights from tensor names: the same values that `millrace --dummy` uses.

Element i of a tensor (its row-major index in the shape that transformers' `model.state_dict()` has) is drawn from
Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) with counter i / 4 and the FNV-1a hash of the tensor's name as key.
A weight is therefore a function of its name and index alone, and a fixture needs no weight file: a config.json is
enough to rebuild the whole model, in C++ and here.

The scale of a matrix is a power of two, so that multiplying is exact and both sides agree to the bit. It is chosen
from the number of columns such that activations keep about their size from layer to layer.

`python dummy_weights.py` runs the self-test.
"""

import numpy as np

FNV_OFFSET = 14695981039346656037
FNV_PRIME = 1099511628211
MASK32 = np.uint64(0xFFFFFFFF)


def fnv1a_64(name: str) -> int:
    value = FNV_OFFSET
    for byte in name.encode("utf-8"):
        value = ((value ^ byte) * FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return value


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """counter: uint32 [n, 4]; key: two 32-bit words; returns uint32 [n, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = int(key[0]), int(key[1])
    shift = np.uint64(32)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> shift) ^ c[1] ^ np.uint64(k0),
            p1 & MASK32,
            (p0 >> shift) ^ c[3] ^ np.uint64(k1),
            p0 & MASK32,
        ]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def unit_values(name: str, count: int) -> np.ndarray:
    """float32 [count], multiples of 2^-23 in [-1, 1)."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = np.zeros((len(blocks), 4), dtype=np.uint32)
    counter[:, 0] = (blocks & MASK32).astype(np.uint32)
    counter[:, 1] = (blocks >> np.uint64(32)).astype(np.uint32)
    key = fnv1a_64(name)
    words = philox4x32_10(counter, (key & 0xFFFFFFFF, key >> 32)).reshape(-1)[:count]
    return ((words >> np.uint32(8)).astype(np.float32) - np.float32(2**23)) * np.float32(2.0**-23)


def dummy_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of `shape`; the caller rounds to a narrower type where the checkpoint's dtype is one."""
    count = int(np.prod(shape, dtype=np.int64))
    x = unit_values(name, count)
    if len(shape) >= 2:
        # floor(log2(sqrt(n))) == floor(log2(n)) // 2, without the rounding of a square root.
        exponent = 1 - (int(shape[-1]).bit_length() - 1) // 2
        x = x * np.float32(2.0**exponent)
    elif name.endswith("layer_scalar") or (len(shape) == 1 and "norm" in name):
        x = np.float32(1) + x * np.float32(0.125)
    else:
        x = x * np.float32(0.25)
    return x.reshape(shape)


def fill(model, dtype) -> None:
    """Overwrites every tensor of the model's state_dict with its dummy value rounded to `dtype`, in place.

    Tied tensors are one storage under two names; the embedding's name is the one that counts.
    """
    import torch

    seen = set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            values = torch.from_numpy(dummy_array(name, tuple(tensor.shape)))
            tensor.copy_(values.to(dtype).to(tensor.dtype))


def self_test() -> None:
    # Known answers published with Random123 (kat_vectors), philox4x32 with 10 rounds.
    known = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in known:
        got = philox4x32_10(np.array([counter], dtype=np.uint32), key)[0]
        assert tuple(int(v) for v in got) == expected, (counter, [hex(int(v)) for v in got])
    # FNV-1a of the empty string is the offset basis; of "a" a published test value.
    assert fnv1a_64("") == FNV_OFFSET
    assert fnv1a_64("a") == 0xAF63DC4C8601EC8C
    matrix = dummy_array("m", (5, 64))
    assert matrix.dtype == np.float32 and np.abs(matrix).max() <= 0.25 and np.abs(matrix).max() > 0.24
    assert np.array_equal(matrix.reshape(-1)[:7], dummy_array("m", (7, 64)).reshape(-1)[:7])
    print("dummy weights: self-test passed; first four of 'model.norm.weight':",
          [float(v) for v in dummy_array("model.norm.weight", (4,))])


if __name__ == "__main__":
    self_test()
