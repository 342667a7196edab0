"""The same clients in pfl-research's simulation, evaluation off, in so many processes of so many threads. Several are
started by torchrun, as its pages say."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import get_framework_module as get_ops
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

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main(folder: Path, threads: int, begun: float) -> None:
    torch.set_num_threads(threads)
    set_framework_module(pytorch_ops)
    work = _clients.read(folder)
    module = work.model()
    module.loss = lambda x, y, eval=False: F.cross_entropy(module(x), y)
    module.metrics = lambda x, y: {}
    order = iter(range(10**9))

    def user(number: int) -> Dataset:
        """A user's data lie in the order in which this round reads them."""
        round, client = divmod(number, work.num_clients)
        rows = torch.cat(work.batches[round][client])
        return Dataset((work.images[rows], work.labels[rows]), user_id=str(client))

    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    data = FederatedDataset(user, lambda: next(order))
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
    if get_ops().distributed.global_rank == 0:
        _clients.finish(folder, learnt, seconds, time.time() - begun - sum(seconds))


if __name__ == "__main__":
    folder, processes, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    begun = os.environ.setdefault("BEGUN", str(time.time()))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if processes > 1 and "RANK" not in os.environ:
        from torch.distributed.run import main as torchrun

        torchrun(["--standalone", f"--nproc-per-node={processes}", *sys.argv])
    else:
        main(Path(folder), threads, float(begun))
