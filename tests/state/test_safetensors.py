import torch

from konvoi.state.safetensors import read, write


def test_tied_tensors_are_written_once_under_their_first_name(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    write(tmp_path / "model.safetensors", {"embed": weight, "head": weight, "other": weight.clone()})
    back = read(tmp_path / "model.safetensors")
    assert sorted(back) == ["embed", "other"]
    assert torch.equal(back["embed"], weight)


def test_a_view_is_written_as_what_it_shows(tmp_path):
    write(tmp_path / "model.safetensors", {"t": torch.arange(6.0).reshape(2, 3).T})
    assert torch.equal(read(tmp_path / "model.safetensors")["t"], torch.arange(6.0).reshape(2, 3).T)
