"""federation pack: a recipe becomes one signed file that sites can consent to."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import konvoi
from konvoi.errors import DataError, JobError, PlanError
from konvoi.plan.convoy import Convoy, Plan
from konvoi.plan.presets import parse
from konvoi.recipe import load_recipe, override, recipe_job
from konvoi.security.identity import make_signer
from konvoi.security.pack import Pack
from konvoi.sites.protocol import OPEN, hash_of, leaves, told_of
from konvoi.values import DataSpec

if TYPE_CHECKING:
    from konvoi.compat.flower.deployed import App

OF_A_SAMPLE = ("vocab_size", "num_classes", "input_shape", "num_targets", "seq_len")
TELL = ("loss", "valid")
LARGEST_SOURCE = 4 << 20  # bytes


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
    key: Path | None = None,
    out: Path | None = None,
) -> tuple[Path, Pack]:
    """Write the file, signed; returns its path and what is in it.

    - `ranges`: of settings that a run may change without new consent (`konvoi.sites.protocol.OPEN`).
    - `tell`: what an update says beside how far its weights have come: "loss", "valid".
    - `start_from`: a run's folder, whose weights all begin with.

    Raises: JobError, PlanError, DataError.
    """
    from konvoi.sites.trainer import build  # loads torch
    from konvoi.verbs.clients import check

    module = load_recipe(recipe)
    if not hasattr(module, "job"):
        from konvoi.compat.flower.deployed import app_of

        if (app := app_of(module)) is not None:
            return _pack_app(app, recipe, purpose, plan, overrides, ranges, tell, key, out)
    job = override(recipe_job(module, recipe), overrides)
    convoy = _convoy(plan, getattr(module, "plan", None))
    check(job, Plan(konvoi.Island(), convoy))
    assert convoy.local is not None
    for name, (low, high) in (ranges or {}).items():
        if name not in OPEN or not low <= high:
            raise PlanError("this is no range of a setting", found=f"{name}={low:g}:{high:g}", expected=", ".join(OPEN))
    if wrong := sorted({*tell} - {*TELL}):
        raise PlanError("an update tells nothing of that kind", found=", ".join(wrong), expected=", ".join(TELL))
    prepared, parts, _ = build(job, None, None)
    if "valid" in tell and prepared.splits.valid is None:
        raise DataError(
            "there are no samples kept for evaluation", found="--tell valid", hint="holdout=0.1 on the data"
        )
    shapes, weights = _weights(parts, convoy, start_from)
    made = Pack(
        name=_name_of(recipe),
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(convoy),
        overrides=tuple(overrides),
        requires=_versions(),
        leaves=leaves(shapes, convoy.local, tell=tell),
        ranges=dict(ranges or {}),
        spec=_spec(prepared.splits.spec),
        initial=hash_of(weights),
        sources=sources_of(recipe),
    )
    path = out or Path(f"{made.name}.pack")
    made.write(path, key or signer(), weights)
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
    from konvoi.job.data.of import of
    from konvoi.job.data.slot import fill
    from konvoi.job.data.statistics import survey
    from konvoi.sites import surveying

    job = override(recipe_job(load_recipe(recipe), recipe), overrides)
    if bins < 1:
        raise DataError("a histogram has bins", found=bins, expected="at least 1")
    splits = of(fill(job.data, None)).prepare()
    asked = surveying.begin(survey(splits), bins)
    first = surveying.as_bytes(asked)
    made = Pack(
        name=f"{_name_of(recipe)}-survey",
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(surveying.PLAN),
        overrides=tuple(overrides),
        requires=_versions(),
        leaves=surveying.leaves(asked),
        ranges={},
        spec=_spec(splits.spec),
        initial=hash_of(first),
        sources=sources_of(recipe),
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
    convoy, arrays = app.plan(), app.first("")
    row = flat(arrays).tobytes()
    assert convoy.local is not None
    made = Pack(
        name=_name_of(recipe),
        purpose=purpose,
        recipe=recipe.name,
        plan=told_of(convoy),
        overrides=(),
        requires=_versions(),
        leaves=leaves({f"array {n}": one.shape for n, one in enumerate(arrays)}, convoy.local, tell=tell),
        ranges=dict(ranges or {}),
        spec={},
        initial=hash_of(row),
        sources=sources_of(recipe),
        kind="flower",
    )
    path = out or Path(f"{made.name}.pack")
    made.write(path, key or signer(), row)
    return path, made


def _name_of(recipe: Path) -> str:
    return recipe.stem.replace("_", "-").lower()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("konvoi", "torch", "numpy")}


def _spec(spec: DataSpec) -> dict[str, Any]:
    found = {name: value for name in OF_A_SAMPLE if (value := getattr(spec, name)) is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _convoy(text: str, of_recipe: Any) -> Convoy:
    found = parse(text) if text else of_recipe
    found = found.convoy if isinstance(found, Plan) else found
    if not isinstance(found, Convoy) or found.local is None:
        raise PlanError(
            "a pack's plan is of a federation", found=repr(text or of_recipe), hint="--plan '|fedavg,rounds=50'"
        )
    return found


def _weights(parts: Any, convoy: Convoy, start_from: Path | None) -> tuple[dict[str, tuple[int, ...]], bytes]:
    """The shapes of what is agreed on, by name, and what all begin with. Raises: JobError."""
    import torch

    from konvoi.population.keeping import personal
    from konvoi.sites.trainer import trained_of

    trained = trained_of(parts)
    if start_from is not None:
        known = dict(konvoi.Run(start_from).model().named_parameters())
        if missing := [name for name, p in trained.items() if name not in known or known[name].shape != p.shape]:
            raise JobError("the weights to begin with are of another model", found=start_from, expected=missing[0])
        trained = {name: known[name].detach() for name in trained}
    assert convoy.local is not None
    mine = personal([*trained], convoy.local.personal)
    shared = {name: p.detach().float() for (name, p), own in zip(trained.items(), mine, strict=True) if not own}
    row = torch.cat([p.reshape(-1) for p in shared.values()]).numpy().astype("<f4")
    return {name: tuple(p.shape) for name, p in shared.items()}, row.tobytes()


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
