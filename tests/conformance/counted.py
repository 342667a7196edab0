"""A row that also says whether anything was compiled."""

import torch._dynamo

from konvoi.proof import trace


def graphs(place, payload):
    """The trace, and the number of graphs that this row made torch.compile build."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = trace(place, payload)
    return found, torch._dynamo.utils.counters["stats"]["unique_graphs"], dict(torch._dynamo.utils.counters["graph_break"])
