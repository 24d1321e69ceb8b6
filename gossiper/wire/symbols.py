"""A column of small numbers as few bits, without a loop over its entries.

Each symbol is replaced by its rank (the most frequent one is 0), and a rank is a Rice code: its low ``rice`` bits as
they are, in bit planes of their own, and the rest in unary, as many zeros and a one. For columns whose frequencies fall
roughly by half from one symbol to the next, as those of heartbeats do, that lies within a few per cent of the entropy;
and both directions are a few operations on whole columns, which no arithmetic coder is. Source: Rice, "Some Practical
Universal Noiseless Coding Techniques" (1979).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gossiper.core.columns import Symbols

#: Low bits that a rank may have: beyond, one byte per entry is no longer.
RICE_MAX: Final = 4
_SYMBOLS: Final = 256
#: Bits of each rank, for each number of low bits.
_COSTS: Final = np.stack([(np.arange(_SYMBOLS) >> rice) + 1 + rice for rice in range(RICE_MAX + 1)])
_RANKS: Final = np.arange(_SYMBOLS, dtype=np.int64)


def pack(symbols: Symbols) -> tuple[bytes, int, bytes]:
    """(alphabet, rice, bits) of a column with at least one entry; see ``CompactDigests`` in the proto file."""
    counts = np.bincount(symbols, minlength=_SYMBOLS)
    present = counts.nonzero()[0]
    frequencies = counts[present]
    order = (-frequencies).argsort(kind="stable")
    alphabet = present[order].astype(np.uint8)
    size = len(alphabet)
    if size == 1:
        return alphabet.tobytes(), 0, b""
    costs = _COSTS[:, :size].dot(frequencies[order]).tolist()
    total = min(costs)
    rice = costs.index(total)
    if total + 8 * size >= 8 * len(symbols):
        return b"", 0, symbols.tobytes()
    rank_of = np.empty(_SYMBOLS, dtype=np.int64)
    rank_of[alphabet] = _RANKS[:size]
    ranks = rank_of.take(symbols)
    count = len(symbols)
    stream = np.zeros(total, dtype=np.uint8)
    if rice:
        for plane in range(rice):
            stream[plane * count : (plane + 1) * count] = ranks >> plane & 1
        ranks >>= rice
    ranks += 1
    ranks[0] += rice * count - 1
    stream[ranks.cumsum()] = 1
    return alphabet.tobytes(), rice, np.packbits(stream).tobytes()


def unpack(alphabet: bytes, rice: int, bits: bytes, count: int) -> Symbols:
    """The column of ``count`` symbols (at least one).

    Raises:
        ValueError: these are not the bytes of such a column. (``pack`` gives a column one form of several possible.)
    """
    if not alphabet:
        if rice or len(bits) != count:
            raise ValueError(f"{len(bits)} bytes for {count} symbols")
        return np.frombuffer(bits, dtype=np.uint8)
    symbols = np.frombuffer(alphabet, dtype=np.uint8)
    size = len(symbols)
    if len(set(alphabet)) != size:
        raise ValueError("a symbol stands twice in the alphabet")
    if size == 1:
        if rice or bits:
            raise ValueError("bits for a column of one symbol")
        return np.repeat(symbols, count)
    if rice > RICE_MAX or len(bits) > count:
        raise ValueError(f"{len(bits)} bytes with {rice} low bits for {count} symbols")
    stream = np.unpackbits(np.frombuffer(bits, dtype=np.uint8))
    # As booleans, the ones are found twice as fast.
    ends = stream[rice * count :].view(np.bool_).nonzero()[0]
    if len(ends) != count or len(stream) - rice * count - int(ends[-1]) > 8:
        raise ValueError(f"the bits of {count} symbols do not end where they should")
    ranks = ends.copy()
    ranks[1:] -= ends[:-1]
    ranks[1:] -= 1
    if rice:
        ranks <<= rice
        for plane in range(rice):
            ranks += stream[plane * count : (plane + 1) * count].astype(np.int64) << plane
    if int(ranks.max()) >= size:
        raise ValueError(f"rank {int(ranks.max())} in an alphabet of {size}")
    column: Symbols = symbols[ranks]
    return column
