"""What clients keep goes back with the checkpoint that a run goes on from."""

from __future__ import annotations

import numpy as np
import torch

from konvoi.population.keeping import Rows, go_back


def test_rows_go_back_to_each_checkpoint(tmp_path):
    draw = np.random.default_rng(0)
    workers = [Rows(tmp_path, "own", 6, 3, worker=number) for number in range(2)]
    past = {0: np.zeros((6, 3), np.float32)}
    for round in range(1, 9):
        for worker in workers:  # who is whose changes from round to round
            mine = [one for one in range(6) if (one + round) % 2 == worker.worker and draw.random() < 0.7]
            worker.write(round, mine, torch.from_numpy(draw.normal(size=(len(mine), 3)).astype(np.float32)))
        if round % 2 == 0:
            past[round] = np.array(workers[0].rows)
            for worker in workers:
                worker.begin(round, oldest=round - 4)
    for worker in workers:
        worker.close()
    for step in (8, 6, 4):
        go_back(tmp_path, "own", 6, 3, step)
        assert np.array_equal(np.fromfile(tmp_path / "own.float32", np.float32).reshape(6, 3), past[step])
    assert not np.array_equal(past[4], past[8])


def test_the_last_note_of_a_process_that_was_killed_may_be_cut(tmp_path):
    rows = Rows(tmp_path, "own", 2, 4)
    rows.write(1, [0], torch.ones(1, 4))
    rows.close()
    note = next(tmp_path.glob("own.before-*"))
    note.write_bytes(note.read_bytes() + b"half")
    go_back(tmp_path, "own", 2, 4, 0)
    assert not np.fromfile(tmp_path / "own.float32", np.float32).any()


def test_room_is_taken_for_those_who_have_written(tmp_path):
    rows = Rows(tmp_path, "own", 100_000, 10_000)  # four gigabytes, if everybody had
    rows.write(1, [99_999], torch.ones(1, 10_000))
    rows.close()
    assert (tmp_path / "own.float32").stat().st_blocks * 512 < 10_000_000
