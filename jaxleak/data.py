"""Private images and labels: the embedded photographs, CIFAR-100, MNIST, LFW, and the user's own pictures."""

import functools
import hashlib
import importlib.resources
import io
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxleak.errors import InputError, check_choice, check_positive

# The data sets known by name, and the size in pixels at which they are read unless another is asked for.
# LFW is 250 px; iDLG resizes it to 32.
DATASETS: dict[str, int] = {"photos": 32, "cifar100": 32, "mnist": 28, "lfw": 32}
FOLDER_SIZE = 32

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
        image_shape: Height, width and channels of every picture.
        class_names: One name per class, in the order of the labels.
        index: The original index at each position of the source.
        reader: Reads the pictures at given positions.
    """

    name: str
    split: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    index: Int[np.ndarray, " n"]
    reader: Reader

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"Dataset({self.name}/{self.split}: {len(self)} images {shape}, {self.num_classes} classes)"

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


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Open a data set by its name, or the user's own pictures by their path.

    Own pictures are either a folder or an `.npz` file. In a folder each sub-folder is a class; in a folder
    without sub-folders each picture is a class of its own. Pictures are cropped to the central square and
    resized; their index is their place in the order of class and file name. An `.npz` file holds `images` (or
    `pixels`) [n, h, w, c], uint8 or float in [0, 1], `labels` [n], and perhaps `class_names`. With one class
    the cross-entropy loss is zero whatever the picture, so a single class gets an empty second one, `other`.

    Args:
        name: One of `DATASETS`, or a path. To open a folder that is named as a data set, write `./mnist`.
        split: `train` or `test` of a prepared data set; `train` if left out and prepared, else `test`.
        data_dir: Where data sets are prepared; if left out, the variable JAXLEAK_DATA_DIR, then
            tensorflow-datasets' own default. `photos` and paths need none.
        image_size: Height and width in pixels; if left out, as in `DATASETS`, 32 for a folder, and as stored
            for an `.npz` file. `photos` has 32, 224 and 299.

    Raises:
        InputError: no such data set, not prepared, no such split, or a file that is not a picture.
    """
    if image_size is not None:
        check_positive("image_size", image_size, integer=True)
    if name == "photos":
        return _load_photos(split, image_size)
    if name in DATASETS:
        return _load_prepared(str(name), split, _data_directory(data_dir), image_size)
    path = _existing_path(name)
    load_path = _load_folder if path.is_dir() else _load_npz
    return load_path(str(name), path, split, image_size)


