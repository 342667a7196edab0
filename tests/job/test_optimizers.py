"""Who decays, who gets which rate, and that torch's own optimizers do the work."""

import pytest
import torch
from torch import nn

from konvoi.errors import JobError
from konvoi.job.models import gpt, mlp
from konvoi.job.optimizers import Group, adamw, check_rules, muon, sgd


def named(**sizes):
    model = gpt(2, **{"width": 16, "num_heads": 2, "vocab_size": 31, **sizes})()
    return list(model.named_parameters())


def group_of(optimizers, parameter):
    (found,) = [
        group
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    ]
    return found


@pytest.mark.parametrize("recipe", [adamw(), sgd(), muon()])
def test_every_parameter_is_in_exactly_one_group(recipe):
    parameters = named()
    optimizers = recipe.build(parameters)
    for _, parameter in parameters:
        group_of(optimizers, parameter)


@pytest.mark.parametrize("recipe", [adamw(weight_decay=0.1), sgd(weight_decay=0.1)])
def test_norms_and_biases_do_not_decay(recipe):
    parameters = [*named(), *mlp((4,), input_shape=(3,), num_outputs=2)().named_parameters()]
    optimizers = recipe.build(parameters)
    for name, parameter in parameters:
        is_vector = "norm" in name or name.endswith("bias")
        assert group_of(optimizers, parameter)["weight_decay"] == (0.0 if is_vector else 0.1), name


def test_a_rule_changes_what_it_names_and_nothing_else():
    parameters = named()
    rules = (Group("*.head.*", lr=0.5), Group("*norm.weight", weight_decay=0.3))
    optimizers = adamw(lr=1e-3, weight_decay=0.1, groups=rules).build(parameters)
    for name, parameter in parameters:
        group = group_of(optimizers, parameter)
        assert group["lr"] == (0.5 if name == "head.weight" else 1e-3), name
        assert group["weight_decay"] == (0.3 if "norm" in name else 0.1), name


def test_the_first_rule_that_matches_decides():
    parameters = named()
    (optimizer,) = sgd(groups=(Group("head.weight", lr=1.0), Group("*", lr=2.0))).build(parameters)
    rates = {group["lr"]: len(group["params"]) for group in optimizer.param_groups if group["lr"] in (1.0, 2.0)}
    assert rates[1.0] == 1


def test_a_rule_that_matches_nothing_names_the_nearest_word():
    with pytest.raises(JobError, match="matches no parameter") as caught:
        adamw(groups=(Group("*.atention.*", lr=1.0),)).build(named())
    assert "did you mean attention?" in caught.value.hint
    with pytest.raises(JobError):
        check_rules(["head.weight"], [Group("*"), Group("?")])


@pytest.mark.parametrize("recipe", [adamw(lr=0.3), sgd(lr=0.3), muon(lr=0.3)])
def test_each_group_keeps_its_initial_rate(recipe):
    for optimizer in recipe.build(named()):
        for group in optimizer.param_groups:
            assert group["initial_lr"] == group["lr"]


@pytest.mark.parametrize("recipe", [adamw(), sgd(), muon()])
def test_a_part_without_parameters_has_no_optimizer(recipe):
    assert recipe.build([]) == []


def test_adamw_is_fused_where_torch_can():
    (optimizer,) = adamw().build(named())
    assert optimizer.defaults["fused"] is True
    with torch.device("meta"):
        parameters = named()
    (optimizer,) = adamw().build(parameters)
    assert optimizer.defaults["fused"] is False


def test_adamw_takes_the_step_of_the_paper():
    weight = nn.Parameter(torch.tensor([[2.0, -3.0]], dtype=torch.float64))
    (optimizer,) = adamw(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5).build([("weight", weight)])
    weight.grad = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    optimizer.step()
    # Bias correction makes the first step the sign of the gradient.
    expected = torch.tensor([[2.0 * 0.95 - 0.1, -3.0 * 0.95 + 0.1]], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0)


def test_sgd_with_nesterov_takes_torchs_step():
    parameters = [("weight", nn.Parameter(torch.ones(2, 2)))]
    (optimizer,) = sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0).build(parameters)
    for _ in range(2):
        parameters[0][1].grad = torch.ones(2, 2)
        optimizer.step()
    # Velocities 1 and 1.9; nesterov adds 0.9 of each to the gradient.
    torch.testing.assert_close(parameters[0][1].detach(), torch.full((2, 2), 1 - 0.1 * 1.9 - 0.1 * (1 + 0.9 * 1.9)))


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest():
    parameters = named()
    first, second = muon(lr=0.02, adamw=adamw(lr=1e-3)).build(parameters)
    assert isinstance(first, torch.optim.Muon)
    assert isinstance(second, torch.optim.AdamW)
    for name, parameter in parameters:
        in_muon = name.startswith("blocks.") and parameter.ndim == 2
        assert group_of([first if in_muon else second], parameter)["lr"] == (0.02 if in_muon else 1e-3), name


def test_muons_step_is_nearly_orthogonal():
    weight = nn.Parameter(torch.zeros(16, 16))
    first, *_ = muon(lr=1.0).build([("blocks.0.weight", weight)])
    weight.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    first.step()
    singular = torch.linalg.svdvals(weight.detach())
    assert singular.max() < 1.4
    assert singular.median() > 0.5


def test_muon_without_a_matrix_in_a_block_is_refused():
    with pytest.raises(JobError, match="no matrix") as caught:
        muon().build([("embed.weight", nn.Parameter(torch.zeros(3, 3)))])
    assert "adamw" in caught.value.hint


def test_muons_matrices_can_be_named():
    weight = nn.Parameter(torch.zeros(3, 3))
    (only,) = muon(matrices="*.encoder.*").build([("encoder.weight", weight)])
    assert isinstance(only, torch.optim.Muon)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adamw(lr=-1.0), "lr is negative"),
        (lambda: adamw(lr=float("nan")), "lr is negative"),
        (lambda: adamw(betas=(0.9, 1.0)), "betas"),
        (lambda: sgd(momentum=1.0), "momentum"),
        (lambda: sgd(nesterov=True), "nesterov needs momentum"),
        (lambda: muon(weight_decay=-0.1), "weight_decay"),
    ],
)
def test_values_that_cannot_be_are_refused(make, message):
    with pytest.raises(JobError, match=message):
        make()
