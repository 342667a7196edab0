"""The public surface is a list: exported, documented, and shown in an example that runs."""

import doctest
import re
from pathlib import Path
from types import ModuleType

import konvoi
from docs import make_api

ROOT = Path(__file__).parents[1]
NAMES = dict(make_api.public_names())


def test_no_public_name_is_listed_twice_or_private():
    assert len(konvoi.__all__) == len(set(konvoi.__all__))
    assert [name for name in konvoi.__all__ if name.startswith("_") and name != "__version__"] == []


def test_every_public_name_has_a_docstring():
    assert [name for name, value in NAMES.items() if not make_api.docstring(name, value)] == []


def test_the_page_of_the_api_is_made_from_the_docstrings_as_they_are():
    assert make_api.PAGE.read_text() == make_api.page(), "run `make docs`"


def test_every_public_name_is_shown_in_an_example_that_runs():
    shown = "\n".join(path.read_text() for folder in ("recipes", "examples") for path in (ROOT / folder).rglob("*.py"))
    bare = [
        name
        for name, value in NAMES.items()
        if not _needs_none(value) and not _has_doctest(value) and not re.search(rf"\bkv\.{re.escape(name)}\b", shown)
    ]
    assert bare == [], "give each a doctest, or use it as `kv.NAME` in a recipe"


def _needs_none(value: object) -> bool:
    """A room is shown by what is in it; an error is met, not used."""
    return isinstance(value, ModuleType) or (isinstance(value, type) and issubclass(value, BaseException))


def _has_doctest(value: object) -> bool:
    found = doctest.DocTestFinder().find(value, "value", globs={})
    return any(not example.options.get(doctest.SKIP) for test in found for example in test.examples)
