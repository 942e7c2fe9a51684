"""The embedded photographs, and the user's own pictures from a folder or a file of arrays."""

import importlib.resources
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxleak.data.dataset import Dataset, in_memory
from jaxleak.data.decode import decode, fitted, is_deep, is_picture, one_line, open_picture, read_picture
from jaxleak.errors import InputError, check_choice, check_file

Sides = tuple[int, int] | None

FOLDER_SIZE = 32
MOST_CLASSES = 100_000  # without names: the network has an output for each number up to the largest label
DEBRIS = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # what file managers leave, beside hidden files


def load_photos(split: str | None, sides: Sides) -> Dataset:
    """The photographs in the package: 32 px tiles, or one picture a class at 224 or 299 px."""
    check_choice("split", split or "all", ["all"])
    folder = importlib.resources.files("jaxleak.data") / "photos"
    with np.load(io.BytesIO((folder / "tiles.npz").read_bytes())) as tiles:
        pixels, labels = tiles["pixels"], tiles["labels"]
        class_names = tuple(str(name) for name in tiles["class_names"])
    if sides not in (None, (32, 32)):
        if sides not in ((224, 224), (299, 299)):
            got = sides[0] if sides[0] == sides[1] else "{}x{}".format(*sides)
            raise InputError(f"`image_size` of photos must be one of 32, 224, 299; got {got}.")
        files = sorted((folder / str(sides[0])).iterdir(), key=lambda file: file.name)
        pixels = np.stack([decode(file.read_bytes()) for file in files])
        labels = np.asarray([class_names.index(Path(file.name).stem) for file in files])
    return in_memory("photos", pixels, labels, class_names)


