"""What the command understands: its verbs, their options, and what it says to a wrong word."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import konvoi
from konvoi import federation_options
from konvoi.errors import did_you_mean

GROUPS = """\
learn   train      train a recipe's job on the devices that are here
look    evaluate   held-out figures of a run
        generate   what a run's model writes after a prompt
        report     write a run's report.html and say where it is
        doctor     what this machine has, and (--self-test) whether every way of splitting computes the same here
share   federation of your machines, or of sites that keep their data: start, invite, pack, submit, review, outbox ...
        join       become a member by an invitation, and take part
try     lab        the same training between hosts of this machine, joined by slow, lossy and cut links
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
            message = f"no such command: {word}\n  hint: {did_you_mean(word, _verbs(self))}"
        self.exit(2, f"konvoi: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand before or after the options; argparse alone takes them in one place only."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    takes_more = options.verb == "train" or getattr(options, "act", "") in ("start", "pack")
    if rest and (not takes_more or any(word.startswith("-") for word in rest)):
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


def _verbs(parser: argparse.ArgumentParser) -> list[str]:
    return [verb for action in parser._actions if isinstance(action.choices, dict) for verb in action.choices]


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
    lab = verbs.add_parser(
        "lab",
        usage="konvoi lab [OPTIONS] -- train RECIPE --plan PLAN ...",
        description="Train with each island on a host of its own: a network namespace of this machine, with a share of "
        "its processor, joined to the others by links that are slow, lossy and cut. Needs root, and Linux.",
    )
    lab.add_argument("--islands", type=int, default=4, metavar="N")
    lab.add_argument("--up", type=float, default=100.0, metavar="MBIT", help="that a host may send in a second")
    lab.add_argument("--down", type=float, metavar="MBIT", help="that it may receive (default: as --up)")
    lab.add_argument("--rtt", type=float, default=80.0, metavar="MS", help="between two hosts and back")
    lab.add_argument("--jitter", type=float, default=0.0, metavar="MS", help="by which a packet may be late")
    lab.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="of the packets")
    lab.add_argument("--burst", type=float, default=1.0, metavar="PACKETS", help="mean length of a run of losses")
    lab.add_argument("--congestion", default="", metavar="NAME", help="the hosts' TCP: cubic, bbr or reno")
    lab.add_argument("--cpu", type=float, metavar="CORES", help="that each host may use, e.g. 0.4")
    lab.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="TEXT",
        help="'cut 1 at 30 for 20', 'kill 2 at 60', 'kill 2 every 30', 'slow 3 to 0.13 at 0', 'deaf 0 1 at 30 for 20': "
        "seconds from the first step of all islands; may be given again",
    )
    lab.add_argument("--seed", type=int, default=0, help="of losses and jitter")
    lab.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    federation_options.add(verbs, Parser)
    doctor = verbs.add_parser("doctor", description="What this machine has, as JSON.")
    doctor.add_argument(
        "--self-test",
        action="store_true",
        help="prove on this machine's own devices that every way of splitting computes the same",
    )
    return parser
