import pytest
import torch
from torch.optim import _muon

from konvoi.job import orthogonal

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_float32_gives_what_torch_gives_in_bfloat16(shape):
    given = _muon._zeropower_via_newtonschulz
    given = getattr(given, "__wrapped__", given)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = orthogonal.newton_schulz(matrix, COEFFICIENTS, 5, 1e-7), given(matrix, COEFFICIENTS, 5, 1e-7)
    assert (found - expected).norm() < 0.03 * expected.norm()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_zero_gradient_gives_zero():
    assert not orthogonal.newton_schulz(torch.zeros(4, 4), COEFFICIENTS, 5, 1e-7).any()


def test_muon_takes_it_where_the_processor_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", lambda *given: pytest.fail("torch's own was called"))
    monkeypatch.setattr(orthogonal, "has_bfloat16", lambda: False)
    orthogonal.install()
    parameter = torch.nn.Parameter(torch.eye(4))
    parameter.grad = torch.ones(4, 4)
    torch.optim.Muon([parameter], lr=0.1).step()
    assert not parameter.equal(torch.eye(4))


def test_it_is_left_alone_where_the_processor_has(monkeypatch):
    given = lambda *given: given[0]  # noqa: E731
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", given)
    monkeypatch.setattr(orthogonal, "has_bfloat16", lambda: True)
    orthogonal.install()
    assert _muon._zeropower_via_newtonschulz is given
