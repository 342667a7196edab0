"""The recipe of a small convolutional network. Torch is imported only to build it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from konvoi.errors import JobError
from konvoi.job.models.fitting import fit_input_shape, fit_num_outputs, require_fitted
from konvoi.values import DataSpec

if TYPE_CHECKING:
    from konvoi.job.models.convnet import ConvNet


@dataclass(frozen=True)
class CNN:
    """`depth` blocks of 3x3 convolution, GroupNorm, ReLU; each but the first halves the image and doubles the channels.

    Then the mean over the image and a linear head, so that images of any size fit. What is None comes from the data.
    GroupNorm and not BatchNorm: a batch's statistics would depend on how the batch is split over workers, and on
    which client of a federation it came from (arXiv 1910.00189).

    >>> cnn(channels=16).fit(DataSpec(input_shape=(3, 32, 32), num_classes=10)).block_channels
    (16, 32, 64)
    """

    depth: int = 3
    _: KW_ONLY
    channels: int = 32  # of the first block
    input_shape: tuple[int, ...] | None = None  # (channels, height, width)
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        if self.depth < 1 or self.channels < 1:
            raise JobError(
                "cnn is too small", found=f"depth={self.depth}, channels={self.channels}", expected="at least 1"
            )
        if self.input_shape is not None and len(self.input_shape) != 3:
            raise JobError(
                "cnn takes images",
                found=f"inputs of shape {self.input_shape}",
                expected="(channels, height, width)",
                hint="a grey image has one channel: (1, height, width); models.mlp takes any shape",
            )

    @property
    def block_channels(self) -> tuple[int, ...]:
        return tuple(self.channels * 2**index for index in range(self.depth))

    def fit(self, spec: DataSpec) -> CNN:
        """Raises: JobError where the data's inputs are no images, or where there is nothing to answer."""
        return replace(
            self,
            input_shape=fit_input_shape("cnn", self.input_shape, spec),
            num_outputs=fit_num_outputs("cnn", self.num_outputs, spec),
        )

    def derived(self) -> tuple[str, ...]:
        """
        >>> cnn(channels=16).derived()
        ('1. channels of the blocks = 16, 32, 64: doubled where the image is halved (arXiv 1512.03385 section 3.3)',)
        """
        channels = ", ".join(str(count) for count in self.block_channels)
        return (
            f"1. channels of the blocks = {channels}: doubled where the image is halved (arXiv 1512.03385 section 3.3)",
        )

    def __call__(self) -> ConvNet:
        """Raises: JobError where the data has not been fitted."""
        from konvoi.job.models.convnet import ConvNet

        input_shape, num_outputs = require_fitted("cnn", self.input_shape, self.num_outputs)
        return ConvNet(input_shape[0], self.block_channels, num_outputs)


cnn = CNN
