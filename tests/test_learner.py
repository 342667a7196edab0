import pytest
import torch
from torch import nn

import konvoi as kv
from konvoi.errors import CheckpointMismatch
from konvoi.learner import Buffers, Learner, check_same_model, shapes_of
from konvoi.plan.split.parts import single
from tests import small

OPTIMIZERS = {
    "sgd": (kv.optimizers.sgd(lr=0.1), 0),
    "sgd with momentum": (kv.optimizers.sgd(lr=0.1, momentum=0.9), 1),
    "adamw": (kv.optimizers.adamw(lr=0.1), 3),
    "muon": (kv.optimizers.muon(lr=0.1), None),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)])
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        for block in (self.embed, *self.blocks, self.head):
            x = block(x)
        return x


def learner(**fields):
    torch.manual_seed(0)
    parts = single(Net(), None)
    return Learner(small.job(**fields), parts, num_steps=10)


def learn(learner, step):
    torch.manual_seed(step)
    (module,) = learner.parts.modules
    for parameter in module.parameters():
        parameter.grad = None
    module(torch.randn(8, 4)).square().sum().backward()
    learner.lr(step)
    learner.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_restored_goes_on_like_what_was_saved(name):
    optimizer, num_states = OPTIMIZERS[name]
    first, second = (learner(optimizer=optimizer, ema=0.9) for _ in range(2))
    for step in (1, 2, 3):
        learn(first, step)
    second.allocate()
    saved = {key: tensor.clone() for key, tensor in first.tensors().items()}
    for key, tensor in second.tensors().items():
        tensor.copy_(saved.pop(key))
    assert not saved
    for step in (4, 5):
        learn(first, step)
        learn(second, step)
    mine, other = first.tensors(), second.tensors()
    assert small.differences(mine, other) == []
    if num_states is not None:
        assert sum(key.startswith("optim.blocks.0.bias.") for key in mine) == num_states


def test_a_tied_weight_is_held_once_and_scratch_buffers_not_at_all():
    names = [key.removeprefix("model.") for key in learner().tensors() if key.startswith("model.")]
    assert [name for name in names if name in ("embed.weight", "head.weight")] == ["embed.weight"]
    assert "scratch" not in names
    assert {"blocks.1.running_mean", "blocks.1.running_var", "blocks.1.num_batches_tracked"} <= set(names)
    assert sorted(learner().shapes()) == sorted(names)


def test_the_outline_of_a_module_has_the_names_and_shapes_that_the_learner_saves():
    with torch.device("meta"):
        outline = Net()
    assert shapes_of(outline) == learner().shapes()


def test_frozen_parameters_have_no_state_but_are_saved():
    torch.manual_seed(0)
    net = Net()
    net.blocks[0].weight.requires_grad_(False)
    frozen = Learner(small.job(ema=0.9), single(net, None), num_steps=10)
    learn(frozen, 1)
    keys = [key for key in frozen.tensors() if "blocks.0.weight" in key]
    assert keys == ["model.blocks.0.weight"]


def test_what_a_checkpoint_lacks_begins_anew():
    one = learner(ema=0.9)
    learn(one, 1)
    missing = ["optim.blocks.0.bias.exp_avg", "optim.blocks.0.bias.step", "ema.blocks.0.bias"]
    notes = one.begin_anew(missing)
    assert "no state of this optimizer for 1 of 5 parameters (blocks.0.bias, ...)" in notes[0]
    assert "averaged weights" in notes[1]
    assert not any(key.startswith("optim.blocks.0.bias") for key in one.tensors())
    assert torch.equal(one.average["blocks.0.bias"], one.parameters["blocks.0.bias"])
    assert one.begin_anew([]) == []


def test_the_average_is_put_in_and_taken_out_again():
    one = learner(ema=0.5)
    before = {name: p.detach().clone() for name, p in one.parameters.items()}
    learn(one, 1)
    after = {name: p.detach().clone() for name, p in one.parameters.items()}
    with one.averaged():
        for name, parameter in one.parameters.items():
            torch.testing.assert_close(parameter.detach(), (before[name] + after[name]) / 2)
    assert small.differences(after, {name: p.detach() for name, p in one.parameters.items()}) == []


def test_the_rate_is_the_schedules_factor_times_each_groups_own():
    rates = kv.optimizers.adamw(lr=1.0, groups=(kv.optimizers.Group("*bias", lr=0.1),))
    one = learner(optimizer=rates, schedule=kv.schedules.linear())
    factor = one.job.schedule.factor(5, 10)
    assert one.lr(5) in (pytest.approx(factor), pytest.approx(0.1 * factor))
    assert {round(group["lr"] / factor, 6) for group in one.groups()} == {1.0, 0.1}


def test_a_checkpoint_of_another_model_names_the_first_differences():
    found = {"a": [2, 2], "b": [3], "c": [1], "d": [1], "e": [1]}
    check_same_model(found, dict(found))
    with pytest.raises(CheckpointMismatch) as caught:
        check_same_model(found, {"a": [2, 3], "b": [3], "x": [1]})
    assert caught.value.found == (
        "a: [2, 2] in the checkpoint, [2, 3] in the model; c: [1] in the checkpoint, absent in the model; "
        "d: [1] in the checkpoint, absent in the model; and 2 more"
    )


def test_a_step_that_is_left_out_does_nothing_to_the_running_statistics():
    net = Net()
    buffers = Buffers(single(net, None), None, is_shared=False, can_undo=True)
    net(torch.randn(8, 4))
    buffers.after_step(is_finite=True)
    good = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(torch.full((8, 4), float("nan")))
    assert net.blocks[1].running_mean.isnan().all()
    buffers.after_step(is_finite=False)
    assert small.differences(good, dict(net.named_buffers())) == []
    assert net.blocks[1].num_batches_tracked == 1
