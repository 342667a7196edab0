"""The command: `konvoi VERB ...`. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import konvoi
from konvoi.errors import ConfigError, FleetError, JobError, KonvoiError, PlanError, did_you_mean
from konvoi.job.job import Job
from konvoi.options import parse
from konvoi.plan.convoy import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 a wrong command, 130 stopped by Ctrl-C."""
    options = parse(arguments)
    try:
        VERBS[options.verb](options)
    except ConfigError as error:
        return _say(f"konvoi: {error}", 2)
    except KonvoiError as error:
        return _say(f"konvoi: {error}", 1)
    except KeyboardInterrupt as stop:
        return _say(f"konvoi: stopped; {stop.args[0] if stop.args else 'go on with --resume'}", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


def _train(options: argparse.Namespace, lab: Any = None) -> None:
    from konvoi.fleet.crew import AgentHandle
    from konvoi.verbs.train import PRELOAD

    _check_recipe(options.recipe)
    # An agent loads torch while the recipe is read; a lab's islands have one each, on their hosts.
    with AgentHandle(PRELOAD) if lab is None else contextlib.nullcontext() as agent:
        recipe = load_recipe(options.recipe)
        job = override(recipe_job(recipe, options.recipe), options.overrides)
        plan = konvoi.plan.parse(options.plan) if options.plan else getattr(recipe, "plan", None)
        fleet = lab.fleet() if lab is not None else getattr(recipe, "fleet", None)
        if options.workers or options.device or options.oversubscribe or options.islands > 1:
            num_workers = options.workers or (plan.num_workers * options.islands if plan else None)
            kept = {"device": options.device, "oversubscribe": options.oversubscribe, "islands": options.islands}
            fleet = konvoi.fleet.local(num_workers, **kept)
        run = konvoi.train(
            job,
            plan,
            fleet,
            name=options.name,
            resume=options.resume,
            checkpoint_every=options.checkpoint_every,
            profile=options.profile,
            sinks=_sinks(options),
            agent=agent,
        )
    _say(f"report: {run.folder / 'report.html'}", 0)


def _lab(options: argparse.Namespace) -> None:
    from konvoi.lab import Lab, Link, fault

    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if words[:1] != ["train"]:
        raise FleetError(
            "a lab trains", found=" ".join(words) or "no command", expected="konvoi lab ... -- train RECIPE"
        )
    wanted = parse(words)
    if any((wanted.workers, wanted.device, wanted.oversubscribe, wanted.islands > 1, wanted.resume)):
        raise FleetError("a lab has an island of one CPU worker on each host", hint="only lab's --islands")
    link = Link(
        up=options.up,
        down=options.up if options.down is None else options.down,
        rtt=options.rtt,
        jitter=options.jitter,
        loss=options.loss,
        burst=options.burst,
        congestion=options.congestion,
    )
    faults = [fault(text) for text in options.fault]
    lab = Lab(options.islands, link, cpu=options.cpu, faults=faults, seed=options.seed, say=_line)
    with lab:
        _line(f"lab: {lab.describe()}")
        _train(wanted, lab)
    _line(f"lab: {lab.describe_traffic()}")


def _federation(options: argparse.Namespace) -> None:
    from konvoi.verbs.running import require_net

    require_net("a federation")
    from konvoi.verbs import federation, member

    if options.act == "start":
        _check_plan(options.plan)
        _check_recipe(options.recipe)
        job = override(recipe_job(load_recipe(options.recipe), options.recipe), options.overrides)
        if job.global_batch % options.members:  # or nobody could join
            found = f"global_batch={job.global_batch}, --members {options.members}"
            raise PlanError("the first members share the global batch alike", found=found)
        terms = {"name": options.name, "num_first": options.members, "listen": options.listen, "at": options.at}
        folder = federation.found(options.recipe, options.overrides, options.plan, **terms)
        federation.serve(folder, _line, threading.Event())
    elif options.act == "leave":
        member.leave(options.federation)
    elif options.act == "status":
        is_guest = options.federation and not (federation.ROOT / options.federation).exists()
        told = member.status(options.federation) if is_guest else federation.status(federation.find(options.federation))
        _out(json.dumps(told, indent=1) if options.json else federation.as_table(told, time.time()))
    else:
        folder = federation.find(options.federation)
        if options.act == "invite":
            given = {"hours": options.hours, "out": options.out, "at": options.at}
            _out(str(federation.invite(folder, options.member, **given)))
        elif options.act == "revoke":
            federation.revoke(folder, options.member)
        elif options.act == "reform":
            federation.reform(folder, options.member)
        else:
            _out(federation.members(folder))


def _check_recipe(path: Path) -> None:
    if not path.is_file():
        nearby = [str(other) for other in path.parent.glob("*.py")]
        raise JobError(
            "no such recipe",
            found=path,
            hint=did_you_mean(str(path), nearby) if nearby else "a Python file that defines `job`",
        )


def _check_plan(text: str) -> Plan:
    plan = konvoi.plan.parse(text)
    if not isinstance(plan, Plan):
        raise PlanError("a federation's plan has a convoy", found=repr(text), expected="'|diloco,every=50'")
    return plan


def _join(options: argparse.Namespace) -> None:
    from konvoi.verbs.running import Keeping, require_net

    require_net("a federation")
    from konvoi.security.roster import Invitation
    from konvoi.verbs import member
    from konvoi.verbs.train import PRELOAD

    invitation = Invitation.load(options.invitation)
    plan = _check_plan(member.plan_here(invitation.plan, options.plan))
    recipe = options.recipe or Path(invitation.recipe)
    folder = member.enlist(invitation, recipe, _line)
    job = override(recipe_job(load_recipe(recipe), recipe), invitation.overrides)
    keeping = Keeping(options.name, Path("runs"), False, None, 2, False, _sinks(options))
    run = member.train_member(invitation, folder, job, plan, keeping, PRELOAD, public=options.address, say=_line)
    _line(f"report: {run.folder / 'report.html'}")


def _sinks(options: argparse.Namespace) -> list[Any]:
    from konvoi.observe.sinks.json_lines import JsonLines
    from konvoi.observe.sinks.tensorboard import TensorBoard
    from konvoi.observe.sinks.terminal import terminal

    shown = [lambda folder: JsonLines() if options.json else terminal()]
    return [*shown, TensorBoard] if options.tensorboard else shown


def load_recipe(path: Path) -> Any:
    """Import a recipe by its path; what it defines travels to the workers by value. Raises: JobError."""
    import importlib.util

    from konvoi.state.record import carry_by_value

    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"konvoi_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise JobError("a recipe is a Python file", found=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    carry_by_value(module)
    return module


def recipe_job(recipe: Any, path: Path) -> Job:
    """Its `job`, called where it is a function. Raises: JobError."""
    job = getattr(recipe, "job", None)
    if not isinstance(job, Job) and callable(job):
        job = job()
    if not isinstance(job, Job):
        raise JobError(
            "this recipe defines no job",
            found=path,
            expected="job = kv.Job(model=, data=, objective=), or a function that returns one",
        )
    return job


def override(job: Job, items: Sequence[str]) -> Job:
    """The job with fields replaced by `FIELD=VALUE`. A length replaces the recipe's. Raises: JobError.

    >>> override(Job(model=print, data=[], objective=print), ["steps=3", "ema=0.9"]).ema
    0.9
    """
    known = [field.name for field in dataclasses.fields(Job)]
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if name not in known or not equals:
            raise JobError(
                "an override is FIELD=VALUE with a field of the job", found=item, hint=did_you_mean(name, known)
            )
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    if values.keys() & {"steps", "tokens", "epochs"}:
        values = {"steps": None, "tokens": None, "epochs": None} | values
    return dataclasses.replace(job, **values)


def _evaluate(options: argparse.Namespace) -> None:
    _out(json.dumps(dict(konvoi.evaluate(_found(options.run)))))


def _generate(options: argparse.Namespace) -> None:
    text = konvoi.generate(
        _found(options.run),
        options.prompt,
        num_tokens=options.num_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    _out(options.prompt + text)


def _report(options: argparse.Namespace) -> None:
    _out(str(konvoi.report(_found(options.run))))


def _export(options: argparse.Namespace) -> None:
    _out(str(konvoi.save_pretrained(_found(options.run), options.folder, merge=options.merge)))


def _doctor(options: argparse.Namespace) -> None:
    from konvoi.verbs.doctor import self_test

    _out(json.dumps(konvoi.doctor(), indent=2))
    if options.self_test and not self_test(_line):
        raise KonvoiError(
            "the self-test failed: this machine computes something else when it splits", hint="the rows above"
        )


def _found(run: str | bool) -> Path:
    from konvoi.state import record

    return record.find(Path("runs"), run).folder


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


def _line(text: str) -> None:
    _say(text, 0)


def _say(text: str, status: int) -> int:
    if sys.stderr is not None:  # a service may run with it closed
        sys.stderr.write(text + "\n")
    return status


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "report": _report,
    "export": _export,
    "doctor": _doctor,
    "federation": _federation,
    "join": _join,
    "lab": _lab,
}

if __name__ == "__main__":
    sys.exit(main())
