"""What mlp and cnn take from the data: the shape of an input, and how many numbers to answer with. Torch-free."""

from __future__ import annotations

from konvoi.errors import JobError
from konvoi.values import DataSpec


def fit_input_shape(model: str, chosen: tuple[int, ...] | None, spec: DataSpec) -> tuple[int, ...]:
    """The data's, unless one was chosen. Raises: JobError where the two differ, or where there is none."""
    shape = chosen or spec.input_shape
    if shape is None:
        raise JobError(
            f"{model} needs data whose samples have inputs",
            found="data without an input shape",
            expected="e.g. data.images(...) or data.tensors(...)",
            hint="models.gpt takes tokens",
        )
    if spec.input_shape not in (None, shape):
        raise JobError(f"{model}: the inputs have another shape", found=spec.input_shape, expected=shape)
    return shape


def fit_num_outputs(model: str, chosen: int | None, spec: DataSpec) -> int:
    """One output a class, or one a regression target. Raises: JobError for fewer than the data has, or for none."""
    wanted = spec.num_classes or spec.num_targets
    if chosen is None and wanted is None:
        raise JobError(
            f"{model} does not know how many outputs it has",
            found="data without classes or targets",
            hint=f"set {model}(num_outputs=...)",
        )
    if chosen is not None and chosen < (wanted or 0):
        raise JobError(f"{model} has fewer outputs than the data asks for", found=chosen, expected=wanted)
    return chosen or wanted or 0


def require_fitted(
    model: str, input_shape: tuple[int, ...] | None, num_outputs: int | None
) -> tuple[tuple[int, ...], int]:
    """Both, known. Raises: JobError where either is still None."""
    if input_shape is None or num_outputs is None:
        raise JobError(
            f"{model} does not know its data",
            found=f"input_shape={input_shape}, num_outputs={num_outputs}",
            hint="set both, or let fit(spec) take them from the data",
        )
    return input_shape, num_outputs
