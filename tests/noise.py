"""Random numbers of a link once more, in numpy, from the words of docs/links.md: a twin to the bit."""

from __future__ import annotations

import hashlib
import math

import numpy as np

KINDS = ("bits", "uniform", "signs", "normal")


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32 with ten rounds of counters in rows of four words."""
    a, b, c, d = (counter[:, i].astype(np.uint64) for i in range(4))
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        x, y = (np.uint64((k + turn * w) % 2**32) for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (q >> half) ^ b ^ x, q & low, (p >> half) ^ d ^ y, p & low
    return np.stack([a, b, c, d], axis=1)


def key_of(seed: int, address: str, name: str) -> tuple[int, int]:
    text = f"{seed}\0{address}\0{name}".encode()
    return tuple(
        np.frombuffer(hashlib.blake2b(text, digest_size=8, person=b"gradchain-random").digest(), "<u4").tolist()
    )


def words(key: tuple[int, int], step: int, stream: int, size: int) -> np.ndarray:
    """One word for each element."""
    many = -(-size // 4)
    counter = np.array([[i % 2**32, i >> 32, step, stream] for i in range(many)], dtype=np.uint64).reshape(many, 4)
    return philox(counter, key).reshape(-1)


def drawn(
    kind: str, seed: int, address: str, name: str, step: int, size: int, dtype: type, draw: int = 0
) -> np.ndarray:
    """The numbers of one parameter, flat."""
    key, stream = key_of(seed, address, name), 8 * draw + 2 * KINDS.index(kind)
    w, low = (words(key, step, stream + i, size) for i in range(2))
    if kind == "bits":
        return (w >> np.uint64(8)).astype(dtype)[:size]
    if kind == "signs":
        return np.where(w >> np.uint64(31) == 0, dtype(1), dtype(-1))[:size]
    if kind == "uniform" and dtype is np.float32:
        return ((w >> np.uint64(8)).astype(dtype) / dtype(2**24))[:size]
    if kind == "uniform":
        return (((w << np.uint64(21)) | (low >> np.uint64(11))).astype(dtype) / dtype(2**53))[:size]
    return _normals(w, low, dtype)[:size]


def _normals(w: np.ndarray, low: np.ndarray, dtype: type) -> np.ndarray:
    a, b = w[0::2], w[1::2]
    if dtype is np.float32:
        u = (((a >> np.uint64(1)) | np.uint64(1)).astype(dtype)) / dtype(2**31)
        x = (((b >> np.uint64(7)) & np.uint64(2**23 - 1)).astype(dtype) - dtype(2**22 - 0.5)) * dtype(
            math.pi / 2 / 2**23
        )
    else:
        fine = [((v >> np.uint64(11)).astype(dtype) + 0.5) / 2**21 for v in (low[0::2], low[1::2])]
        u = ((a >> np.uint64(1)).astype(dtype) + fine[0]) / 2**31
        x = ((b & np.uint64(2**30 - 1)).astype(dtype) - 2**29 + fine[1]) * (math.pi / 2 / 2**30)
    radius, turn = _radius(u, dtype), (b >> np.uint64(30)).astype(int)
    y, terms = x * x, range(1, 10 if dtype is np.float64 else 6)
    sine = x * (y * _horner(y, [(-1) ** k / math.factorial(2 * k + 1) for k in terms], dtype) + dtype(1))
    cosine = y * _horner(y, [(-1) ** k / math.factorial(2 * k) for k in terms], dtype) + dtype(1)
    by_turn = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)]
    pair = [np.choose(turn, [both[i] for both in by_turn]) * radius for i in range(2)]
    return np.stack(pair, axis=1).reshape(-1)


def _radius(u: np.ndarray, dtype: type) -> np.ndarray:
    """√(-2 ln u)."""
    wide = dtype is np.float64
    mantissa, exponent = np.frexp(u)
    small = mantissa < dtype(math.sqrt(0.5))
    m, e = np.where(small, mantissa * 2, mantissa), (exponent - small).astype(dtype)
    s = (m - dtype(1)) / (m + dtype(1))
    z = s * s
    series = z * _horner(z, [1 / (2 * k + 1) for k in range(1, 11 if wide else 5)], dtype) + dtype(1)
    value = (e * dtype(math.log(2)) + (s + s) * series) * dtype(-2) + dtype(1e-30)
    whole, start = (np.int64, 0x1FF7A3BEA91D9B1B) if wide else (np.int32, 0x1FBD1DF5)
    root = ((value.view(whole) >> 1) + whole(start)).view(dtype)
    for _ in range(4 if wide else 3):
        root = (root + value / root) * dtype(0.5)
    return root


def _horner(z: np.ndarray, terms: list[float], dtype: type) -> np.ndarray:
    held = np.full_like(z, dtype(terms[-1]))
    for term in reversed(terms[:-1]):
        held = held * z + dtype(term)
    return held
