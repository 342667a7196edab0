"""How fast a core turns updates into what is sent, and back.

    python benchmarks/codecs.py --json        about a minute

Ten million float32 values of a normal distribution, in four parts as four
islands have them, on one thread: gigabytes of values a second. `_left_out` is the share of their energy that one
message lacks, and `_bits` what a value takes. `power_sgd` works on matrices of 1024 columns.
"""

from __future__ import annotations

import time
from typing import Any

import _harness
from _harness import Figure, Options, Result, spread

PARTS, SIZE, QUICK = 4, 2_560_000, 256_000
WIDTH = 1024


def codecs() -> dict[str, Any]:
    from konvoi.plan import compress
    from konvoi.plan.compress.codec import Piece

    def matrix(size: int) -> Any:
        return compress.power_sgd(4).of((Piece(0, size, WIDTH),))

    fixed = {
        "none": compress.none(),
        "int8": compress.int8(),
        "four_bit": compress.four_bit(),
        "two_bit": compress.low_bit(2),
        "one_bit": compress.low_bit(1),
        "largest_of_8": compress.largest_of(8),
        "largest_of_32": compress.largest_of(32),
        "top_k_3_percent": compress.top_k(0.03),
        "frequencies_32": compress.frequencies(32),
    }
    return {name: lambda size, one=one: one for name, one in fixed.items()} | {"power_sgd_4": matrix}


KEYS = ("int8_encode", "int8_decode", "one_bit_encode", "one_bit_decode", "four_bit_encode", "power_sgd_4_encode")


def measure(options: Options) -> Result:
    import torch

    torch.set_num_threads(1)
    size = QUICK if options.quick else SIZE
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(number)) for number in range(PARTS)]
    num_bytes = PARTS * size * 4
    rates: dict[str, list[float]] = {}
    figures: dict[str, Figure] = {"unit": "GB/s", "num_values": PARTS * size}
    made = {name: make(size) for name, make in codecs().items()}
    for number in range(options.rounds or (2 if options.quick else 7)):
        for name, codec in made.items():
            begin = time.perf_counter()
            encoded = [codec.encode(part) for part in parts]
            middle = time.perf_counter()
            decoded = [codec.decode(data, part) for data, part in zip(encoded, parts, strict=True)]
            end = time.perf_counter()
            if number:  # the first one takes memory
                rates.setdefault(f"{name}_encode", []).append(num_bytes / (middle - begin) / 1e9)
                rates.setdefault(f"{name}_decode", []).append(num_bytes / (end - middle) / 1e9)
            energy = sum(float(part.square().sum()) for part in parts)
            lacking = sum(float((part - told).square().sum()) for part, told in zip(parts, decoded, strict=True))
            figures[f"{name}_left_out"] = lacking / energy
            figures[f"{name}_bits"] = 8 * sum(map(len, encoded)) / (PARTS * size)
        _harness.say(f"round {number + 1}")
    for name, values in rates.items():
        figures |= spread(name, values)
    return Result(figures, rates)


if __name__ == "__main__":
    _harness.main("codecs", KEYS, measure)