def load_folder(name: str, folder: Path, split: str | None, sides: Sides, pixel_max: float | None) -> Dataset:
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
    white = _whites(name, files, pixel_max)
    height, width = sides or (FOLDER_SIZE, FOLDER_SIZE)

    def picture(file: Path) -> np.ndarray:
        pixels = read_picture(file)
        return fitted(_scaled(pixels, white[file]) if any(white.values()) else pixels, (height, width))

    def reader(positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([picture(files[position]) for position in positions]), labels[list(positions)]

    return Dataset(
        name=name,
        split="all",
        image_shape=(height, width, 3),
        class_names=_at_least_two(class_names),
        index=np.arange(len(files)),
        reader=reader,
    )


def _scaled(pixels: np.ndarray, white: float | None) -> np.ndarray:
    """Pixels in [0, 1], by the value of white; None for one byte each."""
    return (np.asarray(pixels, np.float64) / (white or 255)).astype(np.float32)


def _whites(name: str, files: Sequence[Path], pixel_max: float | None) -> dict[Path, float | None]:
    """The value of white in each picture of more than 8 bits, None for others; their headers are read.

    Raises:
        InputError: it cannot be told, or is not the largest value; a file that is no picture.
    """
    deep = []
    for file in files:
        with open_picture(file) as image:
            deep += [file] if is_deep(image) else []
    if pixel_max is not None and pixel_max != 255 and not deep:
        raise InputError(f"`pixel_max` is for pictures of more than 8 bits; those in {name!r} have 8. Leave it out.")
    least, largest, kinds = 0.0, 0.0, set()
    for file in deep:
        pixels = read_picture(file)
        kinds.add(pixels.dtype.kind)
        least, largest = min(least, float(pixels.min())), max(largest, float(pixels.max()))
    if not deep:
        white = None
    elif pixel_max is not None:
        white = pixel_max
        if least < 0 or not largest <= pixel_max:
            raise InputError(
                f"`pixel_max` must be the largest value there can be in {name!r}; it is {pixel_max:g}, and pixels go "
                f"from {least:g} to {largest:g}."
            )
    elif "f" in kinds and least >= 0 and largest <= 1:
        white = 1.0
    elif "f" not in kinds and least >= 0 and 2**15 <= largest < 2**16:
        white = 65535.0
    else:
        raise InputError(
            f"`dataset` {name!r} has pictures of more than 8 bits, with values from {least:g} to {largest:g}; "
            "what is white cannot be told. State it: --pixel-max 4095 for 12 bits, 65535 for 16."
        )
    return {file: white if file in set(deep) else None for file in files}


def _visible(folder: Path) -> list[Path]:
    entries = [file for file in folder.iterdir() if not file.name.startswith(".") and file.name.lower() not in DEBRIS]
    return sorted(entries, key=lambda entry: entry.name)


def load_arrays(name: str, file: Path, split: str | None, sides: Sides, pixel_max: float | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    check_file("dataset", file, "a folder of pictures or an .npz file")
    if is_picture(file):
        raise InputError(f"`dataset` {name!r} is one picture; give a folder that holds it.")
    try:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            arrays = {"images": archive, "labels": np.arange(len(archive))}
        else:
            with archive:
                arrays = {key: archive[key] for key in archive.files}
            raw = [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]
            if raw:  # numpy hands out the bytes of what does not begin as its arrays do
                raise ValueError(f"{raw[0]} in it is no array")
    except Exception as error:  # numpy and zipfile raise a dozen types for a file that is not an archive
        problem = "it holds Python objects" if "allow_pickle" in str(error) else one_line(error)
        raise InputError(
            f"`dataset` {name!r} is neither a folder of pictures nor a readable .npz file ({problem})."
        ) from None
    pixels = arrays.get("images", arrays.get("pixels"))
    labels = arrays.get("labels", arrays.get("targets"))
    if pixels is None or labels is None:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"`dataset` {name!r} must hold arrays `images` (or `pixels`) and `labels`; it has {held}.")
    if pixels.ndim == 3 and pixels.shape[-1] > 3:
        pixels = pixels[..., None]
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu" and labels.size and labels.max() > 1:
        labels = labels[:, 0]  # classes in a column, as Keras has them
    vectors = None
    if labels.ndim == 2 or "targets" in arrays:  # a yes or no for each output, or numbers
        vectors = _vectors(name, arrays.get("targets", labels), pixels)
        labels = np.argmax(vectors, axis=1) if vectors.shape[1] > 1 else (vectors[:, 0] > 0.5).astype(np.int32)
    _check_arrays(name, pixels, labels, pixel_max)
    if pixel_max is not None:
        pixels = _scaled(pixels, pixel_max)
    largest = int(labels.max())
    if "class_names" not in arrays and largest >= MOST_CLASSES:
        raise InputError(
            f"`dataset` {name!r}: labels must be below {MOST_CLASSES:,}, as there is a class for each number; the "
            f"largest is {largest}. Number the classes from 0."
        )
    count = largest + 1 if vectors is None else max(largest + 1, vectors.shape[1])
    names = arrays.get("class_names", np.arange(count))
    if names.ndim != 1:
        raise InputError(f"`dataset` {name!r}: class_names must be one name for each class; got shape {names.shape}.")
    class_names = [str(class_name) for class_name in names]
    if largest >= len(class_names):
        raise InputError(f"`dataset` {name!r} has label {largest} but only {len(class_names)} `class_names`.")
    if sides is not None:
        pixels = np.stack([fitted(picture, sides) for picture in pixels])
    return in_memory(name, pixels, labels, _at_least_two(class_names), vectors)


def _vectors(name: str, targets: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    if targets.ndim == 1 and targets.dtype.kind == "f":
        targets = targets[:, None]
    count = len(pixels) if pixels.ndim else 0
    if targets.ndim != 2 or 0 in targets.shape or len(targets) != count or targets.dtype.kind not in "biuf":
        raise InputError(
            f"`dataset` {name!r}: targets must be numbers [n, k] for {count} images and k outputs; "
            f"got {targets.dtype} of shape {targets.shape}."
        )
    if not np.isfinite(targets).all():
        raise InputError(f"`dataset` {name!r}: targets must be finite.")
    return targets.astype(np.float64)


def _check_arrays(name: str, pixels: np.ndarray, labels: np.ndarray, pixel_max: float | None) -> None:
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[-1] not in (1, 3):
        turn = " Transpose torch's [n, c, h, w]." if pixels.ndim == 4 and pixels.shape[1] in (1, 3) else ""
        raise InputError(
            f"`dataset` {name!r}: images must have shape [n, h, w], or [n, h, w, c] with c 1 or 3; "
            f"got {pixels.shape}.{turn}"
        )
    whole = pixels.dtype.kind in "iu"
    if pixels.dtype.kind not in "iuf" or (whole and pixels.dtype != np.uint8 and pixel_max is None):
        seen = f", from {pixels.min()} to {pixels.max()}. State the value of white, --pixel-max" if whole else ""
        raise InputError(f"`dataset` {name!r}: images must be uint8 or float in [0, 1]; got {pixels.dtype}{seen}.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"`dataset` {name!r}: images must be finite; {_count_not_finite(pixels)}. Leave these out.")
    if pixel_max is not None and not (pixels.min() >= 0 and pixels.max() <= pixel_max):
        raise InputError(
            f"`pixel_max` must be the largest value there can be in {name!r}, and 0 the least; it is {pixel_max:g}, "
            f"and pixels go from {pixels.min():g} to {pixels.max():g}."
        )
    if pixel_max is None and pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            f"`dataset` {name!r}: float images must be in [0, 1]; got {pixels.min():g} to {pixels.max():g}. "
            "Scale them first, or state the value of white, --pixel-max; pixels from 0 to 255 may be uint8."
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
