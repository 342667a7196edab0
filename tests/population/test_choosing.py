"""Who is trained with whom, and by which worker."""

from __future__ import annotations

import numpy as np
import pytest

from konvoi.population.choosing import Costs, Trainer, stack_sizes


def test_pieces_cost_least():
    """Of all ways to cut a sorted cohort into pieces of the sizes that there are."""
    costs = Costs(alone=1.0, stacks={4: 2.2, 2: 1.7})

    def cheapest(steps):
        if not steps:
            return 0.0
        sizes = [size for size in (1, 2, 4) if size <= len(steps)]
        return min(costs.of(steps[:size], size) + cheapest(steps[size:]) for size in sizes)

    draw = np.random.default_rng(0)
    for _ in range(40):
        steps = sorted(draw.integers(1, 12, draw.integers(1, 9)).tolist(), reverse=True)
        pieces = costs.divide(steps)
        assert [start for start, _, _ in pieces] == [0, *(stop for _, stop, _ in pieces[:-1])]
        assert pieces[-1][1] == len(steps)
        assert sum(cost for _, _, cost in pieces) == pytest.approx(cheapest(steps))


def test_workers_have_as_much_to_do_as_each_other():
    """Alike clients come in whole stacks; unlike ones are dealt out by their steps, before they are stacked."""
    costs = Costs(alone=1.0, stacks={25: 9.0, 8: 3.5})
    trainer = Trainer(None, None, costs)  # the ways themselves are not asked
    assert stack_sizes(100, 2) == (25, 8)
    alike = [(worker, len(piece)) for worker, piece in trainer.pieces(range(100), [(8,) * 4] * 100, 2)]
    assert alike == [(0, 25), (0, 25), (1, 25), (1, 25)]
    unlike = [(8,) * number for number in range(1, 51)]
    steps, seen = [0, 0], []
    for worker, piece in trainer.pieces(range(50), unlike, 2):
        steps[worker] += sum(len(unlike[client]) for client in piece)
        seen += piece
    assert sorted(seen) == [*range(50)]
    assert abs(steps[0] - steps[1]) <= 1
