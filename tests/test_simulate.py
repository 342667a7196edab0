"""Convoys compute what their papers say, and at every step what one process computes: on the real machine, with real
models, in one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from konvoi.convoy import LiveConvoy
from konvoi.errors import FleetError, NonFiniteError, PlanError
from konvoi.fleet.wire.memory import Hub
from konvoi.fleet.worker import Place
from konvoi.island import LiveIsland
from konvoi.job import optimizers
from konvoi.job.data.loader import Leased
from konvoi.job.job import prepare
from konvoi.joining import Library, Newcomer
from konvoi.learner import Learner
from konvoi.parcels import Parcels
from konvoi.plan import compress
from konvoi.plan.convoy import Convoy
from konvoi.plan.exchange.anchor import Anchor
from konvoi.plan.exchange.chunks import hashed
from konvoi.plan.exchange.layout import Layout
from konvoi.plan.island import Island
from konvoi.plan.presets import async_sgd, decoupled_momentum, diloco, local_sgd, parameter_server, streaming_diloco
from konvoi.plan.sync import events as ev
from konvoi.plan.sync.messages import Decision
from konvoi.proof import trace
from konvoi.proof.cases import case
from konvoi.simulate import Simulation
from konvoi.state.journal import Journal

EXACT = Island(precision="fp64")


def run(job, plan, num_islands=3, steps=None):
    simulation = Simulation(prepare(job), plan, num_islands, island=EXACT)
    for _ in simulation.run(steps):
        pass
    return simulation


def whole(one):
    return {name: p.double().numpy() for name, p in one.parameters.items()}


def assert_close(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name in expected:
        size = max(np.abs(expected[name]).max(), 1e-12)
        assert np.abs(found[name] - expected[name]).max() / size < tolerance, name


# -- every step: what one process computes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [Convoy(every=1, updates="gradients"), parameter_server(), parameter_server(servers=("s", "t"))],
    ids=["all with all", "server", "two servers"],
)
@pytest.mark.parametrize("name", ["gpt ragged", "cnn"])
def test_gradients_at_every_step_are_data_parallelism(plan, name):
    found = case(name)
    expected = trace(Place(0, 1), (found, EXACT))
    for one in run(found.job, plan).islands:
        assert_close(whole(one), expected.weights)


def test_moves_at_every_step_are_data_parallelism_where_the_optimizer_is_linear():
    found = case("gpt ragged", optimizer=optimizers.sgd(lr=0.3), clip_grad_norm=None)
    expected = trace(Place(0, 1), (found, EXACT))
    for one in run(found.job, local_sgd(every=1)).islands:
        assert_close(whole(one), expected.weights)


def test_gradients_of_several_steps_are_one_larger_batch():
    plan = Convoy(every=2, updates="gradients")
    small = case("gpt ragged", steps=8)
    large = replace(small, job=replace(small.job, global_batch=24, steps=4))
    expected = trace(Place(0, 1), (large, EXACT))
    for one in run(small.job, plan).islands:
        assert_close(whole(one), expected.weights)


# -- presets, and their papers' algorithms written straight ------------------------------------------------------------


class Twin:
    """An island as the papers see it: a model, its inner optimizer, and the next of its samples."""

    def __init__(self, job, batch):
        prepared = prepare(job)
        self.job, self.batch = prepared.job, batch
        self.island = LiveIsland(Place(0, 1), EXACT, torch.device("cpu"), None)
        self.parts = self.island.split(self.job.model, self.job.objective, seed=job.seed)
        self.learner = Learner(self.job, self.parts, prepared.num_steps)
        self.batches = Leased(prepared.splits.train, seed=job.seed)
        self.weight = 0.0

    def step(self, number, start):
        gradient = self.island.forward_backward(
            self.parts, [self.island.to_device(m) for m in self.batches.read([(start, start + self.batch)])]
        )
        self.learner.lr(number)
        self.island.clip(self.parts, gradient, self.job.clip_grad_norm)
        self.learner.step()
        self.weight += gradient.weight

    @property
    def weights(self):
        return [p.detach() for p in self.learner.parameters.values()]


@torch.no_grad()
def diloco_twin(job, num_islands, every, lr, momentum, steps):
    """arXiv 2311.08105, algorithm 1; the mean weighted by tokens. Outer optimizer: torch's own Nesterov."""
    batch = job.global_batch // num_islands
    twins = [Twin(job, batch) for _ in range(num_islands)]
    shared = [torch.nn.Parameter(w.clone()) for w in twins[0].weights]
    outer = torch.optim.SGD(shared, lr=lr, momentum=momentum, nesterov=momentum > 0)
    for begin in range(0, steps, every):
        for number, twin in enumerate(twins):
            twin.weight = 0.0
            for h in range(every):
                start = begin * job.global_batch + number * every * batch + h * batch
                with torch.enable_grad():
                    twin.step(begin + h + 1, start)
        total = sum(twin.weight for twin in twins)
        for n, theta in enumerate(shared):
            theta.grad = sum((theta - twin.weights[n]) * (twin.weight / total) for twin in twins)
        outer.step()
        for twin in twins:
            for mine, theta in zip(twin.weights, shared, strict=True):
                mine.copy_(theta)
    names = twins[0].learner.parameters
    return {name: theta.detach().numpy() for name, theta in zip(names, shared, strict=True)}


