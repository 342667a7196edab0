"""What `konvoi federation` and `konvoi join` understand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ACTS = """\
server   start      found a federation, or go on with one, and keep its desk until Ctrl-C
         invite     write an invitation for one named member, once and for some time
         status     who is there, who is slow, and why
         members    who is a member, by name and key, and who has signed that
         revoke     a member, or an invitation, is none any more
         reform     a majority is gone for good: go on as one member has it
studies  pack       a recipe becomes one signed file that sites can consent to
         submit     begin a run of a pack
         runs       how each run stands
         stop       no round of a run is decided any more
         pull       a run's weights, rounds and pack, in a folder
site     check      name, proxy, TLS, clock, disk and data, each with what mends it; nothing is asked of the server
         review     what a pack wants, what would leave, and what is new in it
         approve    agree to a pack, as it is
         withdraw   take that back
         pause      nothing leaves, at once
         resume     go on
         limits     what this site allows, and what sees to it
         outbox     what has left
         held       updates that wait for a person
         release    let one go
         dossier    a page for the data-protection officer
         approve-member   who waits to be a member; sign for one, where this site is among those who approve
         remove-member    sign that one is a member no more
         leave      for good
"""


def add(verbs: Any, kind: type[argparse.ArgumentParser]) -> None:
    join = verbs.add_parser(
        "join",
        description="Become a member of a federation by an invitation. Of one's own machines: train; the recipe has to "
        "be here already, as code is never sent. Of sites that keep their data: take part in every run that is "
        "approved here. The same command comes back after a stop.",
    )
    join.add_argument("invitation", help="the file; - reads it from standard input")
    join.add_argument("--data", type=Path, metavar="PATH", help="a site's own, which stay where they are")
    join.add_argument("--device", help="cpu, cuda, ...: where a site trains (cpu)")
    join.add_argument(
        "--hold",
        metavar="WHICH",
        help="a site's updates wait for a person: first (of each run), each, no; or for a command that looks at each",
    )
    join.add_argument("--recipe", type=Path, metavar="FILE", help="default: of the invitation's name, in this folder")
    join.add_argument("--plan", default="", metavar="PLAN", help="of the island here, e.g. fsdp=2: each has its own")
    join.add_argument("--address", default="", metavar="HOST:PORT", help="at which others reach this machine")
    join.add_argument("--name", help="the run's name; its folder is runs/NAME")
    join.add_argument("--json", action="store_true", help="print events as JSON lines instead of progress")
    join.add_argument("--tensorboard", action="store_true", help="write TensorBoard files into the run's folder too")
    parser = verbs.add_parser(
        "federation",
        usage="konvoi federation ACT ...",
        description="Machines that train one model together, by invitation.",
        epilog=ACTS + "\nkonvoi federation ACT --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(
        dest="act", metavar="ACT", required=True, parser_class=kind, prog="konvoi federation", help=argparse.SUPPRESS
    )
    _server(acts)
    _studies(acts)
    _site(acts)


def _server(acts: Any) -> None:
    start = acts.add_parser(
        "start",
        description="The desk is where invited machines get their certificates. With a recipe: machines of one's own, "
        "who find each other there and train from member to member; when the desk is away, those who have met train "
        "on. Without: sites that keep their data; the desk is where runs are submitted and rounds are added up.",
    )
    start.add_argument("recipe", type=Path, nargs="?")
    start.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the job, for all members")
    start.add_argument("--plan", default="", metavar="PLAN", help="e.g. '|diloco,every=50,compression=int8'")
    start.add_argument("--members", type=int, default=2, metavar="N", help="with so many training begins (2)")
    start.add_argument("--listen", default="0.0.0.0:7700", metavar="HOST:PORT")
    start.add_argument(
        "--at", action="append", default=[], metavar="HOST[:PORT]", help="where members reach it; may be given again"
    )
    start.add_argument("--name", help="default: the recipe's")
    start.add_argument(
        "--founders",
        default="",
        metavar="A,B,...",
        help="of sites: the members who sign the roster, so that the server can add nobody; default: the server signs",
    )
    start.add_argument(
        "--approvals", type=int, default=0, metavar="N", help="founders who sign for a newcomer (more than half)"
    )
    invite = acts.add_parser("invite", description="Write an invitation for one named member, once and for some time.")
    invite.add_argument("member", metavar="NAME")
    invite.add_argument("--hours", type=float, default=24.0)
    invite.add_argument("--at", action="append", default=[], metavar="HOST:PORT", help="where members reach the desk")
    invite.add_argument(
        "--organisation", default="", metavar="TEXT", help="whose member it is, for the roster of sites"
    )
    invite.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.invite")
    status = acts.add_parser("status", description="Who is there, who is slow, and why.")
    status.add_argument("--json", action="store_true")
    members = acts.add_parser("members", description="Who is a member, by name and key, and who has signed that.")
    revoke = acts.add_parser(
        "revoke",
        description="A member, or an invitation, is none any more: the server hears it no longer, at once. Where "
        "founders sign the roster, it stays on that until enough of them have run remove-member.",
    )
    revoke.add_argument("member", metavar="NAME")
    reform = acts.add_parser(
        "reform",
        description="For when so many members are gone for good that the others would wait for a majority for ever. "
        "The convoy goes on as MEMBER has it, whose island is running, alone at first; all others come anew and take "
        "its state. What they have agreed on without it is lost. The act is written into the federation's log.",
    )
    reform.add_argument("member", metavar="MEMBER")
    for act in (invite, status, members, revoke, reform):
        act.add_argument("--federation", metavar="NAME", help="default: the only one that was founded here")


def _studies(acts: Any) -> None:
    pack = acts.add_parser(
        "pack",
        description="A recipe, its plan, the weights to begin with, the list of what may leave, and a purpose: one "
        "signed file that sites can consent to. The recipe's data are a slot: kv.data.slot.",
    )
    pack.add_argument("recipe", type=Path)
    pack.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the job")
    pack.add_argument("--purpose", required=True, metavar="TEXT", help="in words for those who consent")
    pack.add_argument("--plan", default="", metavar="PLAN", help="e.g. '|fedavg,rounds=50'; default: the recipe's")
    pack.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="what a run may set: epochs, lr, rounds, ...",
    )
    pack.add_argument(
        "--tell", default="loss", metavar="WHAT", help="beside the update: loss,valid,accuracy, or nothing (loss)"
    )
    pack.add_argument("--survey", action="store_true", help="train nothing: ask what sites' data are like")
    pack.add_argument("--bins", type=int, default=20, metavar="N", help="of a survey's histograms (20)")
    pack.add_argument("--statistics", type=Path, metavar="FILE", help="of a survey: what kv.data.normalize goes by")
    pack.add_argument("--start-from", type=Path, metavar="RUN", help="a run's folder, whose weights all begin with")
    pack.add_argument("--key", type=Path, metavar="FILE", help="to sign with; default: ~/.konvoi/signer.pem")
    pack.add_argument("--out", type=Path, metavar="FILE", help="default: RECIPE.pack")
    submit = acts.add_parser("submit", description="Begin a run of a pack; its name is printed.")
    submit.add_argument("pack", type=Path)
    submit.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="within the pack's ranges")
    submit.add_argument("--first", type=int, default=2, metavar="N", help="sites that it waits for (2)")
    submit.add_argument("--least", type=int, default=2, metavar="N", help="updates of a round (2)")
    runs = acts.add_parser("runs", description="How each run stands.")
    runs.add_argument("--json", action="store_true")
    stop = acts.add_parser("stop", description="No round of a run is decided any more.")
    stop.add_argument("run")
    pull = acts.add_parser("pull", description="A run's weights, rounds and pack, in a folder.")
    pull.add_argument("run")
    pull.add_argument("--out", type=Path, metavar="FOLDER", help="default: the run's name")
    pull.add_argument("--best", action="store_true", help="the weights that sites found best, instead of the newest")
    for act in (submit, runs, stop, pull):
        act.add_argument("--federation", metavar="NAME", help="default: the only one that was founded here")


def _site(acts: Any) -> None:
    check = acts.add_parser(
        "check",
        description="Whether this site can take part: name, proxy, TLS, clock, disk and data, each with what mends it. "
        "Nothing is asked of the server: connections are opened and closed.",
    )
    check.add_argument("invitation", help="the file; - reads it from standard input")
    check.add_argument("--data", type=Path, metavar="PATH")
    check.add_argument("--pack", type=Path, metavar="FILE", help="that the data are to be looked at for")
    review = acts.add_parser("review", description="What a pack wants, what would leave, and what is new in it.")
    approve = acts.add_parser("approve", description="Agree to a pack, as it is.")
    withdraw = acts.add_parser("withdraw", description="Take agreement back: no further round is trained.")
    for act in (review, approve, withdraw):
        act.add_argument(
            "pack", nargs="?", default="", help="a file, a name or a hash; default: the only one it can be"
        )
    pause = acts.add_parser("pause", description="Nothing leaves, at once.")
    resume = acts.add_parser("resume", description="Go on.")
    limits = acts.add_parser("limits", description="What this site allows, and what sees to it.")
    outbox = acts.add_parser("outbox", description="What has left: when, to whom, which fields, bytes and hash.")
    outbox.add_argument("--all", action="store_true", help="also each word that this site is here, and each request")
    outbox.add_argument("--json", action="store_true", help="as it was written")
    held = acts.add_parser("held", description="Updates that wait for a person; see hold in limits.toml.")
    release = acts.add_parser("release", description="Let an update go.")
    release.add_argument("update", help="as `held` shows it; or all")
    dossier = acts.add_parser("dossier", description="A page for the data-protection officer.")
    dossier.add_argument("--out", type=Path, metavar="FILE", help="default: SITE-dossier.html")
    for act in (review, approve, withdraw, pause, resume, limits, outbox, held, release, dossier):
        act.add_argument("--federation", metavar="NAME", help="default: the only one that was joined here")
    approve_member = acts.add_parser(
        "approve-member",
        description="Without a name: who waits, with which key. With a name, and the key that was compared by "
        "telephone: sign, with this site's own key, that it becomes a member. `founders` is what founders sign first.",
    )
    approve_member.add_argument("member", nargs="?", default="", metavar="NAME")
    approve_member.add_argument("key", nargs="?", default="", help="as the newcomer has told it, and not the server")
    approve_member.add_argument(
        "--approver", action="store_true", help="it approves others, too; may be a member already"
    )
    remove_member = acts.add_parser("remove-member", description="Sign that a member is one no more.")
    remove_member.add_argument("member", metavar="NAME")
    for act in (approve_member, remove_member):
        act.add_argument("--federation", metavar="NAME", help="default: the only one that was joined here")
    leave = acts.add_parser("leave", description="This machine's members will not come back.")
    leave.add_argument("federation", nargs="?", metavar="NAME", help="default: the only one of sites")
