"""Write docs/api.md from the docstrings of every public name: `python docs/make_api.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import konvoi

PAGE = Path(__file__).parent / "api.md"

HEAD = """\
<!-- Made by docs/make_api.py from the docstrings: edit those, then `make docs`. -->
# Every public name

`import konvoi as kv`. What is not here may change without notice.
"""


def public_names() -> Iterator[tuple[str, object]]:
    """`("Job", Job)`, `("models", <module>)`, `("models.gpt", gpt)`, ...: each `__all__`, rooms included."""
    for name in konvoi.__all__:
        value = getattr(konvoi, name)
        if name.startswith("__"):
            continue
        yield name, value
        if isinstance(value, ModuleType):
            yield from ((f"{name}.{member}", getattr(value, member)) for member in _members(value))


def _members(room: ModuleType) -> list[str]:
    if "__all__" in vars(room):
        return list(room.__all__)
    return [n for n, v in vars(room).items() if n[0] != "_" and getattr(v, "__module__", "") == room.__name__]


def docstring(name: str, value: object) -> str:
    """Empty where there is none: what `dataclass` and `type` make up by themselves does not count."""
    text = inspect.getdoc(value) or ""
    made_up = text.startswith(f"{name.rpartition('.')[2]}(") or (isinstance(value, type) and value.__doc__ is None)
    return "" if made_up else text


def page() -> str:
    return "\n".join([HEAD, *(_entry(name, value) for name, value in public_names())])


def _entry(name: str, value: object) -> str:
    level = "##" if isinstance(value, ModuleType) else "###"
    return f"{level} `kv.{name}{_signature(value)}`\n\n{_with_fences(docstring(name, value))}\n"


def _signature(value: object) -> str:
    if not callable(value):
        return ""
    try:
        signature = inspect.signature(value)
    except ValueError:  # exceptions and other types written in C
        return ""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _with_fences(text: str) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{p}\n```" if p.startswith(">>>") else p for p in paragraphs)


if __name__ == "__main__":
    PAGE.write_text(page())
