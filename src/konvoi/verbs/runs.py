"""federation submit, runs, stop, pull: what happens to packs on the server."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from konvoi.errors import KonvoiError, StateError
from konvoi.observe.wording import columns, figures
from konvoi.security import pack as packs
from konvoi.sites.hall import submit as submit_to
from konvoi.state.journal import lines, write
from konvoi.verbs.federation import Terms


def submit(
    folder: Path, pack: Path, *, settings: Mapping[str, float] | None = None, first: int = 2, least: int = 2
) -> str:
    """Begin a run of a pack, as soon as `first` sites that have approved it are there; each round takes the updates of
    at least `least`. Returns its name. Raises: StateError, PlanError."""
    return submit_to(folder, Terms.read(folder).id, pack, settings=dict(settings or {}), first=first, least=least).name


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run, the oldest first: its pack, settings, rounds and figures."""
    Terms.read(folder)
    paths = sorted((folder / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return [_standing(path.parent) for path in paths]


def _standing(folder: Path) -> dict[str, Any]:
    try:
        told, decided = json.loads((folder / "run.json").read_text()), _decided(folder)
        rounds = _rounds(folder, told["settings"])
        last: Mapping[str, Any] = decided[-1] if decided else {}
        stopped = folder / "stopped"
        return {
            "run": told["id"],
            "state": "over" if len(decided) >= rounds else stopped.read_text() if stopped.exists() else "open",
            "rounds": len(decided),
            "of": rounds,
            "sites": len(last.get("updates", ())),
            **last.get("told", {}),
            "refused": len(lines(folder / "refused.jsonl")),
            "pack": told["pack"],
            "settings": told["settings"],
        }
    except (KonvoiError, OSError, ValueError, KeyError, TypeError, AttributeError):  # the others can be shown
        known = {"rounds": 0, "of": 0, "sites": 0, "refused": 0, "pack": "", "settings": {}}
        return {"run": folder.name, "state": "cannot be read", **known}


def _rounds(folder: Path, settings: Mapping[str, float]) -> int:
    from konvoi.sites.protocol import convoy_of

    return convoy_of(packs.read(folder / "pack")[0].plan, settings).rounds


def _decided(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(folder / "decisions.jsonl")]


def as_table(found: Sequence[Mapping[str, Any]]) -> str:
    """For a person; below it how unlike sites are, of runs whose packs let them tell."""
    rows = [("run", "round", "sites", "loss", "held-out loss", "refused", "pack", "state")]
    for one in found:
        losses = [f"{one[name]:.4f}" if name in one else "" for name in ("loss", "valid_loss")]
        progress = f"{one['rounds']} of {one['of']}"
        rows.append(
            (one["run"], progress, str(one["sites"]), *losses, str(one["refused"]), one["pack"][:12], one["state"])
        )
    told = [line for one in found for line in _spread(one)]
    return "\n".join([*columns(rows), *told]) if found else "no runs yet: konvoi federation submit PACK"


def _spread(one: Mapping[str, Any]) -> Iterator[str]:
    for name, values in one.get("spread", {}).items():
        of = f"held-out {name.removeprefix('valid_')}"
        yield f"{one['run']}: {of} {one[name]:.4f}; over {len(one['valid_by_site'])} sites: {figures(values)}"


def _find(folder: Path, run: str) -> Path:
    known = sorted(path.parent.name for path in (folder / "runs").glob("*/run.json"))
    if run not in known:
        raise StateError("there is no such run", found=run, expected=", ".join(known) or "none")
    return folder / "runs" / run


def stop(folder: Path, run: str) -> None:
    """No round of it is decided any more. Raises: StateError."""
    write(_find(folder, run) / "stop", b"")


def pull(folder: Path, run: str, *, out: Path | None = None, best: bool = False) -> Path:
    """Its weights as `model.safetensors`, those that nobody trains among them, its rounds as `history.json`, and its
    pack, in a new folder. `best`: those that the sites found best on samples that they keep for evaluation, instead of
    the newest. Of a survey it is `statistics.json`. Raises: StateError."""
    import torch

    from konvoi.state import safetensors

    source, into = _find(folder, run), out or Path(run)
    decided = _decided(source)
    if not decided:
        raise StateError("no round of this run is decided yet", found=run)
    judged = [one for one in decided if "valid_loss" in one["told"]]
    if best and not judged:
        raise StateError(
            "no site has told how good the weights are", found=run, hint="konvoi federation pack --tell valid"
        )
    base = min(judged, key=lambda one: one["told"]["valid_loss"])["base"] if best else decided[-1]["result"]
    pack, _ = packs.read(source / "pack")
    if pack.kind == "survey":
        _make(into)
        found = json.loads((source / "weights" / f"{base}.outer").read_text())
        (into / "statistics.json").write_text(json.dumps({**found, "survey": pack.hash}, indent=1))
        shutil.copy(source / "pack", into / f"{pack.name}.pack")
        return into
    row = np.frombuffer((source / "weights" / base).read_bytes(), "<f4")
    weights, start = {}, 0
    for field in pack.leaves.frame("update").fields:
        if field.name.startswith("move "):
            size = int(np.prod(field.shape))
            values = row[start : start + size].reshape(field.shape)
            weights[field.name.removeprefix("move ")] = torch.from_numpy(values.copy())
            start += size
    if data := packs.frozen(source / "pack", pack):
        weights |= safetensors.from_bytes(data)
    _make(into)
    safetensors.write(into / "model.safetensors", weights)
    shutil.copy(source / "pack", into / f"{pack.name}.pack")
    rounds = [
        {"round": one["round"], "sites": [o["update"]["site"] for o in one["updates"]], "at": one["at"], **one["told"]}
        for one in decided
    ]
    told = {"run": run, "weights_of_round": _round_of(decided, base), "pulled": time.time(), "rounds": rounds}
    (into / "history.json").write_text(json.dumps(told, indent=1))
    return into


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise StateError("there is such a folder already", found=folder, hint="--out FOLDER") from None


def _round_of(decided: Sequence[Mapping[str, Any]], base: str) -> int:
    return next((one["round"] for one in decided if one["result"] == base), 0)
