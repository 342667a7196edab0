"""docs/equivalence.md: which plan was shown equal to one process, for which model. Made by a run of the tests."""

import re
from pathlib import Path

from konvoi.proof import Row, rows
from tests.conformance.families import FAMILIES, TOLERANCE

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

| family | what is particular to it | plans shown equal | |
|---|---|---|---|
"""


def line_of(row: Row) -> str:
    what = f"{row.tolerance:g}" + (", losses only" if row.only_losses else "")
    return f"| {row.case} | `{row.name.removeprefix(row.case).strip()}` | {what} |"


def text() -> str:
    lines = [f"{line_of(row)} {_shown(row.name)} |" for row in rows(8)]
    families = []
    for name, family in FAMILIES.items():
        shown = [test for test in OUTCOMES if re.search(rf"\\[{name} ", test)]
        plans = ", ".join(f"`{test.partition(' ')[2].rstrip(']')}`" for test in shown)
        outcome = "equal" if shown and all(OUTCOMES[test] == "passed" for test in shown) else "**not shown**"
        families.append(f"| {name} | {family.what} | {plans} | {outcome} |")
    return HEAD + "\n".join(lines) + "\n" + FAMILIES_HEAD + "\n".join(families) + "\n"


def _shown(name: str) -> str:
    found = [outcome for test, outcome in OUTCOMES.items() if test.endswith(f"[{name}]")]
    return "equal" if found and all(outcome == "passed" for outcome in found) else "**not shown**"
