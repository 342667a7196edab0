"""A program that keeps its own loop computes the same on two workers as alone."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from konvoi.errors import JobError, PlanError
from konvoi.fleet.worker import Place
from konvoi.island import enter
from konvoi.own_loop import OwnLoop, loss_of_model
from konvoi.plan.island import Island


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.tanh(self.linear(inputs))


class Net(nn.Module):
    """Two blocks, so that fsdp has units, and a mean loss of its own, as the models of transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(4, 3)
        self.tp_plan = {"blocks.0.linear": "colwise", "head": "rowwise"}

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        logits = self.head(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
        return type("Output", (), {"loss": loss})


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {"inputs": torch.stack([row[0] for row in rows]), "labels": torch.stack([row[1] for row in rows])}


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 5, 4, generator=generator)
    labels = (inputs[..., 0] > 0).long() + (inputs[..., 1] > 0).long()
    labels[torch.rand(20, 5, generator=generator) < 0.6] = -100  # a mean of means would be far off
    labels[:3] = -100
    return TensorDataset(inputs, labels)


def learn(place: Place, payload: tuple[Island, str, int]) -> tuple[list[float], list[float], float, bool]:
    """Losses, norms, the scheduler's rate at the end, and whether the optimizer object stayed."""
    plan, kind, size = payload
    torch.manual_seed(place.worker)  # each worker draws other weights; worker 0's count
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    if kind == "loader":
        generator = torch.Generator().manual_seed(1)
        batches: Any = DataLoader(samples(), batch_size=size, shuffle=True, collate_fn=collate, generator=generator)
    else:
        batches = [collate([samples()[i] for i in range(start, start + 10)]) for start in (0, 10)]
    losses, norms = [], []
    with enter(place, plan) as at:
        island = OwnLoop(at)
        model, prepared, batches = island.prepare(model, optimizer, batches)
        for _ in range(2):
            for batch in batches:
                losses.append(island.forward_backward(batch))
                norms.append(island.clip_grad_norm_(0.1))
                assert island.step(optimizer)
                optimizer.zero_grad()
                scheduler.step()
    return losses, norms, optimizer.param_groups[0]["lr"], prepared is optimizer


PLANS = [Island(dp=2), Island(fsdp=2), Island(dp=2, accumulate=2), Island(tp=2), Island(dp=2, tp=2)]
PLANS += [Island(pp=2), Island(dp=2, pp=2, schedule="gpipe"), Island(tp=2, pp=2)]


@pytest.mark.parametrize("kind", ["loader", "list"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.describe()))
def test_two_workers_learn_what_one_does(pool, plan, kind):
    size = 7 if plan.pp == 1 else 8  # micro-batches are of one size
    alone = Island(accumulate=plan.accumulate), kind, size
    (expected,) = pool.run(learn, alone, num_workers=1, name="alone")
    for found in pool.run(learn, (plan, kind, size), num_workers=plan.num_workers, name=f"{plan} {kind}"):
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert found[1] == pytest.approx(expected[1], rel=1e-4)
        assert found[2:] == expected[2:] == (expected[2], True)
    assert min(expected[0]) < expected[0][0]


def answer(place: Place, plan: Island) -> tuple[float, int, str]:
    """The loss of a batch without a step, how many optimizer groups have parameters, and what a call is told."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD([{"params": [parameter]} for parameter in model.parameters()], lr=0.1)
    batches = iter([collate([samples()[i] for i in range(10)])])
    with enter(place, plan) as at:
        island = OwnLoop(at)
        model, optimizer, batches = island.prepare(model, optimizer, batches)
        (batch,) = batches
        loss = island.run(lambda model, batch: model(**batch).loss.item(), batch)
        told = ""
        try:
            model(**batch)
        except PlanError as error:
            told = str(error)
        return loss, sum(bool(group["params"]) for group in optimizer.param_groups), told


def test_a_model_in_stages_is_asked_through_the_island(pool):
    (alone,) = pool.run(answer, Island(), num_workers=1, name="alone")
    found = pool.run(answer, Island(pp=2), num_workers=2, name="stages")
    assert [loss for loss, _, _ in found] == pytest.approx([alone[0]] * 2)
    assert alone[2] == ""
    assert all("island.run" in told for _, _, told in found)
    assert sum(count for _, count, _ in found) == alone[1] == 6
    assert all(count < 6 for _, count, _ in found)


def sizes(place: Place, payload: tuple[Island, int]) -> list[int]:
    plan, size = payload
    model = Net()
    loader = DataLoader(samples(), batch_size=size, collate_fn=collate)
    with enter(place, plan) as at:
        _, _, batches = OwnLoop(at).prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
        return [len(batch["labels"]) for batch in batches]


def test_a_last_batch_that_stages_cannot_share_is_left_out_by_all(pool):
    plan = Island(pp=2)
    assert pool.run(sizes, (plan, 6), num_workers=2, name="two left over") == [[6, 6, 6, 2]] * 2
    assert (
        pool.run(sizes, (Island(pp=2, schedule="gpipe", accumulate=3), 9), num_workers=2, name="left") == [[9, 9]] * 2
    )
    assert pool.run(sizes, (plan, 8), num_workers=2, name="four left over") == [[8, 8, 4]] * 2
    with pytest.raises(PlanError, match="too few micro-batches"):
        pool.run(sizes, (plan, 1), num_workers=2, name="all too small")


def alone() -> OwnLoop:
    from konvoi.island import LiveIsland

    return OwnLoop(LiveIsland(Place(0, 1), Island(), torch.device("cpu"), None))


def test_a_step_without_a_gradient_is_refused():
    island, model = alone(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    island.prepare(model, optimizer, [])
    with pytest.raises(JobError, match="no gradient"):
        island.step(optimizer)


def test_an_optimizer_that_has_taken_steps_is_refused():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    with pytest.raises(JobError, match="taken steps"):
        alone().prepare(model, optimizer, [])


def test_parameters_of_another_model_are_refused():
    with pytest.raises(JobError, match="not the model's"):
        alone().prepare(Net(), torch.optim.SGD(Net().parameters(), lr=0.1), [])


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were():
    island, model = alone(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    island.prepare(model, optimizer, [])
    before = [p.clone() for p in model.parameters()]
    island.forward_backward({"inputs": torch.full((2, 5, 4), torch.nan), "labels": torch.zeros(2, 5, dtype=torch.long)})
    assert not island.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_fewer_samples_than_accumulated_passes_are_refused():
    from konvoi.island import LiveIsland

    island = OwnLoop(LiveIsland(Place(0, 1), Island(accumulate=4), torch.device("cpu"), None))
    model = Net()
    island.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), [])
    with pytest.raises(PlanError, match="too few samples"):
        island.forward_backward({"inputs": torch.zeros(2, 5, 4), "labels": torch.zeros(2, 5, dtype=torch.long)})


def test_the_weight_counts_the_labels_that_the_models_mean_runs_over():
    _, weight = loss_of_model(Net(), {"inputs": torch.randn(2, 5, 4), "labels": torch.tensor([[1, 2, -100, 0, 1]] * 2)})
    assert weight == 8
