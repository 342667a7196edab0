"""Convolutions and poolings of many models as one: what torch computes of each."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from konvoi.population.rules import Rules

SIZES = (1, 3, (5, 3))
STEPS = (1, 2, (2, 1))
EDGES = (0, 1, (2, 1))


@pytest.mark.parametrize("height", [9, 12])
def test_rules_are_torch(height):
    """Convolutions and poolings of four models, with all gradients."""
    torch.manual_seed(0)
    for size, stride, padding in itertools.product(SIZES, STEPS, EDGES):
        rows, columns = (size, size) if isinstance(size, int) else size
        x = torch.randn(4, 3, 2, height, 11, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, 5, 2, rows, columns, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

        def model(x, weight, bias, stride=stride, padding=padding):
            y = torch.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
            return F.max_pool2d(y, 2) if min(y.shape[2:]) > 1 else y

        with Rules():
            found = vmap(model)(x, weight, bias)
        expected = torch.stack([model(*one) for one in zip(x, weight, bias, strict=True)])
        ahead = torch.randn_like(expected)
        mine = torch.autograd.grad((found * ahead).sum(), (x, weight, bias))
        theirs = torch.autograd.grad((expected * ahead).sum(), (x, weight, bias))
        torch.testing.assert_close([found, *mine], [expected, *theirs], rtol=1e-12, atol=1e-12)


def test_rules_leave_alone_what_they_do_not_know():
    x, weight = torch.randn(3, 2, 4, 6, 6), torch.randn(3, 4, 2, 3, 3)

    def model(x, weight):
        y = F.conv2d(x, weight, groups=2, dilation=(1, 1))
        return F.max_pool2d(F.conv2d(y, y.new_ones(1, 4, 3, 3), padding="same"), 3, stride=1)

    with Rules():
        found = vmap(model)(x, weight)
    torch.testing.assert_close(found, torch.stack([model(*one) for one in zip(x, weight, strict=True)]))
    with Rules():  # and outside of vmap
        torch.testing.assert_close(F.conv2d(x[0], weight[0], groups=2), F.conv2d(x[0], weight[0], None, 1, 0, 1, 2))


def test_a_pooling_takes_what_it_is_given_not_what_was_made_before():
    """Bias and ReLU wait for a pooling that follows at once, and for no other."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 2, 1, 6, 6), torch.randn(3, 4, 1, 3, 3), torch.randn(3, 4)

    def model(x, weight, bias, between):
        y = between(torch.relu(F.conv2d(x, weight, bias)))
        return F.max_pool2d(y, 2) + y.mean((2, 3), keepdim=True)  # which is used once more, too

    for between in (
        lambda y: y,
        torch.neg,
        lambda y: y.mul_(-1),
        lambda y: F.relu(y, inplace=True),
        lambda y: y[:, 1:],
    ):
        with Rules():
            found = vmap(lambda *one, between=between: model(*one, between))(x, weight, bias)
        expected = torch.stack([model(*one, between) for one in zip(x, weight, bias, strict=True)])
        torch.testing.assert_close(found, expected)
