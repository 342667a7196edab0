import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from konvoi.errors import DiskFull, StateError
from konvoi.state import shards
from konvoi.state.shards import explain, share


def test_what_all_workers_hold_whole_is_written_once_and_in_equal_parts():
    tensors = {f"w{number}": torch.zeros(number) for number in range(1, 21)} | {"step": torch.tensor(3.0)}
    parts = [share(tensors, worker, 3) for worker in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(tensors)
    sizes = [sum(tensor.numel() for tensor in part.values()) for part in parts]
    assert max(sizes) - min(sizes) <= 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_every_dtype_and_shape_survives(tmp_path, dtype):
    values = {"model.a": torch.tensor([[0, 1], [1, 1]]).to(dtype), "model.b": torch.ones((), dtype=dtype)}
    shards.write(tmp_path, values, None)
    back = shards.read_whole(tmp_path, "model.")
    assert all(torch.equal(back[name.removeprefix("model.")], value) for name, value in values.items())
    assert {tensor.dtype for tensor in back.values()} == {dtype}


def test_only_the_names_asked_for_are_read(tmp_path):
    shards.write(tmp_path, {"model.a": torch.ones(2), "ema.a": torch.zeros(2)}, None)
    assert list(shards.read_whole(tmp_path, "ema.")) == ["a"]


def test_a_broken_connection_while_writing_stays_what_it_is(tmp_path):
    error = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert explain(error, tmp_path) is error


def failed(**failures):
    """What DCP raises on every worker: what each of them ran into, with its traceback."""
    return CheckpointException("write", {rank: (error, []) for rank, error in enumerate(failures.values())})


def test_a_full_disk_is_recognised_whichever_worker_met_it_and_however_torch_says_it(tmp_path):
    zipped = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598\nmore")
    full = OSError(28, "No space left on device")
    for error in (full, zipped, failed(a=zipped, b=full), failed(a=zipped)):
        explained = explain(error, tmp_path)
        assert isinstance(explained, DiskFull)
        assert "\n" not in explained.found
    assert explain(failed(a=zipped, b=full), tmp_path).found == f"{tmp_path}: No space left on device"


def test_another_refusal_is_a_state_error_and_a_mistake_of_ours_stays_itself(tmp_path):
    assert isinstance(explain(failed(a=PermissionError(13, "denied")), tmp_path), StateError)
    ours = failed(a=TypeError("x"))
    assert explain(ours, tmp_path) is ours
