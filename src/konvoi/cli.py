"""The command: `konvoi VERB ...`. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import konvoi
from konvoi import acts
from konvoi.errors import ConfigError, FleetError, KonvoiError
from konvoi.fleet.simulated import Simulated
from konvoi.options import parse
from konvoi.recipe import check_there, load_recipe, override, recipe_job
from konvoi.talk import line, out, sinks, written


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

    check_there(options.recipe)
    # An agent loads torch while the recipe is read; a lab's islands have one each, on their hosts.
    with AgentHandle(PRELOAD) if lab is None else contextlib.nullcontext() as agent:
        recipe = load_recipe(options.recipe)
        job = override(recipe_job(recipe, options.recipe), options.overrides)
        plan = konvoi.plan.parse(options.plan) if options.plan else getattr(recipe, "plan", None)
        fleet = lab.fleet() if lab is not None else getattr(recipe, "fleet", None)
        if isinstance(fleet, Simulated):
            fleet = fleet.on(options.workers, options.device)
        elif options.workers or options.device or options.oversubscribe or options.islands > 1:
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
            sinks=sinks(options),
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
    lab = Lab(options.islands, link, cpu=options.cpu, faults=faults, seed=options.seed, say=line)
    with lab:
        line(f"lab: {lab.describe()}")
        _train(wanted, lab)
    line(f"lab: {lab.describe_traffic()}")


def _evaluate(options: argparse.Namespace) -> None:
    out(json.dumps(dict(konvoi.evaluate(_found(options.run)))))


def _generate(options: argparse.Namespace) -> None:
    text = konvoi.generate(
        _found(options.run),
        options.prompt,
        num_tokens=options.num_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
    written(options.prompt + text + "\n")


def _report(options: argparse.Namespace) -> None:
    out(str(konvoi.report(_found(options.run))))


def _export(options: argparse.Namespace) -> None:
    out(str(konvoi.save_pretrained(_found(options.run), options.folder, merge=options.merge)))


def _doctor(options: argparse.Namespace) -> None:
    from konvoi.verbs.doctor import self_test

    out(json.dumps(konvoi.doctor(), indent=2))
    if options.self_test and not self_test(line):
        raise KonvoiError(
            "the self-test failed: this machine computes something else when it splits", hint="the rows above"
        )


def _found(run: str | bool) -> Path:
    from konvoi.state import record

    return record.find(Path("runs"), run).folder


def _say(text: str, status: int) -> int:
    line(text)
    return status


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "report": _report,
    "export": _export,
    "doctor": _doctor,
    "federation": acts.federation,
    "join": acts.join,
    "lab": _lab,
}

if __name__ == "__main__":
    sys.exit(main())
