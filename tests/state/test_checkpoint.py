import threading
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from konvoi.errors import DiskFull, StateError
from konvoi.state import checkpoint, shards
from konvoi.state.checkpoint import Checkpoints, facts_of
from konvoi.state.record import whole_checkpoints


@pytest.fixture
def make(tmp_path):
    """A writer of one worker's checkpoints, and what it has said."""
    made = []

    def one(keep=2):
        said = []
        one = Checkpoints(tmp_path, keep=keep, worker=0, num_workers=1, share=(0, 1), on_saved=said.append)
        made.append(one)
        return one, said

    yield one
    for each in made:
        each.close()


def tensors(value=1.0):
    return {"model.w": torch.full((4, 3), value), "optim.w.step": torch.tensor(value)}


def steps(folder):
    return [step for step, _ in whole_checkpoints(folder)]


def test_what_is_saved_is_read_back_with_its_facts(make, tmp_path):
    writer, said = make()
    writer.save(7, tensors(3.0), {"step": 7, "plan": {"dp": 1}})
    writer.wait()
    path = tmp_path / "step-000007"
    back = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    assert shards.read(path, back | {"ema.w": torch.zeros(1)}, num_workers=1) == ["ema.w"]
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors(3.0).items())
    assert facts_of(path)["plan"] == {"dp": 1}
    assert (said[0].step, said[0].path) == (7, path)
    assert said[0].size_bytes == sum(file.stat().st_size for file in path.iterdir() if file.name != "facts.json")


def test_training_may_go_on_while_a_copy_is_written(make, tmp_path, monkeypatch):
    go = threading.Event()
    write = shards.write
    monkeypatch.setattr(shards, "write", lambda *arguments: (go.wait(10), write(*arguments)))
    writer, _ = make()
    state = tensors(1.0)
    writer.save(1, state, {})
    state["model.w"].fill_(2.0)
    assert steps(tmp_path) == []
    go.set()
    writer.wait()
    assert shards.read_whole(tmp_path / "step-000001", "model.")["w"].eq(1.0).all()


def test_the_newest_and_the_best_are_kept(make, tmp_path):
    writer, _ = make(keep=2)
    for step in range(1, 7):
        writer.save(step, tensors(), {}, is_best=step == 2)
    writer.wait()
    assert steps(tmp_path) == [2, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000005", "step-000006"]


def test_all_are_kept_where_that_is_asked_for(make, tmp_path):
    writer, _ = make(keep=0)
    for step in range(1, 5):
        writer.save(step, tensors(), {})
    writer.wait()
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_checkpoints_are_told_in_the_thread_that_trains(make):
    writer, said = make()
    writer.save(1, tensors(), {})
    writer.thread.join()
    assert said == []
    writer.check()
    assert [saved.step for saved in said] == [1]


def test_a_step_beyond_a_million_is_newer_than_one_below(tmp_path):
    for step in (999_999, 1_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert steps(tmp_path) == [999_999, 1_000_000]


class Killed(BaseException):
    """Stands for a signal: nothing after it happens."""


@pytest.mark.parametrize("call", ["write", "mkdir", "write_text", "sync", "rename"])
def test_whoever_is_killed_in_whatever_call_leaves_the_last_one_whole(make, tmp_path, monkeypatch, call):
    writer, _ = make(keep=1)
    writer.save(1, tensors(1.0), {"step": 1})
    writer.wait()
    owner = {"write": shards, "mkdir": Path, "write_text": Path, "sync": checkpoint, "rename": checkpoint.os}[call]
    monkeypatch.setattr(owner, call, lambda *_, **__: (_ for _ in ()).throw(Killed()))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    writer.save(2, tensors(2.0), {"step": 2})
    with pytest.raises((Killed, CheckpointException)):  # the latter where DCP was in the midst of it
        writer.wait()
    monkeypatch.undo()
    assert steps(tmp_path) == [1]
    assert facts_of(tmp_path / "step-000001")["step"] == 1
    assert shards.read_whole(tmp_path / "step-000001", "model.")["w"].eq(1.0).all()


def test_whoever_is_killed_while_an_old_one_is_deleted_leaves_nothing_that_looks_whole(make, tmp_path, monkeypatch):
    writer, _ = make(keep=1)
    writer.save(1, tensors(), {})
    writer.wait()
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    writer.save(2, tensors(), {})
    writer.wait()
    monkeypatch.undo()
    assert steps(tmp_path) == [2]
    assert (tmp_path / ".step-000001.old").exists()


def test_the_next_start_clears_what_a_killed_run_left(make, tmp_path):
    for name in (".step-000003.partial", ".step-000001.old", "step-000002"):
        (tmp_path / name).mkdir()
    make()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_a_checkpoint_whose_file_was_cut_is_named_with_its_sizes(make, tmp_path):
    writer, _ = make()
    for step in (1, 2):
        writer.save(step, tensors(), {})
    writer.wait()
    (shard,) = (tmp_path / "step-000002").glob("*.distcp")
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(StateError, match="damaged") as caught:
        facts_of(shard.parent)
    assert str(shard) in caught.value.found
    assert str(size - 10) in caught.value.found
    assert caught.value.expected == f"{size} bytes"
    assert caught.value.hint.endswith("to go on from step 1")
    shard.unlink()
    with pytest.raises(StateError, match="damaged"):
        facts_of(shard.parent)


def test_a_shard_of_other_bytes_is_an_error_that_names_the_folder(make, tmp_path):
    writer, _ = make()
    writer.save(1, tensors(), {})
    writer.wait()
    (shard,) = (tmp_path / "step-000001").glob("*.distcp")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(StateError, match="cannot be read") as caught:
        shards.read(shard.parent, tensors(), num_workers=1)
    assert str(shard.parent) in caught.value.found


def test_a_folder_without_facts_is_no_checkpoint(tmp_path):
    (tmp_path / "step-000001").mkdir()
    with pytest.raises(StateError, match=r"facts\.json"):
        facts_of(tmp_path / "step-000001")


def test_a_checkpoint_that_somebody_else_wrote_is_not_unpickled(make, tmp_path, monkeypatch):
    writer, _ = make()
    writer.save(1, tensors(), {})
    writer.wait()
    monkeypatch.setattr("konvoi.state.record.os.getuid", lambda: 12345)
    for read in (facts_of, lambda path: shards.read_whole(path, "model.")):
        with pytest.raises(StateError, match="another user"):
            read(tmp_path / "step-000001")


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_told_at_the_next_check_and_the_last_one_stays(make, tmp_path, monkeypatch, number):
    import errno

    writer, _ = make()
    writer.save(1, tensors(), {"step": 1})
    writer.wait()
    full = OSError(getattr(errno, number), "no room")
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: (_ for _ in ()).throw(full))
    writer.save(2, tensors(), {})
    writer.thread.join()
    with pytest.raises(DiskFull, match="no room") as caught:
        writer.check()
    assert str(tmp_path) in caught.value.found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001"]


def test_a_folder_that_may_not_be_written_is_a_state_error(make, tmp_path, monkeypatch):
    writer, _ = make()
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    writer.save(1, tensors(), {})
    with pytest.raises(StateError, match="could not be written"):
        writer.wait()


def test_saving_again_copies_into_the_same_memory(make):
    writer, _ = make(keep=1)
    state = {f"w{number}": torch.ones(1000) for number in range(20)}
    places = set()
    for step in range(1, 6):
        copy = writer._copies().take(state)
        places.add(tuple(tensor.data_ptr() for tensor in copy.values()))
        writer.save(step, state, {})
    assert len(places) == 1
