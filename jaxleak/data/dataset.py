"""Pictures with labels, addressed by their index in the original data set."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxleak.errors import InputError, check_choice, check_positive

# The data sets known by name, and the size in pixels at which they are read unless another is asked for.
# LFW is 250 px; iDLG resizes it to 32. Text has none.
DATASETS: dict[str, int] = {"photos": 32, "cifar100": 32, "mnist": 28, "lfw": 32, "text": 0}
BATCH_LABELS = ("any", "distinct", "same")
LABEL_BLOCK = 256  # images whose labels are read at once
# Positions in the data source -> pixels [n, h, w, c], uint8 or float in [0, 1], and labels [n].
Reader = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Pictures with labels, addressed by their index in the original data set.

    Attributes:
        name: One of `DATASETS`, or the path of the user's own pictures as given.
        split: `train` or `test`; `all` where the data are not split.
        image_shape: Height, width and channels of every picture; of text the number of tokens.
        class_names: One name per class, in the order of the labels.
        index: The original index at each position of the source.
        reader: Reads the pictures at given positions.
        vectors: Targets [n, k] by position, where a picture has more than a class: a yes or no each, or numbers.
        modality: Kind of data: "image", or "text", whose `images` are numbers of tokens and whose classes are tokens.

    Example:
        >>> import jaxleak
        >>> photos = jaxleak.load_dataset("photos")
        >>> photos
        Dataset(photos/all: 60 images 32x32x3, 10 classes)
        >>> pixels, labels = photos.images([6, 12])
        >>> pixels.shape, labels.shape
        ((2, 32, 32, 3), (2,))
    """

    name: str
    split: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    index: Int[np.ndarray, " n"]
    reader: Reader
    vectors: np.ndarray | None = None
    modality: str = "image"

    @property
    def num_classes(self) -> int:
        return len(self.class_names) if self.vectors is None else self.vectors.shape[1]

    def targets(self, indices: Sequence[int]) -> Float[np.ndarray, "n k"] | None:
        """The targets of the pictures at `indices`; None where they have classes."""
        return None if self.vectors is None else self.vectors[[self._position(index) for index in indices]]

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        kinds = (f"texts of {shape} tokens", "tokens") if self.modality == "text" else (f"images {shape}", "classes")
        return f"Dataset({self.name}/{self.split}: {len(self)} {kinds[0]}, {self.num_classes} {kinds[1]})"

    def images(self, indices: Sequence[int]) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """The pictures at `indices`, in that order, and their labels.

        Returns:
            Pixels in [0, 1], float32 [n, h, w, c]; labels, int32 [n].

        Raises:
            InputError: an index is not in the data set.
        """
        positions = [self._position(index) for index in indices]
        if not positions:
            return np.zeros((0, *self.image_shape), np.float32), np.zeros(0, np.int32)
        pixels, labels = self.reader(positions)
        scale = 255 if pixels.dtype == np.uint8 else 1
        return pixels.astype(np.float32) / np.float32(scale), np.asarray(labels, np.int32)

    def random_indices(self, count: int, seed: int) -> list[int]:
        """`count` different indices in the order drawn, so that a larger count only appends to a smaller one.

        Raises:
            InputError: `count` is not between 1 and the number of pictures, or `seed` is negative.
        """
        check_positive("num_images", count, integer=True)
        if count > len(self):
            raise InputError(f"`num_images` must be at most {len(self)}, all of {self._label}; got {count}.")
        if seed < 0:
            raise InputError(f"`image_seed` must be 0 or more; got {seed!r}.")
        drawn = np.random.default_rng(seed).permutation(np.sort(self.index))[:count]
        return [int(index) for index in drawn]

    def random_batches(self, count: int, batch: int, seed: int, labels: str = "any") -> list[int]:
        """Indices of `count` batches of `batch` images each, batch after batch, no image twice.

        Args:
            count: batches.
            batch: images in each.
            seed: from which they are drawn.
            labels: of the images of a batch: "any", all "distinct", or all the "same".

        Raises:
            InputError: too few images for that, or an unknown choice.
        """
        check_choice("batch_labels", labels, BATCH_LABELS)
        check_positive("num_images", count, integer=True)
        if labels == "any" or batch == 1:
            if batch > 1 and count * batch > len(self):
                raise InputError(
                    f"`batch` asks for {count} times {batch} images; {self._label} has {len(self)}. "
                    "Use fewer or smaller batches."
                )
            return self.random_indices(count * batch, seed)
        open_batches: list[list[tuple[int, int]]] = []
        whole: list[int] = []
        order = self.random_indices(len(self), seed)
        for start in range(0, len(order), LABEL_BLOCK):
            block = order[start : start + LABEL_BLOCK]
            for index, label in zip(block, self.images(block)[1].tolist(), strict=True):
                # The first batch under way that takes it, or a new one.
                for members in open_batches:
                    if (label in [other for _, other in members]) == (labels == "same"):
                        members.append((index, label))
                        break
                else:
                    open_batches.append(members := [(index, label)])
                if len(members) == batch:
                    open_batches.remove(members)
                    whole += [member for member, _ in members]
                    if len(whole) == count * batch:
                        return whole
        raise InputError(
            f"`batch` asks for {count} batches of {batch} images with {labels} labels; {self._label} has "
            f"{len(whole) // batch}. Use fewer or smaller batches, or --batch-labels any."
        )

    @property
    def _label(self) -> str:
        return self.name if self.split == "all" else f"{self.name}/{self.split}"

    @functools.cached_property
    def _position_of(self) -> dict[int, int]:
        return {index: position for position, index in enumerate(self.index.tolist())}

    def _position(self, index: int) -> int:
        whole = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if whole and int(index) in self._position_of:
            return self._position_of[int(index)]
        low, high = min(self._position_of), max(self._position_of)
        valid = f"the valid range is {low} to {high}"
        if high - low + 1 != len(self):
            valid = f"it holds {len(self)} of the indices from {low} to {high}"
        got = index.item() if isinstance(index, np.generic) else index
        raise InputError(f"`images` index {got!r} is not in {self._label}; {valid}.")


def in_memory(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    vectors: np.ndarray | None = None,
) -> Dataset:
    return Dataset(
        name=name,
        split="all",
        image_shape=pixels.shape[1:],
        class_names=class_names,
        index=np.arange(len(pixels)),
        reader=lambda positions: (pixels[list(positions)], labels[list(positions)]),
        vectors=vectors,
    )
