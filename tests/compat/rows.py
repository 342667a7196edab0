"""Clients that workers can import."""

import os

import numpy as np

from konvoi.compat.flower import ArrayRecord, ClientApp, Context, MetricRecord, NumPyClient

SIZES = (3, 5, 2, 7)


class Client(NumPyClient):
    """Its data are one vector; a step goes half the way there."""

    def __init__(self, context: Context) -> None:
        self.partition = int(context.node_config["partition-id"])
        self.context = context
        self.there = np.arange(4.0) * (self.partition + 1)

    def get_parameters(self, config):
        return [np.full(4, 9.0)]

    def fit(self, parameters, config):
        if self.partition in config.get("fail", ()):
            raise ValueError("the disk is gone")
        if config.get("nan") == self.partition:
            parameters = [parameters[0] * np.nan]
        if config.get("shape") == self.partition:
            return [np.zeros(3)], 1, {}
        seen = self.context.state.metric_records.setdefault("seen", MetricRecord({"rounds": 0}))
        seen["rounds"] += 1
        self.context.state["last"] = ArrayRecord([self.there])
        parameters[0] += self.there  # written over: what was sent must not change
        metrics = {"rounds": seen["rounds"], "process": os.getpid(), "of": self.context.node_config["num-partitions"]}
        return [parameters[0] / 2], SIZES[self.partition], metrics | dict(self.context.run_config)

    def evaluate(self, parameters, config):
        if config.get("fail") == self.partition:
            raise ValueError("the disk is gone")
        return float(np.square(parameters[0] - self.there).sum()), SIZES[self.partition], {"one": 1.0}


def client_fn(context: Context):
    return Client(context).to_client()


APP = ClientApp(client_fn=client_fn)
