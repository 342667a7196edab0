"""Each codec beside its slow twin: the same rule, a value at a time."""

import contextlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from konvoi.errors import MessageRefused, PlanError
from konvoi.plan import compress
from konvoi.plan.compress.low_bit import STEPS

CODECS = [
    compress.none(),
    compress.int8(),
    compress.int8(block=64),
    compress.low_bit(1),
    compress.low_bit(2),
    compress.four_bit(),
    compress.low_bit(4, block=8),
    compress.top_k(0.03),
    compress.top_k(1 / 256),
    compress.top_k(1.0),
]
VALUES = st.lists(st.floats(-1e4, 1e4, width=32), max_size=600)


def bf16(value):
    return torch.tensor(value, dtype=torch.float32).bfloat16().item()


def none_twin(codec, values):
    return values


def int8_twin(codec, values):
    told = []
    for block in blocks(values, codec.block):
        scale = f32(f32(max(abs(v) for v in block)) / 127)
        inverse = f32(1 / scale) if scale and math.isfinite(f32(1 / scale)) else 0.0
        told += [f32(round(f32(v * inverse)) * scale) for v in block]
    return told


def low_bit_twin(codec, values):
    told = []
    for block in blocks(values, codec.block):
        full = block + [0.0] * (codec.block - len(block))
        scale = bf16(math.sqrt(sum(v * v for v in full) / codec.block))
        half = 2 ** (codec.bits - 1)
        width = scale * STEPS[codec.bits]
        for v in block:
            place = min(max(math.floor(v / width), -half), half - 1) if scale else 0
            told.append((place + 0.5) * width)
    return told


def top_k_twin(codec, values):
    told = []
    for block in blocks(values, 256):
        full = block + [0.0] * (256 - len(block))
        chosen = sorted(range(256), key=lambda n: -abs(full[n]))[: codec.number]
        scale = bf16(sum(abs(full[n]) for n in chosen) / codec.number)
        told += [
            (math.copysign(scale, full[n]) if full[n] else scale) if n in chosen else 0.0 for n in range(len(block))
        ]
    return told


TWINS = {"Plain": none_twin, "Int8": int8_twin, "LowBit": low_bit_twin, "TopK": top_k_twin}


def f32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def blocks(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("length", [0, 1, 255, 256, 1000, 33_000])
def test_a_codec_does_what_its_slow_twin_does(codec, length):
    values = torch.randn(length, generator=torch.Generator().manual_seed(length + 1)) * 1e-3
    told = codec.decode(codec.encode(values), values)
    expected = torch.tensor(TWINS[type(codec).__name__](codec, values.tolist()))
    assert told.shape == values.shape
    assert told.dtype == values.dtype
    # The twin computes in float64: at an edge between two steps, or a scale's, it may fall on the other side.
    wrong = ((told - expected).abs() > 1e-2 * expected.abs() + 1e-12).sum().item()
    assert wrong <= (0 if type(codec).__name__ in ("Plain", "TopK") else 1e-3 * length)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_and_large_and_small_values_stay_what_they_are(codec, dtype):
    for scale in (0.0, 1e-12, 1.0, 1e12):
        values = torch.full((512,), scale, dtype=dtype)
        told = codec.decode(codec.encode(values), values)
        kept = told[told != 0] if "TopK" in str(codec) else told
        assert told.isfinite().all()
        assert kept.allclose(values[: len(kept)], rtol=0.5)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@settings(max_examples=50, deadline=None)
@given(values=VALUES)
def test_what_is_decoded_is_as_long_finite_and_never_farther_off_than_nothing(codec, values):
    vector = torch.tensor(values, dtype=torch.float32)
    data = codec.encode(vector)
    assert len(data) == codec.num_bytes(len(vector))
    assert data == codec.encode(vector)
    told = codec.decode(data, vector)
    assert told.isfinite().all()
    assert (told - vector).norm() <= 1.01 * vector.norm() + 1e-6


@pytest.mark.parametrize("codec", CODECS, ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600), length=st.integers(0, 600))
def test_bytes_that_no_encoder_made_are_refused_or_finite(codec, data, length):
    like = torch.zeros(length)
    try:
        told = codec.decode(data, like)
    except MessageRefused:
        return
    assert told.shape == like.shape
    assert told.isfinite().all()


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_damage_of_the_right_length_is_refused_or_finite(codec):
    like = torch.randn(700, generator=torch.Generator().manual_seed(1))
    data = codec.encode(like)
    random = torch.Generator().manual_seed(2)
    for _ in range(200):
        place = int(torch.randint(len(data), (1,), generator=random))
        damaged = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        with contextlib.suppress(MessageRefused):
            assert codec.decode(damaged, like).isfinite().all()


def test_values_that_cannot_be_are_refused():
    for make in (
        lambda: compress.low_bit(3),
        lambda: compress.low_bit(4, block=12),
        lambda: compress.int8(block=100),
        lambda: compress.top_k(1.5),
    ):
        with pytest.raises(PlanError):
            make()
