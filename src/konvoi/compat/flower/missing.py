"""What Flower has and is not here, with the nearest way."""

from __future__ import annotations

from konvoi.errors import JobError

CLIENTS = "a NumPyClient that a client_fn returns: ClientApp(client_fn=...)"
SERVER = "ServerApp(server_fn=...) that returns ServerAppComponents(strategy=..., config=...)"
ROBUST = "kv.fedavg refuses updates that are not finite; rules against those that are wrong are not there yet"
PRIVATE = "differential privacy is not there yet"
MASKED = "sums of masked updates are not there yet"

MISSING = {
    **dict.fromkeys(("Client", "Message", "MessageType", "train", "evaluate", "query"), CLIENTS),
    **dict.fromkeys(("start_client", "start_numpy_client"), CLIENTS),
    **dict.fromkeys(("Grid", "Driver", "main", "Server", "start_server", "SimpleClientManager", "workflow"), SERVER),
    "Strategy": "a class that inherits from FedAvg",
    "FedOpt": "FedAdam, FedYogi or FedAdagrad",
    "start_simulation": "run_simulation(server_app, client_app, num_supernodes)",
    **dict.fromkeys(("Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg"), ROBUST),
    **dict.fromkeys(("QFedAvg", "FaultTolerantFedAvg"), "FedAvg, or a class that inherits from it"),
    **dict.fromkeys(("FedXgbBagging", "FedXgbCyclic", "FedXgbNnAvg"), "trees are not trained here"),
    **dict.fromkeys(("mods", "mod", "make_ffn", "lifespan"), "what it does, inside the client's own fit and evaluate"),
    **dict.fromkeys(("arrays_size_mod", "message_size_mod"), "what a site sends is listed in its outbox"),
    **dict.fromkeys(("LocalDpMod", "fixedclipping_mod", "adaptiveclipping_mod"), PRIVATE),
    **dict.fromkeys(("DifferentialPrivacyClientSideFixedClipping", "DPFedAvgFixed", "DPFedAvgAdaptive"), PRIVATE),
    **dict.fromkeys(("DifferentialPrivacyServerSideFixedClipping",), PRIVATE),
    **dict.fromkeys(("secagg_mod", "secaggplus_mod", "SecAggWorkflow", "SecAggPlusWorkflow"), MASKED),
}


def error_of(name: str) -> Exception:
    """For a name that is not here: a JobError where Flower has it, else an AttributeError.

    >>> print(error_of("Grid"))
    Flower's Grid is not in konvoi.compat.flower
      expected: ServerApp(server_fn=...) that returns ServerAppComponents(strategy=..., config=...)
      hint: docs/coming-from-flower-and-nvflare.md says what is
    """
    if name not in MISSING:
        return AttributeError(f"konvoi.compat.flower has no {name!r}")
    hint = "docs/coming-from-flower-and-nvflare.md says what is"
    return JobError(f"Flower's {name} is not in konvoi.compat.flower", expected=MISSING[name], hint=hint)
