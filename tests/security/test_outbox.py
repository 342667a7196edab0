"""What has left a site is written down before it leaves, and cannot be rewritten unnoticed."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest

from konvoi.errors import StateError
from konvoi.security.outbox import Outbox, as_rows, read, summary


def fill(path, number=5):
    outbox = Outbox(path, clock=lambda: 1_700_000_000.0)
    for one in range(number):
        outbox.record("server", "xrays", "ab" * 32, "update", ("move", "samples"), b"x" * (one + 1))
    outbox.close()
    return path


def test_what_leaves_is_there_with_its_size_and_hash(tmp_path):
    entries = [*read(fill(tmp_path / "outbox.jsonl"))]
    assert [one.size for one in entries] == [1, 2, 3, 4, 5]
    assert entries[2].hash == hashlib.sha256(b"xxx").hexdigest()
    assert entries[2].fields == ("move", "samples")
    assert summary(entries) == {"xrays": {"update": {"frames": 5, "bytes": 15}}}
    assert as_rows(entries)[1][4:6] == ("move, samples", "1")


def test_a_second_process_goes_on_with_the_chain(tmp_path):
    path = fill(fill(tmp_path / "outbox.jsonl"))
    assert [one.number for one in read(path)] == list(range(10))


def test_who_was_killed_while_writing_had_sent_nothing(tmp_path):
    path = fill(tmp_path / "outbox.jsonl")
    path.write_text(path.read_text() + '{"number": 5, "at":')
    assert [one.number for one in read(fill(path, 1))] == list(range(6))


def test_nothing_may_be_sent_that_cannot_be_written_down(tmp_path, monkeypatch):
    path = fill(tmp_path / "outbox.jsonl", 2)
    before, outbox, write = path.read_bytes(), Outbox(path), os.write

    def full(descriptor, data):
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:-10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StateError, match="nothing leaves") as raised:
            outbox.record("server", "xrays", "ab" * 32, "update", ("move",), b"x")
    assert "No space left" in raised.value.found
    assert path.read_bytes() == before
    outbox.record("server", "xrays", "ab" * 32, "update", ("move",), b"y")  # there is room again
    outbox.close()
    assert [one.number for one in read(path)] == [0, 1, 2]


def _change(lines):
    one = json.loads(lines[2])
    return [*lines[:2], json.dumps({**one, "size": one["size"] - 1}, sort_keys=True), *lines[3:]]


@pytest.mark.parametrize(
    "tamper",
    [
        _change,
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines[:3], "no JSON", *lines[3:]],
        lambda lines: [*lines[:3], lines[3].replace(" ", ""), *lines[4:]],
    ],
    ids=["changed", "deleted", "first gone", "reordered", "doubled", "no json", "rewritten"],
)
def test_a_log_that_was_changed_is_not_believed(tmp_path, tamper):
    path = fill(tmp_path / "outbox.jsonl")
    path.write_text("".join(f"{line}\n" for line in tamper(path.read_text().splitlines())))
    with pytest.raises(StateError, match="outbox"):
        [*read(path)]
    with pytest.raises(StateError, match="outbox"):
        Outbox(path)
