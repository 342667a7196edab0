"""`Context`, and the records that a client keeps in its state from round to round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konvoi.compat.flower.values import NDArrays, Scalar, copies


class ConfigRecord(dict[str, Any]):
    """Settings by name.

    >>> ConfigRecord({"lr": 0.1})["lr"]
    0.1
    """


class MetricRecord(dict[str, Any]):
    """Numbers by name.

    >>> MetricRecord({"seen": 3})["seen"]
    3
    """


class ArrayRecord(dict[str, NDArray[Any]]):
    """Arrays by name: of a list, whose names are its places, or of a mapping, e.g. a module's `state_dict()`.

    >>> ArrayRecord([np.zeros(2)]).to_numpy_ndarrays()
    [array([0., 0.])]
    """

    def __init__(self, arrays: Sequence[Any] | Mapping[str, Any] = ()) -> None:
        named = arrays.items() if isinstance(arrays, Mapping) else ((str(n), one) for n, one in enumerate(arrays))
        super().__init__({name: np.array(np.asarray(one)) for name, one in named})

    def to_numpy_ndarrays(self) -> NDArrays:
        return copies(self.values())

    def to_torch_state_dict(self) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(np.array(one)) for name, one in self.items()}


class RecordDict(dict[str, Any]):
    """Records by name; of one kind alone, too, which is the same records.

    >>> state = RecordDict()
    >>> state.metric_records["rounds"] = MetricRecord({"number": 2})
    >>> state["rounds"]["number"], "rounds" in state.config_records
    (2, False)
    """

    @property
    def array_records(self) -> MutableMapping[str, Any]:
        return _OfKind(self, ArrayRecord)

    @property
    def metric_records(self) -> MutableMapping[str, Any]:
        return _OfKind(self, MetricRecord)

    @property
    def config_records(self) -> MutableMapping[str, Any]:
        return _OfKind(self, ConfigRecord)


@dataclass
class _OfKind(MutableMapping[str, Any]):
    whole: RecordDict
    kind: type

    def __getitem__(self, name: str) -> Any:
        if isinstance(found := self.whole[name], self.kind):
            return found
        raise KeyError(name)

    def __setitem__(self, name: str, record: Any) -> None:
        if not isinstance(record, self.kind):
            raise TypeError(f"a {self.kind.__name__} is expected, and not {type(record).__name__}")
        self.whole[name] = record

    def __delitem__(self, name: str) -> None:
        self[name]
        del self.whole[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, one in self.whole.items() if isinstance(one, self.kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass
class Context:
    """What an app is told of where it runs. A client has its own, the same in every round: what it puts into `state` is
    there again. `node_config` holds "partition-id" and "num-partitions".

    >>> Context(node_config={"partition-id": 1, "num-partitions": 4}).node_config["partition-id"]
    1
    """

    run_id: int = 0
    node_id: int = 0
    node_config: dict[str, Scalar] = field(default_factory=dict)
    state: RecordDict = field(default_factory=RecordDict)
    run_config: dict[str, Scalar] = field(default_factory=dict)
