"""A log's line is there whole, or not at all, whatever the disk takes of it and whoever is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os

import pytest

from konvoi import lines


def takes_little(monkeypatch, *, then):
    """A disk that takes three bytes of what it is given next; then all, or nothing more."""
    real, asked = os.write, []

    def write(descriptor, data):
        asked.append(data)
        if len(asked) == 1:
            return real(descriptor, data[:3])
        if then == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(lines.os, "write", write)
    return asked


def test_what_the_disk_takes_in_pieces_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "log"
    with monkeypatch.context() as patch:
        assert takes_little(patch, then="more") == []
        lines.append(path, b"a first line")
    lines.append(path, b"a second")
    assert lines.since(path) == [b"a first line", b"a second"]
    assert lines.since(path, 13) == [b"a second"]


def test_nothing_stays_of_a_line_for_which_there_was_no_room(tmp_path, monkeypatch):
    path = tmp_path / "log"
    lines.append(path, b"a first line")
    with monkeypatch.context() as patch:
        asked = takes_little(patch, then="full")
        with pytest.raises(OSError, match="No space"):
            lines.append(path, b"a second")
        assert len(asked) == 2
    assert path.read_bytes() == b"a first line\n"
    lines.append(path, b"a third")
    assert lines.since(path) == [b"a first line", b"a third"]


def test_nothing_stays_of_a_line_that_may_not_be_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "log"

    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lines.os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output"):
            lines.append(path, b"a first line")
    assert path.read_bytes() == b""


def test_half_a_line_of_a_process_that_was_killed_is_not_glued_to_the_next(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"whole\nhal")
    assert lines.since(path) == [b"whole"]
    lines.append(path, b"next")
    assert path.read_bytes() == b"whole\nnext\n"
    path.write_bytes(b"hal")
    lines.append(path, b"next")
    assert path.read_bytes() == b"next\n"


def _add(path, name):
    for number in range(200):
        lines.append(path, f"{name} {number}".encode())


def test_several_processes_add_to_one_log(tmp_path):
    path = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(path, name)) for name in "ab"]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    found = lines.since(path)
    for name in "ab":
        mine = [line for line in found if line.startswith(name.encode())]
        assert mine == [f"{name} {number}".encode() for number in range(200)]
    assert len(found) == 400
