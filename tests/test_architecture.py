"""ARCHITECTURE.md is the first page of documentation, so it is held true; so are the rules that no linter can see."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "konvoi"
PAGE = ROOT / "ARCHITECTURE.md"
MAX_LINES = 300

# Parts of torch that belong to one file; import-linter sees packages only.
TORCH_SEAMS = {
    "torch.cuda": "devices.py",
    "torch.mps": "devices.py",
    "torch.xpu": "devices.py",
    "torch.backends": "devices.py",
    "torch.utils.tensorboard": "observe/sinks/tensorboard.py",
}


def test_every_path_in_the_tree_exists_and_has_a_phrase():
    tree = _tree()
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path, phrase in tree.items() if not phrase] == []


def test_every_file_of_the_package_is_in_the_tree():
    files = {path.relative_to(ROOT).as_posix() for path in _package_files() if not _only_names_its_room(path)}
    assert sorted(files - _tree().keys()) == []


def test_a_file_is_short_or_its_length_has_a_reason():
    long = {path.relative_to(ROOT).as_posix() for path in _package_files() if _num_lines(path) > MAX_LINES}
    assert sorted(long - _large_files().keys()) == [], f"over {MAX_LINES} lines: split by idea, or give the reason"
    assert sorted(_large_files().keys() - long) == [], "these need their reason no more"
    assert [path for path, reason in _large_files().items() if len(reason) < 20] == []


@pytest.mark.parametrize(("part", "home"), TORCH_SEAMS.items())
def test_a_part_of_torch_is_touched_in_one_file_only(part, home):
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if part in _dotted_names(path)}
    assert sorted(users - {home}) == []


def test_the_seam_is_seen_in_every_way_to_write_it(tmp_path):
    for number, source in enumerate(
        [
            "import torch.cuda",
            "import torch.cuda.amp",
            "from torch import cuda",
            "from torch.cuda import synchronize",
            "import torch\ntorch.cuda.synchronize()",
            "import torch as t\nt.cuda.synchronize()",
        ]
    ):
        path = tmp_path / f"{number}.py"
        path.write_text(source)
        assert "torch.cuda" in _dotted_names(path), source


def test_every_third_party_has_a_contract_that_keeps_it_in_one_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    users = {name: extras[name] for name in extras.keys() - {"dev", "bench"}}
    required = {
        re.split(r"[\[<>=~! ]", requirement)[0]
        for requirement in [*project["project"]["dependencies"], *(r for extra in users.values() for r in extra)]
    }
    contracts = {c["id"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "forbidden"}
    assert sorted(required - {"torch", "numpy"} - contracts) == []  # these two are spoken everywhere


def _tree() -> dict[str, str]:
    """Path to phrase, from the first fenced block: two spaces a level, `name  phrase`, folders end with a slash."""
    block = re.search(r"^```\w*\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block, "ARCHITECTURE.md has no tree"
    tree: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, block[1].splitlines()):
        indent = len(line) - len(line.lstrip())
        name, _, phrase = line.strip().partition(" ")
        parents = [(depth, parent) for depth, parent in parents if depth < indent]
        path = "".join(parent for _, parent in parents) + name
        tree[path] = phrase.strip()
        if name.endswith("/"):
            parents.append((indent, name))
    return tree


def _large_files() -> dict[str, str]:
    """Path to reason, from the lines "- `src/konvoi/x.py`: why" under the heading "Large files"."""
    section = re.search(r"^#+ Large files$(.*?)(?=^#|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return dict(re.findall(r"^- `([^`]+)`:? +(.+)$", section[1], re.MULTILINE)) if section else {}


def _package_files() -> Iterator[Path]:
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name != "py.typed":
            yield path


def _only_names_its_room(path: Path) -> bool:
    """An `__init__.py` with a docstring and nothing else: the folder's own line says it."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _dotted_names(path: Path) -> set[str]:
    """Every dotted name that a file imports or reads, with each of its beginnings; `import torch as t` is followed."""
    module = ast.parse(path.read_text())
    imports = [node for node in ast.walk(module) if isinstance(node, ast.Import)]
    aliases = {alias.asname: alias.name for node in imports for alias in node.names if alias.asname}
    names = {alias.name for node in imports for alias in node.names}
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom(module=str(origin), names=parts):
                names |= {f"{origin}.{part.name}" for part in parts}
            case ast.Attribute():
                first, _, rest = ast.unparse(node).partition(".")
                names.add(f"{aliases.get(first, first)}.{rest}")
    return {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
