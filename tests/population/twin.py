"""Federated learning as its papers have it: one client after the other, in plain torch. The slow twin of all of it."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

from konvoi.plan.split.materialize import build, materialize
from konvoi.population import cohorts


def first_weights(job):
    """The module that a run of this job begins with, in float64."""
    cpu = torch.device("cpu")
    module = build(job.model, job.seed, cpu, torch.float64)
    materialize(module, job.seed, cpu, [("", module)], lambda unit: None)
    return module


def _data(source, rows):
    samples = [source[int(row)] for row in rows]
    return (
        torch.stack([torch.as_tensor(one["inputs"]) for one in samples]).double(),
        torch.tensor([int(one["labels"]) for one in samples]),
    )


def local(model, names, source, batches, *, lr, proximal=0.0, correction=None):
    """A client's round with plain SGD. Returns its weights by name."""
    model = copy.deepcopy(model)
    begin = {name: p.detach().clone() for name, p in model.named_parameters()}
    for rows in batches:
        inputs, labels = _data(source, rows)
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is None:  # it is frozen
                    continue
                gradient = p.grad + proximal * (p - begin[name])
                if correction is not None and name in names:
                    gradient = gradient + correction[name]
                p -= lr * gradient
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def rounds(model, source, indices, plan, fleet, *, lr, batch, seed=0):
    """The weights behind each round, by name; and of each client what it keeps. `model`: in float64."""
    sizes = [plan.local.sizes(len(one), batch) for one in indices]
    steps = [len(one) for one in sizes]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = [name for name in weights if not any(name.startswith(one.rstrip("*")) for one in plan.local.personal)]
    zeros = {name: torch.zeros_like(weights[name]) for name in names}
    first, second = dict(zeros), {name: torch.full_like(one, plan.outer_eps**2) for name, one in zeros.items()}
    control, controls = dict(zeros), {}
    own = {}
    versions, arriving = {0: dict(weights)}, cohorts.arrivals(plan, fleet, steps)
    history = []
    for number in range(1, plan.rounds + 1):
        if plan.at_once:
            who = [(one.client, one.since) for one in next(arriving)[0]]
        else:
            who = [(client, number - 1) for client in cohorts.of_round(number, plan, fleet, steps).counted]
        moves, changes = [], []
        for client, since in who:
            start = {**versions[since], **own.get(client, {})}
            model.load_state_dict(start)
            batches = cohorts.order(seed, client, number, indices[client], sizes[client])
            mine = controls.get(client, zeros)
            correction = {name: control[name] - mine[name] for name in names} if plan.local.controls else None
            now = local(model, names, source, batches, lr=lr, proximal=plan.local.proximal, correction=correction)
            share = 1.0 if plan.local.equal else float(len(indices[client]))
            damped = (1 + number - 1 - since) ** -plan.damping
            moves.append((share, damped, {name: start[name] - now[name] for name in names}))
            own[client] = {name: now[name] for name in now if name not in names}
            if plan.local.controls:
                new = {n: mine[n] - control[n] + (start[n] - now[n]) / (len(batches) * lr) for n in names}
                changes.append({n: new[n] - mine[n] for n in names})
                controls[client] = new
        total = sum(share for share, _, _ in moves)
        if moves:
            mean = {n: sum(share / total * damped * move[n] for share, damped, move in moves) for n in names}
            for n in names:
                weights[n] = _outer(plan, weights[n], mean[n], first, second, n)
        for change in changes:
            control = {n: control[n] + change[n] / len(indices) for n in names}
        versions[number] = dict(weights)
        history.append(dict(weights))
    return history, own


def judged(model, source, rows):
    """What a client finds on its held-out samples: the mean loss, and the share that is right."""
    inputs, labels = _data(source, rows)
    with torch.no_grad():
        outputs = model(inputs)
    return F.cross_entropy(outputs, labels).item(), (outputs.argmax(1) == labels).double().mean().item()


def _outer(plan, weight, mean, first, second, n):
    if plan.outer == "sgd":
        first[n] = plan.outer_momentum * first[n] + mean
        return weight - plan.outer_lr * (mean + plan.outer_momentum * first[n])
    first[n] = plan.outer_momentum * first[n] + (1 - plan.outer_momentum) * mean
    if plan.outer == "adagrad":
        second[n] = second[n] + mean**2
    elif plan.outer == "adam":
        second[n] = plan.outer_beta2 * second[n] + (1 - plan.outer_beta2) * mean**2
    else:
        second[n] = second[n] - (1 - plan.outer_beta2) * mean**2 * torch.sign(second[n] - mean**2)
    return weight - plan.outer_lr * first[n] / (second[n].sqrt() + plan.outer_eps)
