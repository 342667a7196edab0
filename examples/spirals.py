"""A first tour in one file: your own arrays, a small network, and what can be asked of a run afterwards.

python examples/spirals.py
"""

import numpy as np

import konvoi as kv


def spirals(num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on two spirals, and which of the two each lies on."""
    random = np.random.default_rng(0)
    turn = np.sqrt(random.random(num_samples)) * 3 * np.pi
    label = random.integers(0, 2, num_samples)
    angle = turn + np.pi * label
    points = np.stack([turn * np.cos(angle), turn * np.sin(angle)], axis=1) / 10
    return (points + random.normal(0, 0.02, points.shape)).astype(np.float32), label


def job(steps: int = 400) -> kv.Job:
    points, labels = spirals(4000)
    return kv.Job(
        model=kv.models.mlp(widths=(64, 64)),
        data=kv.data.tensors(inputs=points, labels=labels, holdout=0.1),
        objective=kv.objectives.classification(),
        optimizer=kv.optimizers.adamw(lr=1e-2),
        schedule=kv.schedules.wsd(warmup=0.05, decay=0.3),
        global_batch=64,
        steps=steps,
        validate_every=100,
        hooks=kv.Hooks(on_eval=lambda event: None),  # called on worker 0, with what it found
    )


def main() -> dict[str, float]:
    run: kv.Run = kv.train(job(), kv.Island(dp=2), kv.fleet.local(2, oversubscribe=True))
    return dict(kv.evaluate(run.folder))


if __name__ == "__main__":
    print(main())
