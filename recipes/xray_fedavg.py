"""Twenty hospitals learn to tell chest X-rays with pneumonia from others, and none shows an image to another.

    konvoi train recipes/xray_fedavg.py
    konvoi train recipes/xray_fedavg.py --plan '|scaffold,rounds=30,cohort=10'

The images are small and real (recipes/data/README.md), the hospitals simulated: unlike in size and in how many of their
patients are ill.
"""

from pathlib import Path

import konvoi as kv

plan = kv.fedavg(rounds=30, cohort=10, epochs=2)
fleet = kv.fleet.simulated(kv.data.dirichlet(clients=20, alpha=0.3))


def job() -> kv.Job:
    return kv.Job(
        model=kv.models.cnn(depth=3, channels=16),
        # Divided among simulated hospitals; where the hospitals are real, each has its own here.
        data=kv.data.slot(kv.data.images, example=Path(__file__).parent / "data" / "pneumoniamnist.npz"),
        objective=kv.objectives.classification(),
        optimizer=kv.optimizers.sgd(lr=0.1),
        schedule=kv.schedules.constant(),
        global_batch=16,  # of each hospital's steps
        validate_every=5,  # rounds
    )
