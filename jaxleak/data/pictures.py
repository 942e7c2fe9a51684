"""The embedded photographs, and the user's own pictures from a folder or an `.npz` file."""

import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxleak.data.dataset import Dataset, in_memory
from jaxleak.data.decode import decode, one_line, open_picture, read_picture, square
from jaxleak.errors import InputError, check_choice, check_file

FOLDER_SIZE = 32
MOST_CLASSES = 100_000  # without names: the network has an output for each number up to the largest label
DEBRIS = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # what file managers leave, beside hidden files


def load_photos(split: str | None, image_size: int | None) -> Dataset:
    """The photographs in the package: 32 px tiles, or one picture a class at 224 or 299 px."""
    check_choice("split", split or "all", ["all"])
    folder = importlib.resources.files("jaxleak.data") / "photos"
    with np.load(io.BytesIO((folder / "tiles.npz").read_bytes())) as tiles:
        pixels, labels = tiles["pixels"], tiles["labels"]
        class_names = tuple(str(name) for name in tiles["class_names"])
    if image_size not in (None, 32):
        if image_size not in (224, 299):
            raise InputError(f"`image_size` of photos must be one of 32, 224, 299; got {image_size}.")
        files = sorted((folder / str(image_size)).iterdir(), key=lambda file: file.name)
        pixels = np.stack([decode(file.read_bytes()) for file in files])
        labels = np.asarray([class_names.index(Path(file.name).stem) for file in files])
    return in_memory("photos", pixels, labels, class_names)


def load_folder(name: str, folder: Path, split: str | None, image_size: int | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    entries = _visible(folder)
    class_folders = [entry for entry in entries if entry.is_dir()]
    if class_folders:
        stray = [entry for entry in entries if not entry.is_dir()]
        if stray:
            raise InputError(f"`dataset` {name!r} has class folders and, beside them, {stray[0].name!r}; move it.")
        class_names = [entry.name for entry in class_folders]
        labelled = [(file, label) for label, entry in enumerate(class_folders) for file in _visible(entry)]
    else:
        class_names = [entry.name for entry in entries]
        labelled = [(file, label) for label, file in enumerate(entries)]
    if not labelled:
        raise InputError(f"`dataset` {name!r} holds no pictures; put pictures, or one sub-folder per class, in it.")
    files = [file for file, _ in labelled]
    labels = np.asarray([label for _, label in labelled])
    for file in files:
        open_picture(file).close()  # reads the header only
    size = image_size or FOLDER_SIZE

    def reader(positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([square(read_picture(files[p]), size) for p in positions]), labels[list(positions)]

    return Dataset(
        name=name,
        split="all",
        image_shape=(size, size, 3),
        class_names=_at_least_two(class_names),
        index=np.arange(len(files)),
        reader=reader,
    )


def _visible(folder: Path) -> list[Path]:
    entries = [file for file in folder.iterdir() if not file.name.startswith(".") and file.name.lower() not in DEBRIS]
    return sorted(entries, key=lambda entry: entry.name)


def load_npz(name: str, file: Path, split: str | None, image_size: int | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    check_file("dataset", file, "a folder of pictures or an .npz file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy and zipfile raise a dozen types for a file that is not an archive
        problem = "it holds Python objects" if "allow_pickle" in str(error) else one_line(error)
        raise InputError(
            f"`dataset` {name!r} is neither a folder of pictures nor a readable .npz file ({problem})."
        ) from None
    pixels = arrays.get("images", arrays.get("pixels"))
    labels = arrays.get("labels")
    if pixels is None or labels is None:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"`dataset` {name!r} must hold arrays `images` (or `pixels`) and `labels`; it has {held}.")
    _check_npz(name, pixels, labels)
    largest = int(labels.max())
    if "class_names" not in arrays and largest >= MOST_CLASSES:
        raise InputError(
            f"`dataset` {name!r}: labels must be below {MOST_CLASSES:,}, as there is a class for each number; the "
            f"largest is {largest}. Number the classes from 0."
        )
    names = arrays.get("class_names", np.arange(largest + 1))
    if names.ndim != 1:
        raise InputError(f"`dataset` {name!r}: class_names must be one name for each class; got shape {names.shape}.")
    class_names = [str(class_name) for class_name in names]
    if largest >= len(class_names):
        raise InputError(f"`dataset` {name!r} has label {largest} but only {len(class_names)} `class_names`.")
    if image_size is not None:
        pixels = np.stack([square(picture, image_size) for picture in pixels])
    return in_memory(name, pixels, labels, _at_least_two(class_names))


def _check_npz(name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[-1] not in (1, 3):
        raise InputError(f"`dataset` {name!r}: images must have shape [n, h, w, c] with c 1 or 3; got {pixels.shape}.")
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise InputError(f"`dataset` {name!r}: images must be uint8 or float in [0, 1]; got {pixels.dtype}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"`dataset` {name!r}: images must be finite; {_count_not_finite(pixels)}. Leave these out.")
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"`dataset` {name!r}: float images must be in [0, 1]; "
            f"got {pixels.min():g} to {pixels.max():g}. Scale them first; pixels from 0 to 255 may be uint8."
        )
    if labels.size and labels.dtype.kind in "iu" and labels.min() < 0:
        raise InputError(f"`dataset` {name!r}: labels must be whole numbers from 0; the least is {labels.min()}.")
    if labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"`dataset` {name!r}: labels must be {len(pixels)} whole numbers from 0, one per image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )


def _count_not_finite(pixels: np.ndarray) -> str:
    broken = [n for n, picture in enumerate(pixels) if not np.isfinite(picture).all()]
    return f"not those of index {', '.join(map(str, broken[:5]))}{' and others' * (len(broken) > 5)}"


def _at_least_two(class_names: Sequence[str]) -> tuple[str, ...]:
    return tuple(class_names) if len(class_names) > 1 else (*class_names, "other")
