"""One training run of `xray.py`: the data without doubles, what is done to an image, and the model that is asked at the
end.

All runs have one model in common, a small CNN with GroupNorm. What is held out is never trained on: `valid` chooses
settings, `test` is looked at where a trial asks for it, which those of a search do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _auc import auc

DATA = Path(__file__).parents[1] / "recipes" / "data" / "pneumoniamnist.npz"
HOSPITALS = 20
LEAST_STEPS = 200  # of a hospital that learns alone: those with few images get them more often

Array = NDArray[Any]


@dataclass(frozen=True)
class Augment:
    """An image moved, turned and enlarged by chance, and mirrored; what comes in from outside is its edge."""

    shift: float = 0.0  # pixels
    turn: float = 0.0  # degrees
    zoom: float = 0.0  # share
    gamma: float = 0.0  # standard deviation of the exponent's logarithm
    flip: bool = False

    def __call__(self, sample: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
        image = sample["inputs"]
        if self.turn or self.zoom:
            image = self._moved(image, rng)
        elif self.shift:
            down, right = rng.integers(-int(self.shift), int(self.shift) + 1, 2)
            rows, columns = np.arange(image.shape[1]), np.arange(image.shape[2])
            image = image[:, np.clip(rows + down, 0, rows[-1])[:, None], np.clip(columns + right, 0, columns[-1])]
        if self.flip and rng.random() < 0.5:
            image = image[:, :, ::-1]
        if self.gamma:
            image = image ** np.float32(np.exp(self.gamma * rng.standard_normal()))
        return {**sample, "inputs": np.ascontiguousarray(image)}

    def _moved(self, image: Array, rng: np.random.Generator) -> Array:
        """Bilinear, around the middle."""
        angle, scale = np.deg2rad(self.turn) * rng.uniform(-1, 1), 1 + self.zoom * rng.uniform(-1, 1)
        rows, columns = _grid(image.shape[1])
        middle = (image.shape[1] - 1) / 2
        down, right = self.shift * rng.uniform(-1, 1, 2)
        y = np.clip(scale * (np.cos(angle) * rows - np.sin(angle) * columns) + middle + down, 0, 2 * middle)
        x = np.clip(scale * (np.sin(angle) * rows + np.cos(angle) * columns) + middle + right, 0, 2 * middle)
        top, left = y.astype(np.int64), x.astype(np.int64)
        below, beside = np.minimum(top + 1, image.shape[1] - 1), np.minimum(left + 1, image.shape[2] - 1)
        dy, dx = (y - top).astype(np.float32), (x - left).astype(np.float32)
        upper = image[:, top, left] * (1 - dx) + image[:, top, beside] * dx
        lower = image[:, below, left] * (1 - dx) + image[:, below, beside] * dx
        moved: Array = upper * (1 - dy) + lower * dy
        return moved


@cache
def _grid(size: int) -> tuple[Array, Array]:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return rows, columns


AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "shift": Augment(shift=2, flip=True),
    "turn": Augment(shift=2, turn=10, zoom=0.1),
    "turn+flip": Augment(shift=2, turn=10, zoom=0.1, flip=True),
    "gamma": Augment(shift=2, turn=10, zoom=0.1, gamma=0.3),
    "strong": Augment(shift=3, turn=15, zoom=0.2, gamma=0.3, flip=True),
}


@dataclass(frozen=True)
class Weighted:
    """Cross entropy in which the rarer class may count more."""

    normals: float = 1.0
    smoothing: float = 0.0

    def __call__(self, model: Any, batch: Any) -> tuple[Any, Any]:
        import torch
        import torch.nn.functional as F

        logits, labels = model(batch["inputs"]), batch["labels"]
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
        weights = torch.where(labels == 0, self.normals, 1.0) * (labels >= 0)
        return (each * weights).sum(), weights.sum()

    def without(self, batch: Any, rows: Any) -> Any:
        """The batch, of which the samples where `rows` is true do not count."""
        return {**batch, "labels": batch["labels"].masked_fill(rows, -100)}


@dataclass(frozen=True)
class Trial:
    """`plan`: a federation as the command line has it; "": all images in one place; "alone": each hospital by itself.

    `told`: "valid" says how good it is on the validation split alone, "test" on the test split too, "scores" for every
    image of that.
    """

    plan: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: float = 0.0  # where there are no rounds
    batch: int = 32
    depth: int = 3
    channels: int = 16
    augment: str = "none"
    smoothing: float = 0.0
    normals: float = 1.0  # what an image without pneumonia counts
    schedule: str = "cosine"
    partition: str = ""
    seed: int = 0
    told: str = "valid"

    @property
    def id(self) -> str:
        return hashlib.blake2b(repr(self).encode(), digest_size=8).hexdigest()

    def run(self) -> dict[str, Any]:
        import torch

        from konvoi.fleet.crew import AgentHandle

        begin = time.time()
        torch.set_num_threads(1)
        parts = splits()
        with (
            tempfile.TemporaryDirectory(prefix="xray-") as folder,
            AgentHandle(("konvoi.loop", "konvoi.simulate_clients", "konvoi.state.shards")) as agent,
        ):
            keeping = {"folder": folder, "checkpoint_every": 0, "sinks": (), "agent": agent}
            models = self._alone(keeping) if self.plan == "alone" else [self._train(keeping)]
        found: dict[str, Any] = {"id": self.id, **dataclasses.asdict(self)}
        scores = {name: [scores_of(model, parts[name][0]) for model in models] for name in ("valid", "test")}
        for name in ("valid", "test") if self.told != "valid" else ("valid",):
            each = [auc(one, parts[name][1]) for one in scores[name]]
            found[f"{name}_auc"] = round(float(np.mean(each)), 6)
            if len(each) > 1:
                found[f"{name}_auc_each"] = [round(one, 4) for one in each]
        if self.told == "scores":
            found["scores"] = [round(float(score), 3) for score in scores["test"][0]]
        found |= {"seconds": round(time.time() - begin, 1), "date": time.strftime("%Y-%m-%d")}
        return found | {"torch": torch.__version__}

    def _train(self, keeping: dict[str, Any]) -> Any:
        import konvoi as kv
        from konvoi.plan.presets import parse

        plan = parse(f"|{self.plan}") if self.plan else None
        clients = partition(self.partition, self.seed) if plan else None
        fleet = kv.fleet.simulated(clients, 1, way="one by one", seed=self.seed) if clients else None
        job = self._job(Xrays(), federated=plan is not None)
        return kv.train(job, plan, fleet or kv.fleet.local(1), **keeping).model()

    def _alone(self, keeping: dict[str, Any]) -> list[Any]:
        """A model of each hospital's images, one after the other."""
        import konvoi as kv

        models = []
        for rows in partition(self.partition, self.seed).of(Xrays().prepare().train):
            job = self._job(Xrays(tuple(rows.tolist())), batch=min(self.batch, len(rows)))
            steps = max(LEAST_STEPS, round(self.epochs * len(rows) / job.global_batch))
            job = dataclasses.replace(job, epochs=None, steps=steps)
            models.append(kv.train(job, None, kv.fleet.local(1), **keeping).model())
        return models

    def _job(self, data: Xrays, *, federated: bool = False, batch: int = 0) -> Any:
        import konvoi as kv

        change = AUGMENTS[self.augment]
        nesterov = self.momentum > 0
        return kv.Job(
            model=kv.models.cnn(depth=self.depth, channels=self.channels),
            data=data if change is None else kv.data.map(data, change, valid=False),
            objective=Weighted(self.normals, self.smoothing),
            optimizer=kv.optimizers.sgd(
                lr=self.lr, momentum=self.momentum, nesterov=nesterov, weight_decay=self.weight_decay
            ),
            schedule=kv.schedules.constant() if self.schedule == "constant" else kv.schedules.cosine(warmup=0.05),
            global_batch=batch or self.batch,
            epochs=None if federated else self.epochs,
            clip_grad_norm=None,
            validate_every=0,
            seed=self.seed,
        )


