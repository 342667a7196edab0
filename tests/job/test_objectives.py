"""Sums and weights, never means; what does not count changes nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from konvoi.errors import JobError
from konvoi.job import objectives
from konvoi.values import Measures

VOCAB = 11


class Bigram(nn.Module):
    """Logits from the token alone; remembers the mask that it was given."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCAB, VOCAB, dtype=dtype)
        self.seen_mask = None

    def forward(self, input_ids, attention_mask=None):
        self.seen_mask = attention_mask
        return self.table(input_ids)


def ids(rows=3, length=8):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))


def reference(model, sequence):
    """The slow twin: one token at a time."""
    return sum(
        -F.log_softmax(model.table.weight[now].double(), -1)[then].item()
        for now, then in zip(sequence[:-1].tolist(), sequence[1:].tolist(), strict=True)
    )


def test_next_token_sums_over_every_token_but_the_first():
    model, batch = Bigram(), {"input_ids": ids()}
    loss_sum, weight = objectives.next_token()(model, batch)
    assert weight.item() == 3 * 7
    assert loss_sum.item() == pytest.approx(sum(reference(model, row) for row in ids()), rel=1e-6)


def test_the_parts_of_a_batch_add_up_to_the_whole():
    model, objective = Bigram(torch.float64), objectives.next_token()
    whole = objective(model, {"input_ids": ids()})
    parts = [objective(model, {"input_ids": ids()[rows]}) for rows in (slice(0, 1), slice(1, 3))]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(one, sum(others))


def test_labels_are_shifted_once_and_ignored_ones_do_not_count():
    model, labels = Bigram(), ids().clone()
    labels[0, 3:], labels[2] = -100, -100
    loss_sum, weight = objectives.next_token()(model, {"input_ids": ids(), "labels": labels})
    assert weight.item() == 2 + 7
    expected = reference(model, ids()[0, :3]) + reference(model, ids()[1])
    assert loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_any_target_weighs_nothing_and_has_zero_gradients():
    model = Bigram()
    loss_sum, weight = objectives.next_token()(model, {"input_ids": ids(), "labels": torch.full((3, 8), -100)})
    loss_sum.backward()
    assert (loss_sum.item(), weight.item()) == (0.0, 0.0)
    assert (model.table.weight.grad == 0).all()


def test_the_mask_goes_to_the_model_and_padding_does_not_count():
    model, mask = Bigram(), torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    loss_sum, weight = objectives.next_token()(model, {"input_ids": ids(), "attention_mask": mask})
    assert torch.equal(model.seen_mask, mask[:, :-1])
    assert weight.item() == 7 + 4 + 7
    expected = reference(model, ids()[0]) + reference(model, ids()[1, :5]) + reference(model, ids()[2])
    assert loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_a_model_that_takes_no_mask_is_given_none():
    loss_sum, _ = objectives.next_token()(nn.Embedding(VOCAB, VOCAB), {"input_ids": ids()})
    assert loss_sum.isfinite()


def test_an_output_with_logits_counts_like_a_tensor():
    model = Bigram()
    wrapped = objectives.next_token()(lambda x: SimpleNamespace(logits=model(x)), {"input_ids": ids()})
    assert wrapped == objectives.next_token()(model, {"input_ids": ids()})


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_sums_have_at_least_float32_and_float64_stays(dtype, expected):
    loss_sum, weight = objectives.next_token()(Bigram(dtype), {"input_ids": ids()})
    assert loss_sum.dtype == weight.dtype == expected


def test_classification_sums_over_samples_and_measures_accuracy():
    objective, model = objectives.classification(), nn.Identity()
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    batch = {"inputs": logits, "labels": torch.tensor([0, 1, 1])}
    loss_sum, weight = objective(model, batch)
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))
    assert loss_sum.item() == pytest.approx(expected, rel=1e-6)
    assert weight.item() == 3
    assert isinstance(objective, Measures)
    assert objective.measure(model, batch)["accuracy"].item() == 2


def test_label_smoothing_raises_the_loss_of_a_sure_model():
    batch = {"inputs": torch.tensor([[20.0, 0.0]]), "labels": torch.tensor([0])}
    sharp, _ = objectives.classification()(nn.Identity(), batch)
    smooth, _ = objectives.classification(label_smoothing=0.1)(nn.Identity(), batch)
    assert smooth.item() == pytest.approx(sharp.item() + 0.05 * 20, rel=1e-4)


def test_label_smoothing_out_of_range_is_refused():
    with pytest.raises(JobError, match="label_smoothing"):
        objectives.classification(label_smoothing=1.0)


def test_regression_is_the_squared_distance_of_each_sample():
    batch = {"inputs": torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "targets": torch.tensor([[0.0, 0.0], [3.0, 0.0]])}
    loss_sum, weight = objectives.regression()(nn.Identity(), batch)
    assert (loss_sum.item(), weight.item()) == (14.0, 2.0)


def test_targets_that_would_broadcast_are_refused():
    batch = {"inputs": torch.zeros(4, 1), "targets": torch.zeros(4)}
    with pytest.raises(JobError, match="different shapes") as caught:
        objectives.regression()(nn.Identity(), batch)
    assert "(4, 1)" in str(caught.value)


def test_objectives_are_values():
    assert objectives.next_token() == objectives.next_token(ignore_index=-100)
    assert hash(objectives.regression()) == hash(objectives.regression())
