"""docs/equivalence.md: which plan was shown equal to one process, for which model. Made by a run of the tests."""

from pathlib import Path

from konvoi.proof import Row, rows
from tests.conformance.families import FAMILIES, FAMILY_ROWS, TOLERANCE

PATH = Path(__file__).parents[2] / "docs" / "equivalence.md"
OUTCOMES: dict[str, str] = {}  # of this run, by the name of the test

HEAD = """\
<!-- Made by `make equivalence`. -->
# What was shown equal to one process

Each line is a test: a model is trained under a plan, on real processes that talk over gloo, and held against the same
training in one process. Unless it says otherwise losses, norms and held-out loss of all steps, the first step's
gradients and the final weights agree in float64 to 1e-9, with AdamW, weight decay and clipping that acts. For each kind
of plan bugs are planted on purpose (tests/conformance/planted.py), and its line must fail.

## Models of our own and plain modules

| model | plan | tolerance | |
|---|---|---|---|
"""

FAMILIES_HEAD = f"""
## Models of transformers, unchanged and undeclared

Tiny random configurations, in fp32 (they cast to it inside) with SGD and momentum: losses, norms, gradients and weights
to {TOLERANCE:g}.

| family | what is particular to it | plan | |
|---|---|---|---|
"""


def text() -> str:
    """Each line with what this session has shown; one that it did not run stays as it was."""
    old = PATH.read_text() if PATH.exists() else ""
    own = [f"{line_of(row)} {_shown(row.name, line_of(row), old)} |" for row in rows(8)]
    others = [f"{line} {_shown(f'{name} {plan}', line, old)} |" for (name, plan), line in family_lines().items()]
    return HEAD + "\n".join(own) + "\n" + FAMILIES_HEAD + "\n".join(others) + "\n"


def line_of(row: Row) -> str:
    what = f"{row.tolerance:g}" + (", losses only" if row.only_losses else "")
    return f"| {row.case} | `{row.name.removeprefix(row.case).strip()}` | {what} |"


def family_lines() -> dict[tuple[str, str], str]:
    whats = {name: FAMILIES[name.removesuffix(" lora")].what for name, _ in FAMILY_ROWS}
    return {(name, plan): f"| {name} | {whats[name]} | `{plan}` |" for name, plan in FAMILY_ROWS}


def _shown(name: str, line: str, old: str) -> str:
    found = [outcome for test, outcome in OUTCOMES.items() if test.endswith(f"[{name}]")]
    if not found:
        return "equal" if f"{line} equal |" in old else "**not shown**"
    return "equal" if all(outcome == "passed" for outcome in found) else "**differs**"
