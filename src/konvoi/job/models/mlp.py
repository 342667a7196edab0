"""The recipe of a multi-layer perceptron. Torch is imported only to build it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from konvoi.errors import JobError
from konvoi.job.models.fitting import fit_input_shape, fit_num_outputs, require_fitted
from konvoi.values import DataSpec

if TYPE_CHECKING:
    from konvoi.job.models.perceptron import Perceptron


@dataclass(frozen=True)
class MLP:
    """Linear layers with ReLU between; inputs of any shape are flattened. What is None comes from the data.

    >>> mlp((64,)).fit(DataSpec(input_shape=(1, 28, 28), num_classes=10))
    MLP(widths=(64,), input_shape=(1, 28, 28), num_outputs=10)
    """

    widths: tuple[int, ...] = (128, 128)
    _: KW_ONLY
    input_shape: tuple[int, ...] | None = None
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.widths):
            raise JobError("mlp: a width is too small", found=self.widths, expected="each at least 1")

    def fit(self, spec: DataSpec) -> MLP:
        """Raises: JobError where the data has no inputs, or nothing to answer."""
        return replace(
            self,
            input_shape=fit_input_shape("mlp", self.input_shape, spec),
            num_outputs=fit_num_outputs("mlp", self.num_outputs, spec),
        )

    def derived(self) -> tuple[str, ...]:
        """Nothing: each width is the user's."""
        return ()

    def __call__(self) -> Perceptron:
        """Raises: JobError where the data has not been fitted."""
        from konvoi.job.models.perceptron import Perceptron

        input_shape, num_outputs = require_fitted("mlp", self.input_shape, self.num_outputs)
        return Perceptron(input_shape, self.widths, num_outputs)


mlp = MLP
