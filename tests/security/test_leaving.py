"""What may leave a site, and nothing else."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from konvoi.errors import MessageRefused, StateError
from konvoi.security.leaving import Field, Frame, Listed

LISTED = Listed(
    (
        Frame("present", (Field("run", "u1", (16,)),), "every few seconds"),
        Frame(
            "update",
            (
                Field("base", "u1", (32,), "which weights it began with"),
                Field("samples", "u8"),
                Field("move", "f4", (40,), "how far the weights have come"),
            ),
            "once a round",
        ),
        Frame("figures", (Field("loss", "f8"), Field("accuracy", "f8"))),
    )
)
UPDATE = {"base": bytes(32), "samples": np.uint64(7), "move": np.arange(40, dtype=np.float32)}
IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)


def test_a_frame_comes_back_whole():
    data = LISTED.build("update", UPDATE)
    assert len(data) == LISTED.frame("update").size == 16 + 32 + 8 + 160
    kind, found = LISTED.read(data)
    assert kind == "update"
    assert found["samples"] == 7
    assert np.array_equal(found["move"], UPDATE["move"])


def test_frames_are_as_long_whatever_is_in_them():
    """Two sites with other data send frames of the same kinds and sizes."""
    draw = np.random.default_rng(0)
    sizes = {
        (len(LISTED.build("update", {**UPDATE, "move": scale * draw.normal(size=40).astype(np.float32)})))
        for scale in (np.float32(0), np.float32(1e-30), np.float32(1e30))
    }
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("update", UPDATE | {"image": IMAGE}),
        ("update", UPDATE | {"move": IMAGE.astype(np.float32) / 255}),
        ("figures", {"loss": 0.5, "accuracy": base64.b64encode(IMAGE.tobytes()).decode()}),
        ("update", UPDATE | {"base": zlib.compress(IMAGE.tobytes())}),
        ("error", {"message": f"ValueError: cannot read {IMAGE.tolist()}"}),
        ("figures", {"loss": 0.5, "accuracy": 0.5, "accuracy of Mueller, Anna": 1.0}),
    ],
    ids=["raw", "re-scaled", "base64", "compressed", "in an error's message", "in a metric's name"],
)
def test_six_ways_to_leak_are_each_caught(kind, values):
    with pytest.raises(MessageRefused):
        LISTED.build(kind, values)


@pytest.mark.parametrize(
    "values",
    [
        {name: value for name, value in UPDATE.items() if name != "samples"},
        UPDATE | {"move": np.full(40, np.nan, np.float32)},
        UPDATE | {"samples": 1.5},
        UPDATE | {"samples": np.uint64([7])},
    ],
    ids=["a field is missing", "not finite", "another type", "another shape"],
)
def test_what_is_not_as_listed_is_not_sent(values):
    with pytest.raises(MessageRefused):
        LISTED.build("update", values)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"upgrade".ljust(16, b"\0") + data[16:],
        lambda data: b"update\0x".ljust(16, b"\0") + data[16:],
        lambda data: data[:-4] + np.float32("inf").tobytes(),
    ],
    ids=["longer", "shorter", "empty", "another kind", "something behind the kind", "not finite"],
)
def test_bytes_that_are_not_wholly_a_listed_frame_are_refused(change):
    with pytest.raises(MessageRefused):
        LISTED.read(change(LISTED.build("update", UPDATE)))


def test_a_list_is_the_same_as_json_and_has_a_hash_of_its_own():
    assert Listed.from_json(LISTED.as_json()) == LISTED
    other = Listed((*LISTED.frames[:2], Frame("figures", (Field("loss", "f8"),))))
    assert other.hash != LISTED.hash
    assert LISTED.as_rows()[2][:5] == ("update", "base", "u1", "32", "32")


@pytest.mark.parametrize(
    "value",
    [
        [{"kind": "a", "fields": [{"name": "x", "type": "O", "shape": [], "about": ""}], "rate": ""}],
        [{"kind": "a" * 17, "fields": [], "rate": ""}],
        [{"kind": "a", "fields": [], "rate": ""}] * 2,
        [{"kind": "a", "fields": [{"name": "x", "type": "f8", "shape": [1 << 40], "about": ""}], "rate": ""}],
        [{"kind": "a", "fields": [{"name": "x", "type": "f8", "shape": [-1], "about": ""}], "rate": ""}],
        "nothing",
    ],
)
def test_what_is_no_list_is_refused(value):
    with pytest.raises(StateError):
        Listed.from_json(value)
