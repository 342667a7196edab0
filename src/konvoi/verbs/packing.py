"""federation pack: a recipe becomes one signed file that sites can consent to."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import konvoi
from konvoi.errors import DataError, JobError, PlanError
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.local import Local
from konvoi.recipe import load_recipe, needed_by, override, recipe_job
from konvoi.security.identity import make_signer
from konvoi.security.pack import NAME, Pack
from konvoi.sites.protocol import hash_of, leaves, told_of
from konvoi.values import DataSpec, Source
from konvoi.verbs.packable import check_kept, check_ranges, check_running_statistics, check_told, convoy_of_recipe

if TYPE_CHECKING:
    from konvoi.compat.flower.deployed import App
    from konvoi.plan.split.parts import Parts

OF_A_SAMPLE = ("vocab_size", "num_classes", "input_shape", "num_targets", "seq_len")
LARGEST_SOURCE = 4 << 20  # bytes
MOST_SAMPLES = 1_000_000  # that a site may say it has, where a pack does not say otherwise: see `_capped`


def signer() -> Path:
    """The key that packs are signed with on this machine, made when it is wanted first."""
    path = Path.home() / ".konvoi" / "signer.pem"
    if not path.exists():
        make_signer(path)
    return path


def pack(
    recipe: Path,
    *,
    purpose: str,
    plan: str = "",
    overrides: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    tell: Sequence[str] = ("loss",),
    start_from: Path | None = None,
    statistics: Path | None = None,
    key: Path | None = None,
    out: Path | None = None,
) -> tuple[Path, Pack]:
    """Write the file, signed; returns its path and what is in it.

    - `ranges`: of settings that a run may change without new consent (`konvoi.sites.protocol.OPEN`). Without one of
      `samples` a site may say that it has a million.
    - `tell`: what an update says beside how far its weights have come: "loss", "valid", and beside that what else the
      objective measures ("accuracy").
    - `start_from`: a run's folder, whose weights all begin with.
    - `statistics`: what a survey has found (`statistics.json`, or the folder that it was pulled into), for a recipe
      whose data are normalised (`kv.data.normalize`).

    Raises: JobError, PlanError, DataError.
    """
    from konvoi.job.data.normalized import columns_of
    from konvoi.sites.surveying import constants_of
    from konvoi.sites.trainer import build  # loads torch
    from konvoi.verbs.clients import check

    module = load_recipe(recipe)
    if not hasattr(module, "job"):
        from konvoi.compat.flower.deployed import app_of

        if (app := app_of(module)) is not None:
            return _pack_app(app, recipe, purpose, plan, overrides, ranges, tell, key, out)
    job = override(recipe_job(module, recipe), overrides)
    convoy = convoy_of_recipe(plan, getattr(module, "plan", None))
    check(job, Plan(konvoi.Island(), convoy))
    assert convoy.local is not None
    check_ranges(ranges or {})
    found = constants_of(statistics, columns_of(job.data))
    prepared, parts, island = build(job, None, None, found)
    check_running_statistics(prepared, parts, island)
    check_told(tell, prepared, parts, island)
    shapes, weights, frozen = _weights(parts, prepared.job.model, convoy, start_from)
    sources = sources_of(recipe)
    made = Pack(
        name=_name_of(recipe),
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(convoy),
        overrides=tuple(overrides),
        requires=needed_by(sources),
        leaves=leaves(shapes, convoy.local, tell=tell),
        ranges=_capped(ranges or {}, convoy.local, prepared.splits.train),
        spec=_spec(prepared.splits.spec),
        initial=hash_of(weights),
        sources=sources,
        frozen=hash_of(frozen) if frozen else "",
        statistics=found,
    )
    path = out or Path(f"{made.name}.pack")
    made.write(path, key or signer(), weights, frozen)
    return path, made


def pack_survey(
    recipe: Path,
    *,
    purpose: str,
    overrides: Sequence[str] = (),
    bins: int = 20,
    key: Path | None = None,
    out: Path | None = None,
) -> tuple[Path, Pack]:
    """The same of a question before any training: what sites' data are like, in counts, means, deviations, labels, and
    histograms of so many bins. Raises: JobError, DataError."""
    from konvoi.job.data.normalized import unnormalized
    from konvoi.job.data.of import of
    from konvoi.job.data.slot import fill
    from konvoi.job.data.statistics import survey
    from konvoi.sites import surveying

    job = override(recipe_job(load_recipe(recipe), recipe), overrides)
    if bins < 1:
        raise DataError("a histogram has bins", found=bins, expected="at least 1")
    splits = of(fill(unnormalized(job.data), None)).prepare()
    asked = surveying.begin(survey(splits), bins)
    first, sources = surveying.as_bytes(asked), sources_of(recipe)
    made = Pack(
        name=f"{_name_of(recipe)}-survey",
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(surveying.PLAN),
        overrides=tuple(overrides),
        requires=needed_by(sources),
        leaves=surveying.leaves(asked),
        ranges={},
        spec=_spec(splits.spec),
        initial=hash_of(first),
        sources=sources,
        kind="survey",
    )
    path = out or Path(f"{made.name}.pack")
    made.write(path, key or signer(), first)
    return path, made


def _pack_app(
    app: App,
    recipe: Path,
    purpose: str,
    plan: str,
    overrides: Sequence[str],
    ranges: Mapping[str, tuple[float, float]] | None,
    tell: Sequence[str],
    key: Path | None,
    out: Path | None,
) -> tuple[Path, Pack]:
    """Of a Flower app: its strategy says the plan, its first arrays what is agreed on."""
    from konvoi.compat.flower.deployed import flat

    if plan or overrides:
        raise PlanError("a Flower app says its plan itself", found=plan or ", ".join(overrides), hint="its ServerApp")
    if wrong := sorted({*(ranges or {})} - {"rounds", "cohort", "samples", "patience"}):
        raise PlanError("an app's own settings are its configuration's", found=", ".join(wrong))
    check_kept(tell)
    convoy, arrays = app.plan(), app.first("")
    row, sources = flat(arrays).tobytes(), sources_of(recipe)
    assert convoy.local is not None
    made = Pack(
        name=_name_of(recipe),
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(convoy),
        overrides=(),
        requires={
            name: version for name, version in needed_by(sources).items() if name != "flwr"
        },  # it is stood in for
        leaves=leaves({f"array {n}": one.shape for n, one in enumerate(arrays)}, convoy.local, tell=tell),
        ranges=_capped(ranges or {}, convoy.local),
        spec={},
        initial=hash_of(row),
        sources=sources,
        kind="flower",
    )
    path = out or Path(f"{made.name}.pack")
    made.write(path, key or signer(), row)
    return path, made


def _capped(ranges: Mapping[str, tuple[float, float]], local: Local, packed_with: Any = None) -> dict[str, Any]:
    """With an end to how many samples a site may say that it has: its update weighs as much. Whoever consents sees it.

    How many sites really have nobody knows here. A million is more records than most have of one kind; and ten times
    what the recipe is packed with is more, where these are a whole study's.
    """
    if local.equal or "samples" in ranges:
        return dict(ranges)
    known = len(packed_with) if isinstance(packed_with, Source) else 0
    return {**ranges, "samples": (1.0, float(max(MOST_SAMPLES, 10 * known)))}


def _name_of(recipe: Path) -> str:
    """As a pack may be called.

    >>> _name_of(Path("X-rays 2_b.py")), _name_of(Path("fade.py"))
    ('x-rays-2-b', 'study-fade')
    """
    name = re.sub("[^a-z0-9.]+", "-", recipe.stem.lower())[:50].strip("-.")
    return name if NAME.fullmatch(name) else f"study-{name}".strip("-")


def _spec(spec: DataSpec) -> dict[str, Any]:
    found = {name: value for name in OF_A_SAMPLE if (value := getattr(spec, name)) is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _weights(
    parts: Parts, model: Any, convoy: Convoy, start_from: Path | None
) -> tuple[dict[str, tuple[int, ...]], bytes, bytes]:
    """The shapes of what is agreed on, by name, and what all begin with; and what nobody trains. Raises: JobError."""
    import torch

    from konvoi.population.keeping import personal
    from konvoi.sites.trainer import trained_of, untrained_of
    from konvoi.state import safetensors

    trained, untrained = trained_of(parts), untrained_of(parts, model)
    if start_from is not None:
        known = konvoi.Run(start_from).model().state_dict()
        wrong = [n for n, p in {**trained, **untrained}.items() if n not in known or known[n].shape != p.shape]
        if wrong:
            raise JobError("the weights to begin with are of another model", found=start_from, expected=wrong[0])
        trained, untrained = ({name: known[name] for name in those} for those in (trained, untrained))
    assert convoy.local is not None
    mine = personal([*trained], convoy.local.personal)
    shared = {name: p.detach().float() for (name, p), own in zip(trained.items(), mine, strict=True) if not own}
    row = torch.cat([p.reshape(-1) for p in shared.values()]).numpy().astype("<f4")
    frozen = safetensors.as_bytes(untrained) if untrained else b""
    return {name: tuple(p.shape) for name, p in shared.items()}, row.tobytes(), frozen


def sources_of(recipe: Path) -> dict[str, bytes]:
    """The recipe, and what it has imported from its own folder; never data. Raises: JobError."""
    root, own = recipe.resolve().parent, Path(konvoi.__file__).resolve().parent
    found = {recipe.name: recipe.read_bytes()}
    files = [file for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))]
    for path in {Path(file).resolve() for file in files if file.endswith(".py") and Path(file).is_file()}:
        is_installed = path.is_relative_to(own) or "site-packages" in path.parts
        if path.is_relative_to(root) and not is_installed:
            found[path.relative_to(root).as_posix()] = path.read_bytes()
    if large := [name for name, data in found.items() if len(data) > LARGEST_SOURCE]:
        raise JobError("a source is too large to be reviewed", found=", ".join(large))
    return found
