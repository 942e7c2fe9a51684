"""Private data: images, or other data, with their labels, in batches of one update each."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxleak.errors import InputError, check_positive


@dataclass(frozen=True, kw_only=True, eq=False)
class Private:
    """The private data of all attacked updates.

    Attributes:
        dataset, split: names in rows and tables.
        indices: index of each image in its data set [i].
        images: [i, h, w, c], in [0, 1]; NaN where they are not known. Of text the numbers of its tokens [i, t].
        labels: [i], in 0..k-1; -1 where they are not known. With one output they are 0 or 1. Of text its last token.
        num_classes: k, the outputs of the head.
        targets: [i, k], what the loss is given where that is no class: a yes or no for each output, numbers or
            distributions; None: labels say it. `labels` are then the classes that rows and pages name.
        batch: images per update: the first `batch` images make the first update, and so on. The attacker knows it.
        modality: kind of data in `images`, one of `attacks.candidate.CANDIDATES`.
        class_names: one per class, where the data set has some; they decide nothing.
    """

    dataset: str
    split: str
    indices: list[int]
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    targets: np.ndarray | None = None
    batch: int = 1
    modality: str = "image"
    class_names: tuple[str, ...] = ()

    def _check_indices(self) -> None:
        if len(self.indices) == 0:
            raise InputError("`images` must name at least one image.")
        repeated = sorted({index for index in self.indices if self.indices.count(index) > 1})
        if repeated:
            raise InputError(f"`images` must be distinct; {', '.join(map(str, repeated))} is named twice.")

    def _check_batch(self) -> None:
        check_positive("batch", self.batch, integer=True)
        if len(self.indices) % self.batch:
            raise InputError(
                f"`images` must come in whole batches of {self.batch}; there are {len(self.indices)}. "
                "Change --batch, --images or --num-images."
            )

    @property
    def updates(self) -> int:
        """Number of attacked updates."""
        return len(self.indices) // self.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one private image, or of one item of other data."""
        return tuple(self.images.shape[1:])

    def batches(self, array: Any) -> Any:
        """An array with one row per private image as [u, b, ...]: its updates, and the images of each."""
        return array.reshape(self.updates, self.batch, *array.shape[1:])

    @functools.cached_property
    def knows_truth(self) -> bool:
        """True if the private images are known, so that candidates can be compared with them."""
        return not np.isnan(self.images).any()

    @property
    def knows_labels(self) -> bool:
        """True if all labels or targets are known."""
        return self.targets is not None or bool(np.all(np.asarray(self.labels) >= 0))
