import multiprocessing
import time

import pytest

from konvoi.errors import DataError
from konvoi.job.data.cache import cached


def build(folder):
    (folder / "numbers").write_text("123")
    return {"count": 3}


def test_it_is_built_once_and_named_by_its_identity(tmp_path):
    calls = []

    def counting(folder):
        calls.append(folder)
        return build(folder)

    folder, meta = cached("text", ["a", 1], counting, tmp_path)
    assert cached("text", ["a", 1], counting, tmp_path) == (folder, meta)
    assert cached("text", ["a", 2], counting, tmp_path)[0] != folder
    assert len(calls) == 2
    assert meta == {"count": 3}
    assert (folder / "numbers").read_text() == "123"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def failing(folder):
        (folder / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached("text", 1, failing, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_built_again(tmp_path):
    folder, _ = cached("text", 1, build, tmp_path)
    (folder / "numbers").write_text("1")
    assert cached("text", 1, build, tmp_path)[0] == folder
    assert (folder / "numbers").read_text() == "123"
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "numbers"]
    assert list(tmp_path.iterdir()) == [folder]


def slow_build(folder):
    time.sleep(0.1)
    return build(folder)


def build_at_once(folder, barrier, results):
    barrier.wait()
    results.put(str(cached("text", 1, slow_build, folder)[0]))


def test_two_processes_that_build_at_once_share_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=build_at_once, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=20) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert folders == {str(path) for path in tmp_path.iterdir()}
    assert len(folders) == 1


def test_a_folder_that_cannot_be_written_is_named_with_a_hint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as caught:
        cached("text", 1, build, tmp_path / "file")
    assert "KONVOI_CACHE" in str(caught.value)


def test_the_environment_names_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KONVOI_CACHE", str(tmp_path / "here"))
    assert cached("text", 1, build, None)[0].parent == tmp_path / "here"