def partition(text: str, seed: int) -> Any:
    """Who has what, by name: `dirichlet:0.3`.

    >>> partition("dirichlet:0.3", 1).describe()["alpha"]
    0.3
    """
    import konvoi as kv

    name, _, value = text.partition(":")
    if name == "iid":
        return kv.data.iid(clients=HOSPITALS, seed=seed)
    if name == "shards":
        return kv.data.shards(clients=HOSPITALS, each=int(value), seed=seed)
    return kv.data.dirichlet(clients=HOSPITALS, alpha=float(value), seed=seed)


def scores_of(model: Any, images: Array) -> Array:
    """How much likelier a model finds pneumonia than none, in nats."""
    import torch

    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images)).double()
    return (logits[:, 1] - logits[:, 0]).numpy()  # type: ignore[no-any-return]


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Xrays:
    """The training and the validation split; `rows` of the former, where they are not all."""

    rows: tuple[int, ...] | None = None

    def prepare(self) -> Any:
        from konvoi.job.data.tensors import Arrays
        from konvoi.values import DataSpec, Splits

        parts = splits()
        (images, labels), valid = parts["train"], parts["valid"]
        rows = slice(None) if self.rows is None else list(self.rows)
        train = Arrays({"inputs": images[rows], "labels": labels[rows]})
        held_out = Arrays({"inputs": valid[0], "labels": valid[1]})
        spec = DataSpec(num_classes=2, input_shape=tuple(images.shape[1:]))
        return Splits(train, held_out, spec, {"source": DATA.name, "train_samples": len(train)})


@cache
def splits() -> dict[str, tuple[Array, Array]]:
    """Images (n, 1, 28, 28) from 0 to 1, and labels (n,): 0 is normal, 1 pneumonia."""
    archive = np.load(DATA)
    found = {}
    for name, stored in (("train", "train"), ("valid", "val"), ("test", "test")):
        images, labels = archive[f"{stored}_images"], archive[f"{stored}_labels"].reshape(-1).astype(np.int64)
        rows = kept()[0] if name == "train" else slice(None)
        found[name] = (images[rows, None].astype(np.float32) / 255, labels[rows])
    return found


@cache
def kept() -> tuple[Array, dict[str, int]]:
    """Rows of the training split that are neither in another one nor in it already; and how many are left out."""
    from konvoi.job.data.doubles import digest, without_doubles

    archive = np.load(DATA)
    marks = {
        name: [digest(image.tobytes()) for image in archive[f"{name}_images"]] for name in ("train", "val", "test")
    }
    rows, counts = without_doubles(marks)
    first = {marks["train"][row]: row for row in rows["train"][::-1].tolist()}
    once = np.sort(np.array([*first.values()]))
    told = {
        "left_out_across_splits": counts["left_out_of_train"],
        "left_out_within_train": len(rows["train"]) - len(once),
        "doubles_within_test": counts["inside_test"],
    }
    return once, told
