"""The same clients in pfl-research's simulation, evaluation off, one process for each core."""

import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import set_framework_module
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

sys.path.insert(0, str(Path(__file__).parents[1]))
import _clients


class Clock(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.ends = []

    def on_train_begin(self, *, model):
        self.ends.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_context):
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main(folder: Path, threads: int) -> None:
    begun = time.time()
    torch.set_num_threads(threads)
    set_framework_module(pytorch_ops)
    work = _clients.read(folder)
    module = work.model()
    module.loss = lambda x, y, eval=False: F.cross_entropy(module(x), y)
    module.metrics = lambda x, y: {}
    asked = Counter()
    order = iter(range(10**9))

    def user(client: int) -> Dataset:
        """A user's data lie in the order in which this round reads them."""
        number, asked[client] = asked[client], asked[client] + 1
        rows = torch.cat(work.batches[number][client])
        return Dataset((work.images[rows], work.labels[rows]), user_id=str(client))

    sampler = lambda: next(order) % work.num_clients  # noqa: E731
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    data = FederatedDataset(user, sampler)
    clock = Clock()
    size = len(work.batches[0][0][0])
    FederatedAveraging().run(
        NNAlgorithmParams(len(work.batches), 10**9, work.num_clients, None),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_batch_size=size, local_num_epochs=1, local_learning_rate=_clients.LR, local_num_steps=None
        ),
        NNEvalHyperParams(local_batch_size=size),
        [clock],
        send_metrics_to_platform=False,
    )
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    learnt = {name: p.detach().clone() for name, p in module.named_parameters()}
    _clients.finish(folder, learnt, seconds, time.time() - begun - sum(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
