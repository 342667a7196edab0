"""The command: `konvoi VERB ...`. Data goes to stdout, talk to stderr."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import konvoi
from konvoi.errors import ConfigError, JobError, KonvoiError, did_you_mean
from konvoi.job.job import Job

GROUPS = """\
learn   train      train a recipe's job on the devices that are here
look    evaluate   held-out figures of a run
        generate   what a run's model writes after a prompt
        report     write a run's report.html and say where it is
        doctor     what this machine has, and (--self-test) whether every way of splitting computes the same here
take    export     a run's weights as safetensors and a config, for transformers where it knows the model
"""


class Parser(argparse.ArgumentParser):
    """An argparse that suggests the nearest right word."""

    def error(self, message: str) -> NoReturn:
        known = list(_options(self))
        if message.startswith("unrecognized arguments:"):
            word = message.split(":", 1)[1].split()[0].split("=")[0]
            message += f"\n  hint: {did_you_mean(word, known)}"
        if "invalid choice:" in message:
            word = message.split("invalid choice:")[1].strip().split("'")[1]
            message = f"no such command: {word}\n  hint: {did_you_mean(word, VERBS)}"
        self.exit(2, f"konvoi: {message}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before or after the options; argparse alone takes them in one place only."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.verb != "train" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.verb == "train" and "=" in str(options.resume):
        rest, options.resume = [options.resume, *rest], True  # --resume without a run, then an override
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option of a parser and of its commands: argparse reports an unknown one at the root."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _options(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 a wrong command, 130 stopped by Ctrl-C."""
    options = _parse(arguments)
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


def _parser() -> Parser:
    parser = Parser(
        prog="konvoi",
        usage="konvoi VERB ...",
        description=konvoi.__doc__,
        epilog=GROUPS + "\nkonvoi VERB --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=konvoi.__version__)
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=Parser, help=argparse.SUPPRESS
    )
    train = verbs.add_parser(
        "train",
        description="Train the job of a recipe: a Python file that defines `job` (a kv.Job, or a function that returns "
        "one), and perhaps `plan` and `fleet`.",
    )
    train.add_argument("recipe", type=Path)
    train.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the job, e.g. steps=100 global_batch=16 seed=3"
    )
    train.add_argument("--plan", metavar="PLAN", help="e.g. dp=2,fsdp=2,precision=bf16 or '|diloco,every=50'")
    train.add_argument("--workers", type=int, metavar="N", help="workers on this computer")
    train.add_argument("--islands", type=int, default=1, metavar="N", help="into which they are divided, for a convoy")
    train.add_argument("--device", metavar="KIND", help="cpu, cuda, ...")
    train.add_argument("--oversubscribe", action="store_true", help="allow more CPU workers than cores")
    train.add_argument("--name", help="the run's name; its folder is runs/NAME")
    train.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="RUN", help="go on with a run (default: the newest)"
    )
    train.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="default: a tenth of the run")
    train.add_argument("--json", action="store_true", help="print events as JSON lines instead of progress")
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard files into the run's folder too")
    train.add_argument("--profile", action="store_true", help="write a torch trace of five steps")
    for verb, text in (("evaluate", "Held-out figures of a run, as JSON."), ("report", "Write a run's report.html.")):
        verbs.add_parser(verb, description=text).add_argument(
            "run", nargs="?", default=True, help="a run's name or folder (default: the newest)"
        )
    generate = verbs.add_parser("generate", description="What a run's model writes after a prompt.")
    generate.add_argument("prompt")
    generate.add_argument("--run", default=True, metavar="RUN", help="a run's name or folder (default: the newest)")
    generate.add_argument("--num-tokens", type=int, default=200)
    generate.add_argument("--temperature", type=float, default=0.8)
    generate.add_argument("--seed", type=int, default=0)
    export = verbs.add_parser("export", description="Write a run's weights as safetensors and a config.")
    export.add_argument("folder", type=Path)
    export.add_argument("--merge", action="store_true", help="add adapters to the model's matrices, and write these")
    export.add_argument("--run", default=True, metavar="RUN", help="a run's name or folder (default: the newest)")
    doctor = verbs.add_parser("doctor", description="What this machine has, as JSON.")
    doctor.add_argument(
        "--self-test",
        action="store_true",
        help="prove on this machine's own devices that every way of splitting computes the same",
    )
    return parser


def _train(options: argparse.Namespace) -> None:
    from konvoi.fleet.crew import AgentHandle
    from konvoi.verbs.train import PRELOAD

    if not options.recipe.is_file():
        nearby = [str(path) for path in options.recipe.parent.glob("*.py")]
        raise JobError(
            "no such recipe",
            found=options.recipe,
            hint=did_you_mean(str(options.recipe), nearby) if nearby else "a Python file that defines `job`",
        )
    with AgentHandle(PRELOAD) as agent:  # it loads torch while the recipe is read
        recipe = load_recipe(options.recipe)
        job = override(recipe_job(recipe, options.recipe), options.overrides)
        plan = konvoi.plan.parse(options.plan) if options.plan else getattr(recipe, "plan", None)
        fleet = getattr(recipe, "fleet", None)
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
}

if __name__ == "__main__":
    sys.exit(main())
