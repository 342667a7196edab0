"""Whatever comes from another machine or from a disk is what an encoder has made, or is refused by an error of ours."""

import asyncio
import contextlib
import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from konvoi.errors import KonvoiError
from konvoi.fleet.wire.lanes import ABOUT, DATA, GET, Fetching, Lane
from konvoi.plan import compress
from konvoi.plan.compress.codec import Piece
from konvoi.plan.exchange.chunks import Chunks, assemble
from konvoi.plan.sync import frames, swaps
from konvoi.plan.sync.messages import Decided, Decision, Offer, State, Update
from konvoi.plan.sync.state import Durable
from konvoi.security.invitation import Invitation

FIRST = Decision.first(("a", "b"), ("a", "b"), 8)
UPDATE = Update("a", 0, 8, 8.0, ("0" * 32, "1" * 32), "2" * 32)
LIKE = torch.linspace(-1, 1, 700)
HASH = bytes(range(16))
INVITATION = {
    field.name: {"desks": ["127.0.0.1:1"], "overrides": ["steps=4"], "expires": 1e9}.get(field.name, "home")
    for field in dataclasses.fields(Invitation)
}


def codec(one):
    def decode(data):
        assert one.decode(data, LIKE).isfinite().all()

    return decode


def lane(data):
    """A peer's pieces of what was asked for."""
    fetching, one = Fetching(1 << 20), Lane("peer")
    fetching.opened(one)
    got = []
    fetching.begin("peer", HASH, got.append)
    with contextlib.suppress(KonvoiError):
        fetching.take(one, data) if len(data) >= DATA.size else None
    fetching.gone(one, data[:16])
    assert all(found is None or isinstance(found, bytes) for found in got)


def request(data):
    """Of a peer, for a range of what is held here."""
    one = Lane("peer")
    if len(data) == GET.size:  # others are refused before
        asyncio.run(Fetching(1 << 20).give(one, data, {HASH.hex(): bytes(100)}.get))
    while one._out.qsize():
        _, _, frame = one._out.get_nowait()
        assert frame[:1] == b"N" or len(frame) <= 1 + DATA.size + 100


def brought(data):
    """What a peer's message is about, in front of it."""
    fetching, one = Fetching(1 << 20), Lane("peer")
    got = []
    message = fetching.bring(one, data, is_here=True)
    fetching.begin("peer", HASH, got.append)
    assert data.endswith(message)
    assert len(message) + sum(map(len, got)) <= len(data)
    assert data.endswith(fetching.bring(one, data, is_here=False))
    fetching.begin("peer", HASH, got.append)


def state(data):
    names = [f"{place:032x}" for place in range(0, len(data), 64)]
    pieces = dict(zip(names, (data[place : place + 64] for place in range(0, len(data), 64)), strict=True))
    vectors = assemble(names, pieces, [torch.zeros(16)] * 2)
    assert all(vector.isfinite().all() for vector in vectors)


CODECS = (
    *map(compress.low_bit, (1, 2, 4)),
    compress.int8(),
    compress.none(),
    compress.top_k(0.1),
    compress.largest_of(8),
    compress.frequencies(64),
    compress.power_sgd(2).of((Piece(20, 600, 30), Piece(0, 100, 100))),
)
DECODERS = {  # a function of bytes, and bytes that it takes
    "messages": (frames.decode, frames.encode(Offer(1, UPDATE))),
    "decisions": (frames.decode, frames.encode(Decided(FIRST))),
    "states": (frames.decode, frames.encode(State(FIRST, ("3" * 32,) * 3))),
    "swaps": (frames.decode_swap, frames.encode_swap(swaps.Swap(("a", 0, 1), "0" * 32))),
    "loans": (frames.decode_swap, frames.encode_swap(swaps.Lent(7, "0" * 32))),
    "notes": (frames.decode_durable, frames.encode_durable(Durable(FIRST, 3, None))),
    "invitations": (lambda data: Invitation.read(data.decode("utf-8", "replace")), json.dumps(INVITATION).encode()),
    "pieces on a lane": (lane, DATA.pack(HASH, 0, 100) + bytes(100)),
    "requests on a lane": (request, GET.pack(HASH, 0, 100)),
    "what a message is about": (brought, ABOUT.pack(HASH, 100) + bytes(100) + b"message"),
    "pieces of a state": (state, b"".join(map(Chunks([LIKE[:16]] * 2).find, Chunks([LIKE[:16]] * 2).names))),
    **{f"{one}": (codec(one), one.encode(LIKE)) for one in CODECS},
}


@pytest.mark.parametrize("name", DECODERS)
def test_what_an_encoder_has_made_is_taken(name):
    decode, sound = DECODERS[name]
    decode(sound)


def damaged(sound):
    """Anything at all; or what is sound, with some bytes replaced, taken out or put in."""
    place = st.integers(0, len(sound))
    change = st.tuples(place, st.integers(0, 8), st.binary(max_size=8))
    edits = st.lists(change, max_size=6)

    def edited(changes):
        data = sound
        for at, removed, put in changes:
            data = data[:at] + put + data[at + removed :]
        return data

    return st.one_of(st.binary(max_size=2 * len(sound)), edits.map(edited))


def fuzz(name, num_inputs):
    decode, sound = DECODERS[name]

    @settings(max_examples=num_inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(sound))
    def run(data):
        with contextlib.suppress(KonvoiError):
            decode(data)

    run()


@pytest.mark.parametrize("name", DECODERS)
def test_what_nobody_has_encoded_is_refused_or_harmless(name):
    fuzz(name, 100)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_inputs_to_each_decoder_are_refused_or_harmless():
    with ProcessPoolExecutor() as pool:
        list(pool.map(fuzz, DECODERS, [100_000] * len(DECODERS)))
