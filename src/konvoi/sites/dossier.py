"""A page for a data-protection officer, made from the approved packs and the outbox: it cannot drift from them."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence

from konvoi.job.data.normalized import in_words
from konvoi.observe.report import page_of
from konvoi.security import members as rosters
from konvoi.security import outbox
from konvoi.security import pack as packs
from konvoi.security.identity import mark
from konvoi.security.members import Members
from konvoi.security.pack import Pack
from konvoi.sites.house import House
from konvoi.sites.protocol import convoy_of
from konvoi.units import visible

RISKS = """\
An update is computed from the data of this site. Whoever sees a single one may learn something of them: whether a
person's record was among them, or, of small models and small batches, what a record looks like (membership inference,
gradient inversion). The server sees every site's updates one by one: this version neither masks nor noises them.

The least number of members that a round has to ask is counted on the roster that this site holds, and whose signatures
it has checked. Where whoever keeps the server signs the roster alone, this number protects from a server that is
careless, and not from one that invents members. Where founders sign it, a server can add nobody, unless as many of them
as have to sign are on its side. That those who were asked have all sent an update is the server's word.

The number of samples, where it is listed, tells how many records this site has.

A figure over samples that are kept for evaluation, where one is listed, tells of single records where these samples
are few: an accuracy of 0.9 over ten says that one of them was told wrongly. Whoever keeps the server sees each site's.

The agreed weights are the same for all members, and carry what was learnt here too.

Updates that are wrong on purpose, by another member, are not recognised as long as they are finite and of a plausible
size.

The recipe is a program that runs here beside the data. What it may send is bounded by the list; what it does here is
bounded only by the account that it runs under. Review is the defence.
"""


def page(house: House, site: str, federation: str, desks: Sequence[str]) -> str:
    """Self-contained HTML."""
    approved = house.approved()
    found = [packs.read(house.path_of(hash)) for hash in approved if house.path_of(hash).exists()]
    members = house.members()
    entries = [*outbox.read(house.folder / "outbox.jsonl")]
    limits = house.limits
    head = (
        f'<header><p class="kicker">{escape(federation)}</p><h1>What leaves {escape(site)}</h1>'
        f'<p class="summary">Made on {time.strftime("%Y-%m-%d %H:%M")} from the packs that were approved here, and '
        f"from the log of all that has left: {len(entries):,} entries, each chained to the one before. The chain was "
        "followed to its end and is whole.</p></header>"
    )
    body = [head]
    for pack, signer in found:
        body.append(_of_pack(house, pack, signer))
    if not found:
        body.append(_section("No pack is approved here", "<p>So nothing is learnt from this site's data.</p>"))
    body.append(_section("What this site allows", _table(limits.as_rows(rosters.who_adds(members)))))
    body.append(_section("What has left", _table(_sent(entries))))
    told = (
        f"Requests go to {', '.join(desks)} and nowhere else, from this site's side; nothing is accepted from outside."
    )
    body.append(
        _section("Who is a member", f"<p>{escape(told)}</p>" + _table(rosters.as_rows(members)) + _of_roster(members))
    )
    body.append(_section("What remains", "".join(f"<p>{html.escape(text)}</p>" for text in RISKS.split("\n\n"))))
    body.append(_section("Who agreed", _table(_consents(house))))
    return page_of(visible(f"What leaves {site}"), "".join(body))


def _of_roster(members: Members) -> str:
    told = [f"Who adds: {rosters.who_adds(members)}."]
    if members.number >= 0:
        told.append(f"Version {members.number} of the roster, founded as {mark(members.founding)}.")
    return "".join(f"<p>{escape(one)}</p>" for one in told)


def _of_pack(house: House, pack: Pack, signer: str) -> str:
    plan = convoy_of(pack.plan, {})
    size = pack.leaves.frame("update").size
    facts: list[Sequence[str]] = [
        ("", ""),
        ("purpose", pack.purpose),
        ("pack", pack.hash),
        ("signed by", signer),
        ("rounds", f"{plan.rounds:,}"),
        ("an update", f"{size:,} bytes; {size * plan.rounds:,} in all rounds"),
        (
            "may change without asking again",
            ", ".join(f"{k} {a:g} to {b:g}" for k, (a, b) in pack.ranges.items()) or "nothing",
        ),
        ("who sees an update", "whoever keeps the server"),
        ("who sees the agreed weights", "all members, and whoever keeps the server"),
        *((f"{name} is normalised", in_words(one)) for name, one in pack.statistics.get("columns", {}).items()),
        ("programs", ", ".join(pack.sources)),
    ]
    return _section(
        f"The study: {pack.name}",
        _table(facts) + "<h3>What leaves, and nothing else can</h3>" + _table(pack.leaves.as_rows()),
    )


def _sent(entries: Iterable[outbox.Entry]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("run", "what", "times", "bytes")]
    for run, kinds in outbox.summary([*entries]).items():
        rows += [(run or "(none)", kind, f"{one['frames']:,}", f"{one['bytes']:,}") for kind, one in kinds.items()]
    return rows


def _consents(house: House) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("when", "who", "what", "pack")]
    for one in house.consents():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"]))
        rows.append((when, one["by"], one["what"], f"{one['name']} {one['pack'][:12]}"))
    return rows


def escape(text: str) -> str:
    """Of what others have written, too: it has to be read as it is."""
    return html.escape(visible(text))


def _section(title: str, inner: str) -> str:
    return f'<section class="words"><h2>{escape(title)}</h2>{inner}</section>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    top = "".join(f"<th>{escape(str(one))}</th>" for one in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(one))}</td>" for one in row) + "</tr>" for row in rest)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
