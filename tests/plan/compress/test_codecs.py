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
from konvoi.plan.compress.codec import Piece
from konvoi.plan.compress.low_bit import STEPS
from konvoi.plan.exchange.layout import Layout

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
    compress.largest_of(2),
    compress.largest_of(8),
    compress.largest_of(64),
    compress.frequencies(32),
    compress.frequencies(1),
    compress.power_sgd(2),
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


def largest_of_twin(codec, values):
    told, columns = [], 1024 // codec.group
    for block in blocks(values, 1024):
        full = block + [0.0] * (1024 - len(block))
        groups = [[full[row * columns + column] for row in range(codec.group)] for column in range(columns)]
        chosen = [max(range(codec.group), key=lambda row: abs(group[row])) for group in groups]
        scale = bf16(sum(abs(group[row]) for group, row in zip(groups, chosen, strict=True)) / columns)
        here = [0.0] * 1024
        for column, (group, row) in enumerate(zip(groups, chosen, strict=True)):
            here[row * columns + column] = -scale if group[row] < 0 else scale
        told += here[: len(block)]
    return told


def frequencies_twin(codec, values):
    """By the definition of the cosine transform, in float64."""
    place = torch.arange(64, dtype=torch.float64)
    base = torch.cos(math.pi * (2 * place[None] + 1) * place[:, None] / 128) * math.sqrt(2 / 64)
    base[0] = math.sqrt(1 / 64)
    told = []
    for block in blocks(values, 4096):
        square = torch.tensor(block + [0.0] * (4096 - len(block)), dtype=torch.float64).view(64, 64)
        strong = torch.einsum("km,ln,mn->kl", base, base, square).flatten().tolist()
        chosen = sorted(range(4096), key=lambda n: -abs(strong[n]))[: codec.number]
        scale = bf16(sum(abs(strong[n]) for n in chosen) / codec.number)
        kept = torch.zeros(4096, dtype=torch.float64)
        for n in chosen:
            kept[n] = -scale if strong[n] < 0 else scale
        told += torch.einsum("km,ln,kl->mn", base, base, kept.view(64, 64)).flatten().tolist()[: len(block)]
    return told


def power_sgd_twin(codec, values):
    """Algorithm 1 of the paper twice over, with Gram and Schmidt's columns."""
    told, rest = [], list(values)
    for piece in codec.pieces:
        own, rest = rest[: piece.length], rest[piece.length :]
        is_more = 2 * codec.rank * (piece.rows + piece.width) >= 4 * piece.length
        if is_more or codec.rank >= min(piece.rows, piece.width):
            told += own
            continue
        matrix = torch.tensor([0.0] * piece.before + own + [0.0] * piece.behind, dtype=torch.float64)
        matrix = matrix.view(piece.rows, piece.width)
        random = torch.Generator().manual_seed(piece.width)
        right = torch.randn(piece.width, codec.rank, generator=random, dtype=torch.float64)
        for _ in range(2):
            columns = []
            for column in (matrix @ right).T:
                for other in columns:
                    column = column - (column @ other) * other
                columns.append(column / column.norm())
            left = torch.stack(columns, dim=1)
            right = matrix.T @ left
        product = left.bfloat16().double() @ right.bfloat16().double().T
        told += product.flatten()[piece.before : piece.before + piece.length].tolist()
    return told + rest


TWINS = {
    "Plain": none_twin,
    "Int8": int8_twin,
    "LowBit": low_bit_twin,
    "TopK": top_k_twin,
    "LargestOf": largest_of_twin,
    "Frequencies": frequencies_twin,
    "PowerSGD": power_sgd_twin,
}


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


def is_sparse(codec):
    return any(name in str(codec) for name in ("TopK", "LargestOf"))


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_and_large_and_small_values_stay_what_they_are(codec, dtype):
    for scale in (0.0, 1e-12, 1.0, 1e12):
        values = torch.full((512,), scale, dtype=dtype)
        told = codec.decode(codec.encode(values), values)
        assert told.isfinite().all()
        if "Frequencies" in str(codec):  # an edge has many of them
            assert (told - values).norm() <= values.norm()
            continue
        kept = told[told != 0] if is_sparse(codec) else told
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


PIECES = Layout.of({"a": (100, 96), "b": (30,), "c": (8, 4, 16), "d": (3, 200)}, fragments=1, num_parts=2)


@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("part", [0, 1])
def test_matrices_that_a_part_cuts_are_factored_as_their_rows_lie(rank, part):
    start, stop = PIECES.parts(0)[part]
    codec = compress.power_sgd(rank).of(PIECES.pieces(0, (start, stop)))
    values = torch.randn(stop - start, generator=torch.Generator().manual_seed(part))
    data = codec.encode(values)
    assert len(data) == codec.num_bytes(len(values))
    told, expected = codec.decode(data, values), torch.tensor(power_sgd_twin(codec, values.tolist()))
    assert (told - expected).abs().max() < 0.02 * values.norm() / 10
    assert (told - values).norm() < values.norm()


def test_a_matrix_of_low_rank_loses_nothing_but_its_last_digits():
    random = torch.Generator().manual_seed(1)
    matrix = torch.randn(64, 3, generator=random) @ torch.randn(3, 96, generator=random)
    codec = compress.power_sgd(3).of((Piece(0, matrix.numel(), 96),))
    assert codec.num_bytes(matrix.numel()) < matrix.numel() * 4 / 20
    told = codec.decode(codec.encode(matrix.view(-1)), matrix.view(-1))
    assert (told - matrix.view(-1)).norm() < 0.01 * matrix.norm()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1, max_size=64))
def test_factors_that_no_encoder_made_are_refused_or_finite(data):
    codec, like = compress.power_sgd(2).of(PIECES.pieces(0, PIECES.parts(0)[0])), torch.zeros(PIECES.parts(0)[0][1])
    size = codec.num_bytes(len(like))
    with contextlib.suppress(MessageRefused):
        assert codec.decode((data * size)[:size], like).isfinite().all()


def test_frequencies_whose_sum_is_no_number_are_refused():
    codec, like = compress.frequencies(16), torch.zeros(4096)
    largest = b"\x7f\x7f"
    data = largest + b"".join(place.to_bytes(2, "little") for place in range(16)) + bytes(2)
    with pytest.raises(MessageRefused, match="not finite"):
        codec.decode(data, like)


def test_values_that_cannot_be_are_refused():
    for make in (
        lambda: compress.low_bit(3),
        lambda: compress.low_bit(4, block=12),
        lambda: compress.int8(block=100),
        lambda: compress.top_k(1.5),
        lambda: compress.largest_of(12),
        lambda: compress.frequencies(0),
        lambda: compress.power_sgd(0),
    ):
        with pytest.raises(PlanError):
            make()
