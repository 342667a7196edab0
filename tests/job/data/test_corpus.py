import os

import pytest

from konvoi.errors import DataError
from konvoi.job.data.corpus import Piece, find, hold_out


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pieces_of(*sizes):
    return [Piece(f"file{place}", f"/nowhere/file{place}", 0, size, 0) for place, size in enumerate(sizes)]


def test_a_folder_is_read_to_its_depths_without_hidden_or_compiled_or_empty_files(tmp_path):
    write(tmp_path, b=b"b", a__c=b"c", a__d__e=b"e", empty=b"")
    write(tmp_path / ".hidden", x=b"x")
    write(tmp_path / "__pycache__", x=b"x")
    write(tmp_path).joinpath(".dot").write_bytes(b"x")
    assert [piece.name for piece in find(tmp_path)] == ["a/c", "a/d/e", "b"]


def test_a_glob_and_a_list_find_what_they_name_once_and_sorted(tmp_path):
    write(tmp_path, one=b"1", two=b"22", three=b"333")
    assert [piece.size for piece in find(str(tmp_path / "t*"))] == [3, 2]
    both = find([tmp_path / "two", str(tmp_path / "t*"), tmp_path / "one"])
    assert [os.path.basename(piece.path) for piece in both] == ["one", "three", "two"]


def test_the_standard_library_comes_without_its_tests():
    names = [piece.name for piece in find("stdlib")]
    assert {"os.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert all(name.endswith(".py") for name in names)
    assert sum(piece.size for piece in find("stdlib")) > 5_000_000


def test_a_missing_file_is_named_with_the_nearest_name(tmp_path):
    write(tmp_path, **{"shakespeare.txt": b"x"})
    with pytest.raises(DataError, match=r"there is no .*shakespear.txt") as caught:
        find(tmp_path / "shakespear.txt")
    assert "hint: did you mean shakespeare.txt?" in str(caught.value)


def test_a_misspelt_stdlib_is_noticed():
    with pytest.raises(DataError) as caught:
        find("stdlb")
    assert "did you mean 'stdlib'?" in str(caught.value)


def test_a_glob_without_a_match_is_refused(tmp_path):
    with pytest.raises(DataError, match="the pattern matches no file"):
        find(str(tmp_path / "*.txt"))


def test_empty_files_are_refused_where_nothing_else_is_there(tmp_path):
    write(tmp_path, empty=b"", nothing=b"")
    with pytest.raises(DataError, match="empty is empty"):
        find(tmp_path / "empty")
    with pytest.raises(DataError, match="2 files, all of them empty"):
        find(tmp_path)
    with pytest.raises(DataError, match="there is no text"):
        find([])


def test_a_broken_link_and_a_file_without_permission_are_unreadable(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="link cannot be read"):
        find(tmp_path)
    write(tmp_path / "more", secret=b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a test that runs as root may read anything
    with pytest.raises(DataError, match="secret cannot be read") as caught:
        find(tmp_path / "more")
    assert "Permission denied" in str(caught.value)


def test_whole_files_are_held_out_up_to_the_share():
    pieces = pieces_of(*range(50, 150))
    train, valid = hold_out(pieces, 0.05)
    total, held = sum(piece.size for piece in pieces), sum(piece.size for piece in valid)
    assert 0.04 * total < held <= 0.05 * total
    assert sorted(train + valid, key=pieces.index) == pieces


def test_the_choice_depends_on_names_not_on_the_folder_or_the_order():
    pieces = pieces_of(*[100] * 100)
    moved = [Piece(piece.name, "/elsewhere/" + piece.name, 0, piece.size, 1) for piece in reversed(pieces)]
    assert {piece.name for piece in hold_out(pieces, 0.1)[1]} == {piece.name for piece in hold_out(moved, 0.1)[1]}


def test_of_a_single_file_the_end_is_held_out_at_a_line(tmp_path):
    lines = b"".join(b"line %d\n" % number for number in range(1000))
    write(tmp_path, only=lines)
    ((train,), (valid,)) = hold_out(find(tmp_path / "only"), 0.05)
    assert train.read() + valid.read() == lines
    assert train.read().endswith(b"\n")
    assert 0.05 * len(lines) <= valid.size < 0.06 * len(lines)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    write(tmp_path, file=b"0123456789")
    (piece,) = find(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"0123")
    with pytest.raises(DataError, match="changed while it was read"):
        piece.read()
