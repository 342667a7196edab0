"""The convoy as a value: islands that agree now and then."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from konvoi.errors import PlanError
from konvoi.plan.compress import none
from konvoi.plan.compress.codec import Codec
from konvoi.plan.compress.ladder import Ladder
from konvoi.plan.island import Island
from konvoi.plan.local import Local
from konvoi.plan.possible import check
from konvoi.plan.sync.messages import Decision
from konvoi.plan.sync.state import Rules

KEPT_WHERE_QUICK = 16  # decisions, with their encoded sums


@dataclass(frozen=True, kw_only=True)
class Convoy:
    """How islands agree. Each trains for `every` steps; what it sends is its update; the weighted mean of the updates
    is decided, and all go on from the same weights.

    - `every`: steps from one agreement to the next.
    - `pace`: "steps", an island's update has that many; or "time", when the first has taken them, the others send
      what they have done by then, which weighs as much less: for islands of unequal speed.
    - `updates`: "moves", how far an island's weights have come from what was agreed; or "gradients", their mean over
      these steps, with which the job's optimizer then steps everywhere alike: behind the agreement, so that evaluations
      in between are of the weights before it.
    - `compression`: of what is sent, in both directions (`kv.compress`).
    - `feedback`: the share of what compression has left out that goes into the next update (arXiv 1901.09847).
    - `outer_lr`, `outer_momentum`: the step that is taken along the mean move, with Nesterov's momentum (arXiv
      2311.08105). 1 and 0 is plain averaging.
    - `fragments`: parts of the model that agree in turn, each every `every` steps (arXiv 2501.18512).
    - `ahead`: steps that may be taken while an agreement is on its way; then an island waits for it.
    - `max_comm_fraction`: the share of a round that an exchange may take. Rounds get as long, and as short, as that
      wants, from what the islands measure; and with `compression=ladder()` the bits of a value as many. 0: all stays
      as it is.
    - `servers`: names of processes that add up and decide, instead of the islands themselves.
    - `deciders`: the islands that vote, as a tie between two is broken by one; none: all do. An island alone goes on
      where it has their majority, and else waits for the others after `ahead` steps.
    - `witness`: a third process without model or data, which breaks the tie of two islands.
    - `quorum`, `deadline_s`: so long after the first update, that share of the islands is enough; the others' work
      counts in the next round.
    - `partners`: "all" agree with all; or "pairs", two at a time that take the mean of their weights (gossip).
    - `at_once`: updates that are added up at most, the stalest of those that are there first; 1 is asynchronous, 0
      takes all there are.
    - `damping`: an update counts (1 + staleness)^-damping of what it is, where staleness is the number of decisions
      that were taken since its member's last one (arXiv 1903.03934, polynomial).
    - `rounds`, `cohort`, `local`: of a federation, whose members have data of their own: how many agreements there are,
      how many members train for each (0: all), and what each does for it, in place of `every` steps.
    - `outer`: the rule of the outer step: "sgd", or "adam", "yogi", "adagrad" with `outer_momentum` as their first
      beta, `outer_beta2` and `outer_eps` (arXiv 2003.00295, algorithm 2).
    - `max_staleness`: islands as stale as this are waited for, for `patience_s` and while they are within reach; 0
      waits for none (Ho et al., NeurIPS 2013).

    >>> Convoy(every=50).describe()
    {'every': 50}
    """

    every: int = 100
    pace: str = "steps"
    updates: str = "moves"
    compression: Codec = field(default_factory=none)
    feedback: float = 1.0
    outer_lr: float = 1.0
    outer_momentum: float = 0.0
    fragments: int = 1
    ahead: int = 0
    max_comm_fraction: float = 0.0
    servers: tuple[str, ...] = ()
    witness: str = ""
    deciders: tuple[str, ...] = ()
    quorum: float = 0.5
    deadline_s: float = 30.0
    patience_s: float = 60.0
    partners: str = "all"
    at_once: int = 0
    damping: float = 0.0
    max_staleness: int = 0
    rounds: int = 0
    cohort: int = 0
    local: Local | None = None
    outer: str = "sgd"
    outer_beta2: float = 0.99
    outer_eps: float = 1e-3

    def __post_init__(self) -> None:
        """Raises: PlanError."""
        check(self)

    def __ror__(self, island: Island) -> Plan:
        """
        >>> (Island(dp=2) | Convoy(every=50)).convoy.every
        50
        """
        return Plan(island, self) if isinstance(island, Island) else NotImplemented

    @property
    def num_workers(self) -> int:
        """Of each island, where the convoy is the whole plan."""
        return 1

    @property
    def steps_per_round(self) -> int:
        return self.every // self.fragments

    @property
    def helpers(self) -> tuple[str, ...]:
        """Those who have no data: servers, and the witness."""
        return (*self.servers, *((self.witness,) if self.witness else ()))

    def voters(self, islands: tuple[str, ...]) -> tuple[str, ...]:
        """Who decides at first. Raises: PlanError for deciders that are no islands."""
        if strangers := sorted({*self.deciders} - {*islands}):
            raise PlanError("deciders are islands", found=", ".join(strangers), expected=", ".join(islands))
        own = self.servers or self.deciders or islands
        return (*own, self.witness) if self.witness else own

    @property
    def is_quick(self) -> bool:
        """Whether a decision may be a single island's: there are as many more of them, and nobody waits for all."""
        return bool(self.at_once) or not self.deadline_s

    def step_of(self, decision: Decision, global_batch: int) -> int:
        """How far the convoy's schedule has come: where nobody waits for all, as far as its data."""
        if self.is_quick:
            return decision.samples // global_batch
        return decision.steps

    def rules(self, num_parts: int, lease: int) -> Rules:
        """What the machine goes by. `lease`: samples that an island reads in a round."""
        return Rules(
            every=self.steps_per_round,
            fragments=self.fragments,
            by_time=self.pace == "time",
            num_parts=num_parts,
            lease=lease,
            quorum=self.quorum,
            deadline_s=self.deadline_s,
            patience_s=self.patience_s,
            at_once=self.at_once,
            max_staleness=self.max_staleness,
            max_comm_fraction=self.max_comm_fraction,
            rungs=self.compression.sizes() if isinstance(self.compression, Ladder) else (),
            max_ahead=self.ahead,
            kept=KEPT_WHERE_QUICK if self.is_quick else Rules.kept,
            servers=self.servers,
            witness=self.witness,
            deciders=self.deciders,
        )

    @property
    def what_only_train_can(self) -> str:
        """What of this plan neither federations nor programs with their own loop can do yet."""
        asked = {"updates=gradients": self.updates == "gradients", ", ".join(self.helpers): bool(self.helpers)}
        return ", ".join(name for name, whether in asked.items() if whether)

    def derived(self, batch: int, num_steps: int) -> tuple[str, ...]:
        """What this length and an island's share of the batch decide, as a person reads it.

        >>> Convoy(every=16).derived(8, 160)
        ('convoy: an agreement every 16 steps, 10 in all; an island reads 8 samples a step',)
        """
        number = num_steps // self.steps_per_round
        each = f"an agreement every {self.steps_per_round} steps, {number} in all"
        return (f"convoy: {each}; an island reads {batch} samples a step",)

    def describe(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        default = Convoy()
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in changed.items() if value != getattr(default, name)}

    @property
    def hash(self) -> str:
        """Of everything that decides what is learnt, and what is sent; a field that comes to this class later changes
        no plan's that does not use it."""
        return hashlib.blake2b(repr(sorted(self.describe().items())).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Plan:
    """Islands, and how they agree: `kv.Island(fsdp=8) | kv.diloco(every=100)`."""

    island: Island
    convoy: Convoy

    @property
    def num_workers(self) -> int:
        """Of each island."""
        return self.island.num_workers