def _existing_path(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        if isinstance(name, Path) or len(path.parts) > 1 or path.suffix == ".npz":
            raise InputError(f"`dataset` {str(name)!r} does not exist; give a folder of pictures or an .npz file.")
        try:
            check_choice("dataset", name, DATASETS)
        except InputError as error:
            raise InputError(f"{error} A folder of pictures or an .npz file works too.") from None
    return path


# --- photos -------------------------------------------------------------------------------------------------


def _load_photos(split: str | None, image_size: int | None) -> Dataset:
    """The photographs in the package: 32 px tiles, or one picture a class at 224 or 299 px."""
    check_choice("split", split or "all", ["all"])
    folder = importlib.resources.files("jaxleak") / "photos"
    with np.load(io.BytesIO((folder / "tiles.npz").read_bytes())) as tiles:
        pixels, labels = tiles["pixels"], tiles["labels"]
        class_names = tuple(str(name) for name in tiles["class_names"])
    if image_size not in (None, 32):
        if image_size not in (224, 299):
            raise InputError(f"`image_size` of photos must be one of 32, 224, 299; got {image_size}.")
        files = sorted((folder / str(image_size)).iterdir(), key=lambda file: file.name)
        pixels = np.stack([_decode(file.read_bytes()) for file in files])
        labels = np.asarray([class_names.index(Path(file.name).stem) for file in files])
    return _in_memory("photos", pixels, labels, class_names)


def _in_memory(name: str, pixels: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Dataset:
    return Dataset(
        name=name,
        split="all",
        image_shape=pixels.shape[1:],
        class_names=class_names,
        index=np.arange(len(pixels)),
        reader=lambda positions: (pixels[list(positions)], labels[list(positions)]),
    )


# --- prepared by tensorflow-datasets ------------------------------------------------------------------------


def _load_prepared(name: str, split: str | None, directory: Path, image_size: int | None) -> Dataset:
    import tensorflow_datasets as tfds

    info = _prepared_info(name, directory)
    splits = [key for key, value in info.splits.items() if all(Path(file).exists() for file in value.filepaths)]
    if not splits:
        raise InputError(_not_prepared(name, directory))
    split = check_choice("split", split or ("train" if "train" in splits else splits[0]), splits)
    if info.file_format.value != "array_record":
        raise InputError(
            f"`dataset` {name} in {directory} is stored as {info.file_format.value}, which only "
            f"TensorFlow reads; prepare it again elsewhere: {_prepare_command(name, Path('DIR'))}"
        )
    # SkipDecoding: pictures stay as stored bytes until they are asked for; `_decode` reads them with Pillow.
    builder: Any = tfds.builder_from_directory(info.data_dir)
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    column = functools.partial(_text_column, source, f"{name}-{info.version}-{split}", info.splits[split])

    index = np.arange(len(source))
    if "id" in info.features:  # `train_20319`: tensorflow-datasets shuffles, the id keeps the original index
        index = np.asarray([int(value.rpartition(b"_")[2]) for value in column("id")])
    class_names = getattr(info.features["label"], "names", None)
    if class_names is None:  # LFW's label is the person's name
        class_names = sorted({value.decode() for value in column("label")})
    class_names = tuple(class_names)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    size = image_size or DATASETS[name]

    def reader(positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        records = source.__getitems__(list(positions))
        pixels = [_square(_decode(record["image"]), size) for record in records]
        labels = [record["label"] for record in records]
        labels = [label_of[label.decode()] if isinstance(label, bytes) else label for label in labels]
        return np.stack(pixels), np.asarray(labels)

    return Dataset(
        name=name,
        split=split,
        image_shape=(size, size, info.features["image"].shape[-1]),
        class_names=class_names,
        index=index,
        reader=reader,
    )


def _data_directory(data_dir: str | Path | None) -> Path:
    """The directory of prepared data sets; one that the user named must exist."""
    named = {"`data_dir`": data_dir, "JAXLEAK_DATA_DIR": os.environ.get("JAXLEAK_DATA_DIR")}
    for source, value in named.items():
        if value:
            directory = Path(value).expanduser()
            if not directory.is_dir():
                raise InputError(f"{source} {str(value)!r} is not a directory; give the one with prepared data sets.")
            return directory
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepared_info(name: str, directory: Path) -> Any:
    """The description of the newest prepared version of a data set."""
    import tensorflow_datasets as tfds

    versions = {
        tuple(int(part) for part in file.parent.name.split(".")): file.parent
        for file in (directory / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+(\.\d+)*", file.parent.name)
    }
    if not versions:
        raise InputError(_not_prepared(name, directory))
    return tfds.builder_from_directory(versions[max(versions)]).info


def _not_prepared(name: str, directory: Path) -> str:
    command = _prepare_command(name, directory)
    return f"`dataset` {name} is not prepared in {directory}; prepare it once, which needs TensorFlow: {command}"


def _prepare_command(name: str, directory: Path) -> str:
    arguments = f"{name!r}, data_dir={str(directory)!r}, file_format='array_record'"
    python = f"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
    return f'pip install tensorflow && python -c "{python}"'


def _text_column(source: Any, name: str, split_info: Any, feature: str) -> np.ndarray:
    """One text feature at every position of a data source, as bytes [n]; walked once, then cached."""
    files = [Path(file) for file in split_info.filepaths]
    identity = repr([(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxleak"
    file = cache / f"{name}-{feature}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npy"
    try:
        column = np.load(file, allow_pickle=False)
        if column.shape == (len(source),) and column.dtype.kind == "S":
            return column
    except (OSError, ValueError, EOFError):
        pass
    blocks = (range(start, min(start + 2000, len(source))) for start in range(0, len(source), 2000))
    column = np.asarray([record[feature] for block in blocks for record in source.__getitems__(list(block))])
    _save_quietly(file, column)
    return column


def _save_quietly(file: Path, array: np.ndarray) -> None:
    """Write a cache file in one step; a directory that cannot be written only costs time next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            try:
                np.save(temporary, array, allow_pickle=False)
                temporary.close()
                os.replace(temporary.name, file)
            except OSError:
                Path(temporary.name).unlink(missing_ok=True)
    except OSError:
        pass


# --- the user's own pictures --------------------------------------------------------------------------------


def _load_folder(name: str, folder: Path, split: str | None, image_size: int | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    entries = _visible(folder)
    class_folders = [entry for entry in entries if entry.is_dir()]
    if class_folders:
        stray = [entry for entry in entries if not entry.is_dir()]
        if stray:
            raise InputError(f"`dataset` {name!r} has class folders and, beside them, {stray[0].name!r}; move it.")
        class_names = [entry.name for entry in class_folders]
        found = [(file, label) for label, entry in enumerate(class_folders) for file in _visible(entry)]
    else:
        class_names = [entry.name for entry in entries]
        found = [(file, label) for label, file in enumerate(entries)]
    if not found:
        raise InputError(f"`dataset` {name!r} holds no pictures; put pictures, or one sub-folder per class, in it.")
    files = [file for file, _ in found]
    labels = np.asarray([label for _, label in found])
    for file in files:
        _open_picture(file).close()  # reads the header only
    size = image_size or FOLDER_SIZE

    def reader(positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([_square(_read_picture(files[p]), size) for p in positions]), labels[list(positions)]

    return Dataset(
        name=name,
        split="all",
        image_shape=(size, size, 3),
        class_names=_at_least_two(class_names),
        index=np.arange(len(files)),
        reader=reader,
    )


def _visible(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)


def _load_npz(name: str, file: Path, split: str | None, image_size: int | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy and zipfile raise a dozen types for a file that is not an archive
        problem = _one_line(error)
        raise InputError(
            f"`dataset` {name!r} is neither a folder of pictures nor a readable .npz file ({problem})."
        ) from None
    pixels = arrays.get("images", arrays.get("pixels"))
    labels = arrays.get("labels")
    if pixels is None or labels is None:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"`dataset` {name!r} must hold arrays `images` (or `pixels`) and `labels`; it has {held}.")
    _check_npz(name, pixels, labels)
    class_names = [str(class_name) for class_name in arrays.get("class_names", range(labels.max() + 1))]
    if labels.max() >= len(class_names):
        raise InputError(f"`dataset` {name!r} has label {labels.max()} but only {len(class_names)} `class_names`.")
    if image_size is not None:
        pixels = np.stack([_square(picture, image_size) for picture in pixels])
    return _in_memory(name, pixels, labels, _at_least_two(class_names))


def _check_npz(name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[-1] not in (1, 3):
        raise InputError(f"`dataset` {name!r}: images must have shape [n, h, w, c] with c 1 or 3; got {pixels.shape}.")
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise InputError(f"`dataset` {name!r}: images must be uint8 or float in [0, 1]; got {pixels.dtype}.")
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"`dataset` {name!r}: float images must be in [0, 1]; "
            f"got {pixels.min():g} to {pixels.max():g}. Divide by the largest value first."
        )
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(
            f"`dataset` {name!r}: labels must be {len(pixels)} whole numbers from 0, one per image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )


def _at_least_two(class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(class_names) if len(class_names) > 1 else (*class_names, "other")


# --- pictures -----------------------------------------------------------------------------------------------


def _decode(encoded: bytes) -> np.ndarray:
    """A stored picture as uint8 [h, w, c]."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _open_picture(file: Path) -> Any:
    from PIL import Image

    try:
        return Image.open(file)
    except (OSError, Image.DecompressionBombError):
        problem = "a folder inside a class folder" if file.is_dir() else "not a picture"
        raise InputError(f"`dataset` holds {str(file)!r}, which is {problem}; remove it.") from None


def _read_picture(file: Path) -> np.ndarray:
    """A picture file as uint8 [h, w, 3], turned as its camera says, transparent parts on white."""
    from PIL import Image, ImageOps

    with _open_picture(file) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"`dataset` picture {str(file)!r} has more than 8 bits a channel; convert it to 8 bits.")
        try:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"`dataset` picture {str(file)!r} cannot be read ({_one_line(error)}).") from None
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """The central square of a picture [h, w, c] at `size` pixels, in the picture's own dtype.

    Source: iDLG, iDLG.py, `lfw_dataset`: torchvision's `Resize` of a Pillow image (bilinear, antialiased).
    """
    from PIL import Image

    height, width, channels = picture.shape
    if (height, width) == (size, size):
        return picture
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    dtype = np.uint8 if picture.dtype == np.uint8 else np.float32
    planes = [Image.fromarray(picture[..., c].astype(dtype)) for c in range(channels)]
    resized = [plane.resize((size, size), Image.Resampling.BILINEAR, box=box) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