@pytest.mark.parametrize(
    ("plan", "lr", "momentum"),
    [(local_sgd(every=4), 1.0, 0.0), (diloco(every=4), 0.7, 0.9), (diloco(every=4, servers=("s",)), 0.7, 0.9)],
    ids=["local_sgd", "diloco", "diloco by a server"],
)
def test_a_preset_is_its_papers_algorithm(plan, lr, momentum):
    job = case("gpt ragged", steps=12).job
    expected = diloco_twin(job, 3, 4, lr, momentum, 12)
    for one in run(job, plan).islands:
        assert_close(whole(one), expected)


def record(simulation):
    """What happens on each island, in order: steps with what they read, snapshots, and what is applied."""
    log = []

    def tell(number, one):
        read, anchor = one.batches.read, one.convoy.anchor
        snapshot, go_on = anchor.snapshot, one.convoy._go_on

        def reading(ranges):
            log.append(("step", number, read(ranges)))
            return log[-1][2]

        def snapping(*given):
            log.append(("snapshot", number, None))
            return snapshot(*given)

        def going_on(action, is_own, mean):
            if mean is not None:
                (update,) = action.decision.updates
                log.append(("apply", number, (action.decision.round, int(update.member[-1]))))
            return go_on(action, is_own, mean)

        one.batches.read, anchor.snapshot, one.convoy._go_on = reading, snapping, going_on

    for number, one in enumerate(simulation.islands):
        tell(number, one)
    return log


