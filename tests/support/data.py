"""Bytes for tests: the same for the same seed, different for different seeds."""

import hashlib
import random
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Around every boundary there is: inlined, frame, copies, stripe.
SIZES = [
    0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1,
    4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB, 64 * MIB + 12_345,
]


def make_bytes(size: int, seed: object = 0) -> bytes:
    return random.Random(f"{seed}/{size}").randbytes(size)


def make_file(path: Path, size: int, seed: object = 0) -> str:
    """Writes `size` bytes in pieces; their SHA-256."""
    rng, digest, left = random.Random(f"{seed}/{size}"), hashlib.sha256(), size
    with path.open("wb") as file:
        while left:
            piece = rng.randbytes(min(left, MIB))
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    return digest.hexdigest()


def sha256(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def base58(data: bytes) -> str:
    """As wallets and libp2p write bytes."""
    number, out = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        out = BASE58[digit] + out
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + out
