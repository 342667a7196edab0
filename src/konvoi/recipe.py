"""Recipes: Python files that define a `job`, and perhaps a `plan` and a `fleet`."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konvoi.errors import JobError, did_you_mean
from konvoi.job.job import Job


def check_there(path: Path) -> None:
    """Raises: JobError, with the name that was meant perhaps."""
    if not path.is_file():
        nearby = [str(other) for other in path.parent.glob("*.py")]
        raise JobError(
            "no such recipe",
            found=path,
            hint=did_you_mean(str(path), nearby) if nearby else "a Python file that defines `job`",
        )


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


def needed_by(sources: Mapping[str, bytes]) -> dict[str, str]:
    """Of all distributions that the sources import, wherever they do, and of what every site needs."""
    of = importlib.metadata.packages_distributions()
    found = {"konvoi", "torch", "numpy"}
    for package in _imported(sources):
        distributions = {*of.get(package, ())}
        if len(distributions) == 1:  # else it is a namespace, in which many have their parts
            found |= distributions
    return {name: importlib.metadata.version(name) for name in sorted(found)}


def _imported(sources: Mapping[str, bytes]) -> set[str]:
    """Packages that are neither Python's nor among the sources."""
    own = {name.partition("/")[0].removesuffix(".py") for name in sources}
    found: set[str] = set()
    for name, data in sources.items():
        for one in ast.walk(ast.parse(data)) if name.endswith(".py") else ():
            if isinstance(one, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in one.names}
            elif isinstance(one, ast.ImportFrom) and not one.level:
                found.add(str(one.module).partition(".")[0])
    return found - own - sys.stdlib_module_names