@torch.no_grad()
def async_twin(job, log, num_islands, lr, damping):
    """Gradients at stale weights, each taken by itself and damped by its staleness: the server of Dean et al., 2012,
    with the polynomial of arXiv 1903.03934, section 5.2. An island's weights are the newest that it has heard of, and
    its own steps that the server has not."""
    twin = Twin(job, job.global_batch // num_islands)
    first = [w.clone() for w in twin.weights]
    server, counted_at = [first], dict.fromkeys(range(num_islands), 0)
    own, sent = ([[torch.zeros_like(w) for w in first] for _ in range(num_islands)] for _ in range(2))
    heard = dict.fromkeys(range(num_islands), 0)
    staleness = []
    for what, who, told in log:
        if what == "step":
            for weight, agreed, mine in zip(twin.weights, server[heard[who]], own[who], strict=True):
                weight.copy_(agreed - mine)
            with torch.enable_grad():
                (item,) = told
                loss, weight = job.objective(twin.parts.modules[0], item.batch)
                gradients = torch.autograd.grad(loss / weight, [*twin.learner.parameters.values()])
            own[who] = [mine + lr * g for mine, g in zip(own[who], gradients, strict=True)]
        elif what == "snapshot":
            sent[who] = own[who]
        else:
            round, member = told
            if round == len(server):  # the first to hear of it
                staleness.append(round - 1 - counted_at[member])
                counted_at[member] = round
                factor = (1 + staleness[-1]) ** -damping
                server.append([w - factor * update for w, update in zip(server[-1], sent[member], strict=True)])
            if member == who:
                own[who] = [mine - update for mine, update in zip(own[who], sent[who], strict=True)]
            heard[who] = round
    return server, staleness


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_asynchronous_steps_are_gradients_at_stale_weights(damping):
    job = case("gpt ragged", steps=12, optimizer=optimizers.sgd(lr=0.2), clip_grad_norm=None).job
    simulation = Simulation(prepare(job), async_sgd(damping=damping), 3, island=EXACT)
    log = record(simulation)
    for _ in simulation.run():
        pass
    simulation.agree()
    server, staleness = async_twin(job, log, 3, 0.2, damping)
    assert len(server) > 12
    assert max(staleness) >= 2
    (one,) = simulation.islands[0].convoy.anchor.fragments
    expected = torch.cat([w.reshape(-1) for w in server[simulation.islands[0].convoy.state.last.round]])
    torch.testing.assert_close(one.agreed, expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def decoupled_momentum_twin(job, num_islands, codec, beta, lr, steps):
    """arXiv 2411.19870, algorithm 1: a momentum of each island's own, of which what is strong is taken out and sent,
    and the sign of the sum is the step. Here the sum is encoded once more, and what that leaves out is kept as the
    islands keep theirs."""
    batch = job.global_batch // num_islands
    twin = Twin(job, batch)
    weights = [*twin.learner.parameters.values()]
    layout = Layout.of({str(n): w.shape for n, w in enumerate(weights)}, fragments=1, num_parts=num_islands)
    sizes = [stop - start for start, stop in layout.parts(0)]

    def told(vector):
        return torch.cat([codec.decode(codec.encode(part), part) for part in vector.split(sizes)])

    momenta, of_sum = [torch.zeros(sum(sizes), dtype=torch.float64) for _ in range(num_islands)], 0.0
    for step in range(steps):
        sent, counted = [], []
        for number in range(num_islands):
            start = (step * num_islands + number) * batch
            (item,) = twin.batches.read([(start, start + batch)])
            with torch.enable_grad():
                loss, weight = job.objective(twin.parts.modules[0], item.batch)
                gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss / weight, weights)])
            momenta[number] = beta * momenta[number] + gradient
            sent.append(told(momenta[number]))
            momenta[number] -= sent[-1]
            counted.append(float(weight))
        mean = sum(w / sum(counted) * one for w, one in zip(counted, sent, strict=True)) + beta * of_sum
        decided = told(mean)
        of_sum = mean - decided
        for weight, direction in zip(weights, decided.split([w.numel() for w in weights]), strict=True):
            weight.sub_(lr * direction.sign().view_as(weight))
    return {name: w.detach().numpy() for name, w in twin.learner.parameters.items()}


def test_decoupled_momentum_is_its_papers_algorithm():
    sign = optimizers.adamw(lr=0.01, betas=(0.0, 0.0), eps=1e-30, weight_decay=0.0)
    job = case("gpt ragged", steps=3, optimizer=sign, clip_grad_norm=None).job
    plan = decoupled_momentum(momentum=0.9, number=200)
    # Few steps: where signs decide, a last digit is a step before long.
    expected = decoupled_momentum_twin(job, 3, plan.compression, 0.9, 0.01, 3)
    for one in run(job, plan).islands:
        assert_close(whole(one), expected, 1e-6)


def test_fragments_agree_in_turn():
    job = case("gpt ragged", steps=12).job
    simulation = run(job, streaming_diloco(every=4, fragments=2, outer_lr=0.9, outer_momentum=0.5))
    first = simulation.islands[0].convoy.anchor
    before = simulation.islands[0].convoy.state.last.round
    simulation.agree()
    assert before >= 3  # each comes as late as may be, and a step of its own later
    assert simulation.islands[0].convoy.state.last.round > before + 1
    for one in simulation.islands[1:]:
        for mine, other in zip(one.convoy.anchor.fragments, first.fragments, strict=True):
            assert torch.equal(mine.agreed, other.agreed)


