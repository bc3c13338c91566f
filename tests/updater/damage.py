"""Ways in which the bytes of a file come to be others."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]


def flip(whole: bytes, rng: random.Random) -> bytes:
    """One bit."""
    at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
    return whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


def byte(whole: bytes, rng: random.Random) -> bytes:
    """One byte."""
    at = rng.randrange(len(whole))
    return whole[:at] + bytes([(whole[at] + rng.randrange(1, 256)) % 256]) + whole[at + 1 :]


def cut(whole: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return whole[: rng.randrange(len(whole))]


def beheaded(whole: bytes, rng: random.Random) -> bytes:
    """The beginning is missing."""
    return whole[rng.randrange(1, len(whole)) :]


def hole(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes are missing."""
    at = rng.randrange(len(whole) - 1)
    return whole[:at] + whole[at + rng.randrange(1, min(600, len(whole) - at)) :]


def inserted(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes more, at the end too."""
    at = rng.randrange(len(whole) + 1)
    return whole[:at] + rng.randbytes(rng.randrange(1, 80)) + whole[at:]


def zeroed(whole: bytes, rng: random.Random) -> bytes:
    """A block of zeros, as a disk leaves it; other bytes where there were zeros already."""
    at, size = rng.randrange(len(whole)), rng.choice((1, 16, 512))
    filled = whole[:at] + bytes(len(whole[at : at + size])) + whole[at + size :]
    return filled if filled != whole else whole[:at] + b"\xff" * len(whole[at : at + size]) + whole[at + size :]


def swapped(whole: bytes, rng: random.Random) -> bytes:
    """Two blocks in each other's place."""
    size = rng.choice((1, 4, 64, 512))
    while True:
        a, b = sorted(rng.sample(range(len(whole) // size), 2))
        one, other = whole[a * size : (a + 1) * size], whole[b * size : (b + 1) * size]
        if one != other:
            return whole[: a * size] + other + whole[(a + 1) * size : b * size] + one + whole[(b + 1) * size :]
        size = rng.choice((1, 4, 64, 512))


def repeated(whole: bytes, rng: random.Random) -> bytes:
    """A block twice, or the whole file."""
    at = rng.randrange(len(whole))
    return whole[:at] + whole[at:] * 2 if rng.random() < 0.5 else whole * 2


def joined(whole: bytes, rng: random.Random) -> bytes:
    """The end of another file of the same length."""
    at = rng.randrange(len(whole) - 1)
    return whole[:at] + rng.randbytes(len(whole) - at)


DAMAGES: tuple[Damage, ...] = (
    flip, byte, cut, beheaded, hole, inserted, zeroed, swapped, repeated, joined,
)  # fmt: skip


def rewritten(whole: bytes, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of the same parts, each as `edit` makes it of its name and bytes, with checksums that are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as parts, zipfile.ZipFile(out, "w", compression) as archive:
        for part in parts.infolist():
            archive.writestr(part.filename, edit(part.filename, parts.read(part)))
    return out.getvalue()


def reheaded(whole: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """A file of safetensors with another header, as `edit` leaves it, and a seal that is right."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    edit(header)
    header["__metadata__"]["gradchain.seal"] = "0" * 64
    made = json.dumps(header, separators=(",", ":")).encode()
    made = len(made).to_bytes(8, "little") + made + whole[end:]
    seal = hashlib.blake2b(made, digest_size=32).hexdigest().encode()
    return made.replace(b'"gradchain.seal":"' + b"0" * 64, b'"gradchain.seal":"' + seal, 1)
