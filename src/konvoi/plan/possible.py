"""What a convoy can be, and what cannot be together in one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from konvoi.errors import PlanError, did_you_mean
from konvoi.plan.sync.state import Rules

if TYPE_CHECKING:
    from konvoi.plan.convoy import Convoy

PACES = ("steps", "time")
UPDATES = ("moves", "gradients")
PARTNERS = ("all", "pairs")
OUTER = ("sgd", "adam", "yogi", "adagrad")
HELPER = re.compile(r"(?!island-)[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # a folder's name, too


def check(plan: Convoy) -> None:
    """Raises: PlanError, with the nearest plan that can be."""
    least_of = {"every": 1, "fragments": 1, "ahead": 0, "at_once": 0, "max_staleness": 0, "rounds": 0, "cohort": 0}
    for name, least in least_of.items():
        value = getattr(plan, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise PlanError(f"{name} is a number of at least {least}", found=repr(value))
    if plan.updates not in UPDATES:
        raise PlanError(
            "an update is a move or a gradient", found=plan.updates, hint=did_you_mean(plan.updates, UPDATES)
        )
    if plan.pace not in PACES:
        raise PlanError("rounds go by steps or by time", found=plan.pace, hint=did_you_mean(plan.pace, PACES))
    if plan.pace == "time" and (plan.servers or plan.deciders or plan.is_quick):
        raise PlanError("rounds by time are of islands that agree all with all", found=", ".join(plan.describe()))
    ranges = (("feedback", 1), ("max_comm_fraction", 1), ("outer_momentum", 0.9999), ("quorum", 1), ("damping", 8))
    for name, high in ranges:
        if not 0 <= getattr(plan, name) <= high:
            raise PlanError(f"{name} lies between 0 and {high}", found=repr(getattr(plan, name)))
    for name in ("outer_lr", "patience_s"):
        if not getattr(plan, name) > 0:
            raise PlanError(f"{name} is above 0", found=repr(getattr(plan, name)))
    if not plan.deadline_s >= 0:
        raise PlanError("deadline_s is at least 0", found=repr(plan.deadline_s))
    if plan.partners not in PARTNERS:
        hint = did_you_mean(plan.partners, PARTNERS)
        raise PlanError("islands agree all with all, or in pairs", found=plan.partners, hint=hint)
    allowed = {"every", "ahead", "compression", "partners"}
    if plan.partners == "pairs" and (others := sorted(plan.describe().keys() - allowed)):
        raise PlanError("pairs take the mean of their weights, and nothing else", found=", ".join(others))
    if plan.servers and plan.witness:
        raise PlanError("a witness is for islands that decide by themselves", found=f"servers={plan.servers}")
    if plan.deciders and (plan.helpers or plan.partners == "pairs" or len({*plan.deciders}) < len(plan.deciders)):
        found = ", ".join(plan.describe())
        raise PlanError("deciders are islands of a convoy that decides by itself", found=found)
    if len({*plan.helpers}) < len(plan.helpers) or not all(map(HELPER.fullmatch, plan.helpers)):
        found = "+".join(plan.helpers)
        raise PlanError("who helps has a name of its own", found=found, expected="letters, digits, - and _")
    if plan.max_staleness >= Rules.kept:
        raise PlanError("max_staleness is too large", found=plan.max_staleness, expected=f"below {Rules.kept}")
    if plan.at_once and plan.fragments > 1:
        found = f"at_once={plan.at_once}, fragments={plan.fragments}"
        raise PlanError("an update that is taken by itself is whole", found=found)
    if plan.updates == "gradients" and (plan.outer_lr, plan.outer_momentum) != (1.0, 0.0):
        raise PlanError(
            "gradients are stepped with by the job's optimizer",
            found=f"outer_lr={plan.outer_lr}, outer_momentum={plan.outer_momentum}",
            hint='updates="moves", or leave the outer step at 1 and 0',
        )
    if plan.updates == "gradients" and plan.fragments > 1:
        raise PlanError("gradients agree whole", found=f"fragments={plan.fragments}", hint='updates="moves"')
    if plan.every % plan.fragments:
        raise PlanError(
            "fragments agree in turn, at equal distances",
            found=f"fragments={plan.fragments} in {plan.every} steps",
            hint=f"every={-(-plan.every // plan.fragments) * plan.fragments}",
        )
    _check_outer(plan)
    _check_federation(plan)


def _check_outer(plan: Convoy) -> None:
    if plan.outer not in OUTER:
        raise PlanError("unknown outer step", found=plan.outer, hint=did_you_mean(plan.outer, OUTER))
    if not 0 <= plan.outer_beta2 < 1:
        raise PlanError("outer_beta2 lies between 0 and 1", found=repr(plan.outer_beta2))
    if not plan.outer_eps > 0:
        raise PlanError("outer_eps is above 0", found=repr(plan.outer_eps))
    if plan.outer != "sgd" and plan.local is None:
        raise PlanError(
            "an adaptive outer step is of federations, so far", found=f"outer={plan.outer}", hint="kv.fedadam()"
        )


def _check_federation(plan: Convoy) -> None:
    local = plan.local
    if local is None:
        if plan.rounds or plan.cohort:
            found = f"rounds={plan.rounds}, cohort={plan.cohort}"
            raise PlanError("rounds and cohorts are of federations", found=found, hint="kv.fedavg(rounds=50)")
        return
    if plan.rounds < 1:
        raise PlanError("a federation has a number of rounds", found=f"rounds={plan.rounds}", hint="rounds=50")
    elsewhere = {"every", "pace", "updates", "fragments", "ahead", "max_comm_fraction", "partners", "deciders"}
    if others := sorted(plan.describe().keys() & elsewhere):
        raise PlanError("members with data of their own agree by rounds, whole", found=", ".join(others))
    if local.controls and (plan.at_once or plan.outer != "sgd"):
        raise PlanError(
            "controls go with rounds in which all wait, and a plain outer step", found=", ".join(plan.describe())
        )
    if plan.cohort and plan.at_once > plan.cohort:
        found = f"at_once={plan.at_once}, cohort={plan.cohort}"
        raise PlanError("more updates at once than members that train", found=found)