@pytest.mark.parametrize(
    "plan",
    [
        Convoy(every=5),
        Convoy(every=5, ahead=3),
        Convoy(every=4, fragments=2, ahead=1),
        Convoy(every=3, fragments=3),
        Convoy(every=5, servers=("server",)),
        async_sgd(),
        Convoy(every=7, updates="gradients"),
    ],
    ids=repr,
)
def test_at_the_end_all_that_was_done_is_agreed_on(plan):
    """Before anything is loaded: what a run saves are these weights."""
    simulation = run(case("gpt ragged", steps=13).job, plan)
    for one in simulation.islands:
        one.convoy.anchor.load = lambda vectors: None
    simulation.agree()
    last = simulation.islands[0].convoy.state.last
    assert last.samples == 13 * simulation.batch * len(simulation.islands)
    first, *others = (whole(one) for one in simulation.islands)
    for other in others:
        assert all(np.array_equal(first[name], other[name]) for name in first)


# -- agreement ---------------------------------------------------------------------------------------------------------


CODECS = [
    compress.none(),
    compress.int8(),
    compress.low_bit(2),
    compress.top_k(0.1),
    compress.largest_of(8),
    compress.frequencies(64),
    compress.power_sgd(2),
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("outer", [(1.0, 0.0), (0.7, 0.9)], ids=str)
def test_all_islands_are_equal_bit_by_bit_after_each_decision(codec, outer):
    plan = Convoy(every=2, compression=codec, outer_lr=outer[0], outer_momentum=outer[1])
    job = case("gpt ragged", steps=12).job
    simulation = Simulation(prepare(job), plan, 3, island=Island())
    for step in simulation.run():
        if step % 2 == 0:
            first, *others = [whole(one) for one in simulation.islands]
            for other in others:
                assert all(np.array_equal(other[name], first[name]) for name in first)
    assert simulation.islands[0].convoy.state.last.round == 6


def test_what_compression_leaves_out_is_sent_later():
    """With feedback, the sum of what was sent keeps up with the sum of the moves; without, it falls behind."""
    job = case("mlp", steps=12, optimizer=optimizers.sgd(lr=0.05)).job
    exact = whole(run(job, Convoy(every=1)).islands[0])

    def distance(**changes):
        found = whole(run(job, Convoy(every=1, compression=compress.top_k(0.05), **changes)).islands[0])
        return sum(np.square(found[name] - exact[name]).sum() for name in exact)

    assert distance(feedback=1.0) < 0.5 * distance(feedback=0.0)


# -- an island that dies, and comes back -------------------------------------------------------------------------------


def comes_back(simulation, dead, folder):
    """Another process in the dead one's place, with its journal and an empty model."""
    for parameter in dead.parameters.values():
        parameter.zero_()
    old, plan = dead.convoy, simulation.plan
    anchor = Anchor(dead.parameters, plan, old.state.rules.num_parts)
    names = tuple(f"island-{number}" for number in range(old.state.rules.num_parts))
    first = Decision.first(names, names, old.state.rules.lease)
    return LiveConvoy(old.name, plan, old.state.rules, first, anchor, simulation.hub, Journal(folder / old.name))


def test_an_island_that_comes_back_fetches_what_was_agreed_and_goes_on(tmp_path, monkeypatch):
    made = LiveConvoy.__init__
    monkeypatch.setattr(
        LiveConvoy, "__init__", lambda self, name, *given: made(self, name, *given[:5], Journal(tmp_path / name))
    )
    plan = diloco(every=5, deadline_s=3.0, compression=compress.int8())
    simulation = Simulation(prepare(case("gpt ragged", steps=60).job), plan, 2)
    alive, dead = simulation.islands
    for _ in simulation.run(12):
        pass
    assert [one.convoy.state.last.round for one in simulation.islands] == [2, 2]
    simulation.hub.leave(dead.name)
    dead.convoy.happen = lambda event: None
    for step in (13, 14, 15):
        simulation._take_step(alive, step)
    simulation.hub.run(1.0)
    assert not alive.convoy.catch_up()  # two of two have to agree
    dead.convoy = back = comes_back(simulation, dead, tmp_path)
    assert not back.catch_up()  # it has nothing to go on from
    for _ in range(40):
        simulation.hub.run(0.25)
        if back.catch_up() and alive.convoy.catch_up():
            break
    assert back.state.last.id == alive.convoy.state.last.id
    assert all(torch.equal(a, b) for a, b in zip(back.anchor.vectors(), alive.convoy.anchor.vectors(), strict=True))
    simulation.convoys[1] = back
    for step in range(16, 26):
        for one in simulation.islands:
            simulation._take_step(one, step)
        while not simulation._settle():
            simulation.hub.run(0.05)
    assert {update.member for update in alive.convoy.state.last.updates} == {"island-0", "island-1"}
    first, second = (whole(one) for one in simulation.islands)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def take_away(simulation, dead):
    for one in dead:
        simulation.hub.leave(one.name)
        one.convoy.happen = lambda event: None


@pytest.mark.parametrize("deciders", [(), ("island-0",)], ids=["all", "one"])
def test_who_decides_alone_goes_on_alone(deciders):
    plan = diloco(every=2, deadline_s=3.0, deciders=deciders)
    simulation = Simulation(prepare(case("gpt ragged", steps=60).job), plan, 3)
    alive, *dead = simulation.islands
    for _ in simulation.run(4):
        pass
    take_away(simulation, dead)
    for one in dead:
        alive.convoy.happen(ev.Lost(one.name))
    for step in range(5, 13):
        for _ in range(40):
            simulation.hub.run(0.25)
            if alive.convoy.catch_up():
                simulation._take_step(alive, step)
                break
    assert (alive.convoy.state.last.round >= 5) == bool(deciders)


def test_a_person_lets_one_go_on_without_a_majority_and_the_others_come_anew(tmp_path, monkeypatch):
    made = LiveConvoy.__init__
    monkeypatch.setattr(
        LiveConvoy, "__init__", lambda self, name, *given: made(self, name, *given[:5], Journal(tmp_path / name))
    )
    plan = diloco(every=5, deadline_s=3.0, compression=compress.int8())
    simulation = Simulation(prepare(case("gpt ragged", steps=60).job), plan, 3)
    alive, *dead = simulation.islands
    for _ in simulation.run(12):
        pass
    take_away(simulation, dead)
    for step in (13, 14, 15):
        simulation._take_step(alive, step)
    simulation.hub.run(200.0)
    assert not alive.convoy.catch_up()  # two of three are away
    assert alive.convoy.state.last.round == 2
    alive.convoy.happen(ev.Reform())
    simulation.convoys, simulation.islands = [alive.convoy], [alive]
    for step in range(16, 26):
        simulation.hub.run(0.5)
        assert alive.convoy.catch_up() or not simulation.hub.run(0.5)
        simulation._take_step(alive, step)
        alive.convoy.catch_up()
        simulation.hub.run(0.5)
        alive.convoy.catch_up()
    last = alive.convoy.state.last
    assert last.members == last.voters == (alive.name,)
    assert last.samples == 45 * simulation.batch  # three's ten steps, and this one's fifteen
    for number, one in enumerate(dead):
        one.convoy = comes_back(simulation, one, tmp_path)
        simulation.convoys.append(one.convoy)
        simulation.islands.append(one)
        for step in range(26 + 15 * number, 41 + 15 * number):
            for other in simulation.islands:
                if other.convoy.state.is_member and other.convoy.state.stands and other.convoy.catch_up():
                    simulation._take_step(other, step)
            simulation.hub.run(1.0)
            for convoy in simulation.convoys:
                convoy.catch_up()
    last = alive.convoy.state.last
    assert last.members == last.voters == ("island-0", "island-1", "island-2")
    assert {update.member for update in last.updates} == {*last.members}


def test_a_piece_of_the_state_that_is_damaged_is_fetched_from_somebody_else(tmp_path):
    parameters = {"w": torch.randn(700_000, generator=torch.Generator().manual_seed(0))}
    anchor, empty = Anchor(parameters, Convoy(), 1), Anchor({"w": torch.zeros(700_000)}, Convoy(), 1)
    at = Decision.first(("a", "b", "c"), ("a", "b", "c"), 1)
    library, hub, refused = Library(), Hub(), []
    root = library.put(at, anchor.vectors())
    state = library.lend(-1)
    liar = lambda name: bytes(len(library.find(name)))  # noqa: E731
    hub.join("a", lambda *given: None, liar)
    hub.join("b", lambda *given: None, library.find)
    hub.join("c", lambda *given: None, lambda name: None)
    newcomer = Newcomer("c", empty, Parcels("c", hub), hub, refused.append, at)
    newcomer.on_state("a", state)
    newcomer.on_state("b", state)
    hub.run()
    assert set(refused) == {"a"}
    assert not newcomer.is_ready()  # nothing vouches for it yet
    newcomer.decided(replace(at, round=1, previous=at.id, anchor=root))
    assert newcomer.is_ready()
    newcomer.arrive(lambda decision, mean: None)
    assert torch.equal(empty.vectors()[0], anchor.vectors()[0])


def test_every_other_state_is_hashed_and_that_of_who_is_alone():
    """All islands hash the same ones; a state that is not hashed is not lent, and its vectors are written over."""
    given = []
    library, two = Library(given.extend), Decision.first(("a", "b"), ("a", "b"), 1)
    states = [[torch.full((8,), float(number))] for number in range(4)]
    made = [library.put(replace(two, round=number), state) for number, state in enumerate(states)]
    assert [bool(name) for name in made] == [True, False, True, False]
    assert library.lend(-1).decision.round == 2
    assert library.find(library.lend(-1).chunks[0]) == states[2][0].numpy().tobytes()
    assert [id(one) for one in given] == [id(one) for one in (states[1][0], states[0][0])]
    assert Library().put(replace(two, round=3, members=("a",)), states[3])


def test_a_state_that_is_lent_stays_as_it_is_while_vectors_are_written_over():
    plan = diloco(every=4, fragments=2, compression=compress.low_bit(2))
    simulation = Simulation(prepare(case("mlp", steps=60).job), plan, 2)
    library = simulation.islands[0].convoy._library
    lent = None
    for step in simulation.run(40):
        lent = library.lend(-1) if step == 12 else lent
    assert lent.decision.round < simulation.islands[0].convoy.state.last.round - 8
    assert [hashed(library.find(name)) for name in lent.chunks] == [*lent.chunks]
    spares = [len(one._spare) for one in simulation.islands[0].convoy.anchor.fragments]
    assert all(1 <= number <= 4 for number in spares)


def test_steps_of_weight_zero_move_nothing_and_end_nothing():
    """What is left out as not finite, or has no token that counts."""
    simulation = Simulation(prepare(case("mlp", steps=12).job), Convoy(every=1, updates="gradients"), 2)
    for _ in simulation.run(2):
        pass
    before = [whole(one) for one in simulation.islands]
    for one in simulation.islands:
        one.convoy.stepped(simulation.batch, 0.0, [*one.learner.sums(0.0).values()])
    while not simulation._settle():
        simulation.hub.run(0.05)
    assert [one.convoy.state.last.round for one in simulation.islands] == [3, 3]
    for one, held in zip(simulation.islands, before, strict=True):
        assert all(
            np.isfinite(value).all() and np.allclose(value, held[name], atol=0.1) for name, value in whole(one).items()
        )


def test_an_update_that_was_decided_without_is_not_encoded():
    anchor = Anchor({"w": torch.ones(1000)}, Convoy(), 1)
    anchor.snapshot(1)
    anchor.apply(1, torch.zeros(1000), was_counted=False)
    assert anchor.encode(1) == []


def test_a_state_that_others_have_not_is_not_taken():
    anchor = Anchor({"w": torch.ones(1000)}, Convoy(), 1)
    at = Decision.first(("a", "b"), ("a", "b"), 1)
    library, hub = Library(), Hub()
    library.put(at, anchor.vectors())
    hub.join("a", lambda *given: None, library.find)
    hub.join("b", lambda *given: None, lambda name: None)
    newcomer = Newcomer("b", Anchor({"w": torch.zeros(1000)}, Convoy(), 1), Parcels("b", hub), hub, print, at)
    newcomer.on_state("a", library.lend(-1))
    hub.run()
    newcomer.decided(replace(at, round=1, previous=at.id, anchor="another"))
    assert not newcomer.is_ready()


@pytest.mark.parametrize("plan", [diloco(every=2, outer_lr=0.7), Convoy(every=2, updates="gradients")], ids=repr)
def test_a_newcomer_fetches_the_state_and_trains_on_with_the_others(plan):
    """Where gradients are agreed on, the optimizers' state is part of it."""
    simulation = Simulation(prepare(case("gpt ragged", steps=60).job), plan, 2)
    steps = simulation.run(40)
    for step in steps:
        if step == 5:
            newcomer = simulation.join("newcomer")
        if step > 5:
            simulation.hub.run(1.0)  # beats, at which it asks
        members = {update.member for update in simulation.islands[0].convoy.state.last.updates}
        if step > 5 and members == {"island-0", "island-1", "newcomer"}:
            break
    assert members == {"island-0", "island-1", "newcomer"}
    assert newcomer.convoy.state.is_voter
    for _ in range(2):
        next(steps)
    anchors = [one.convoy.anchor.vectors() for one in simulation.islands]
    rounds = {one.convoy.state.last.id for one in simulation.islands}
    assert len(rounds) == 1
    assert len(anchors[0]) == 2
    for other in anchors[1:]:
        assert all(torch.equal(a, b) for a, b in zip(anchors[0], other, strict=True))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_agreements_are_so_many_steps_apart_however_long_each_takes(ahead):
    simulation = Simulation(prepare(case("mlp", steps=24).job), Convoy(every=4, ahead=ahead), 3)
    rounds = [simulation.islands[0].convoy.state.last.round for _ in simulation.run()]
    assert rounds[4 + ahead - 1 :: 4] == list(range(1, 1 + len(rounds[4 + ahead - 1 :: 4])))
    simulation.agree()
    first, *others = (whole(one) for one in simulation.islands)
    assert all(np.array_equal(first[name], other[name]) for other in others for name in first)
    assert simulation.islands[0].convoy.state.last.round == 6


# -- what goes wrong on one island -------------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_ends_its_island_with_the_reason_and_nobody_elses():
    simulation = Simulation(prepare(case("mlp", steps=12).job), Convoy(every=2), 3)
    for _ in simulation.run(1):
        pass
    next(iter(simulation.islands[1].parameters.values())).fill_(float("nan"))
    for one in simulation.islands:
        one.convoy.stepped(4, 4.0)
        one.convoy.catch_up()
    simulation.hub.run(0.1)
    with pytest.raises(NonFiniteError, match="update of this island"):
        simulation.islands[1].convoy.catch_up()
    simulation.hub.run(150.0)  # past the others' patience, as it was its turn to propose, and the deadline
    assert simulation.islands[0].convoy.catch_up()
    assert [update.member for update in simulation.islands[0].convoy.state.last.updates] == ["island-0", "island-2"]


def test_an_island_that_is_always_late_is_counted_again_and_again():
    plan = Convoy(every=2, deadline_s=1.0, ahead=2)
    simulation = Simulation(prepare(case("gpt ragged", steps=60).job), plan, 3)
    *quick, slow = simulation.islands
    counted, seen = 0, 0
    for period in range(1, 25):
        for one, steps in ((quick[0], 2), (quick[1], 2), (slow, 1)):
            for _ in range(steps):
                if one.convoy.catch_up() and sum(b - a for a, b in one.convoy.positions(4)) == 4:
                    simulation._take_step(one, period)
        simulation.hub.run(1.5)
        last = quick[0].convoy.state.last
        if last.round > seen:
            seen, counted = last.round, counted + any(update.member == slow.name for update in last.updates)
    assert seen > 8
    assert counted >= 3


def test_weights_that_are_of_no_kind_that_is_exchanged_are_refused():
    with pytest.raises(PlanError, match="float32 or float64"):
        Anchor({"w": torch.ones(4, dtype=torch.bfloat16)}, Convoy(), 1)


def test_a_wait_for_a_state_that_nobody_has_ends(tmp_path):
    anchor, at = Anchor({"w": torch.ones(4)}, Convoy(), 1), Decision.first(("a", "b"), ("a", "b"), 1)
    newcomer = Newcomer("a", anchor, Parcels("a", Hub()), Hub(), print, at)
    for _ in range(150):
        newcomer.beat()
    with pytest.raises(FleetError, match="nobody has"):
        newcomer.beat()
