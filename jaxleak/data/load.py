"""A data set by its name, or the user's own pictures by their path."""

from pathlib import Path

from jaxleak.data.dataset import DATASETS, Dataset
from jaxleak.data.pictures import load_arrays, load_folder, load_photos
from jaxleak.data.prepared import data_directory, load_prepared
from jaxleak.data.texts import load_text, load_text_file
from jaxleak.errors import InputError, check_choice, check_positive, check_type


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    data_dir: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    pixel_max: float | None = None,
    length: int | None = None,
) -> Dataset:
    """Open a data set by its name, or the user's own pictures by their path.

    Own pictures are a folder, an `.npz` or an `.npy` file. In a folder each sub-folder is a class; in a folder without
    sub-folders each picture is a class of its own. Of a picture the largest central part of the size's shape is
    resized; its index is its place in the order of class and file name. An `.npz` file holds `images` (or `pixels`)
    [n, h, w, c], or [n, h, w] of grey ones, `labels` [n], and perhaps `class_names`; an `.npy` file holds images alone,
    each a class of its own. Images are uint8, or float in [0, 1]; others need `pixel_max`. With one class
    the cross-entropy loss is zero whatever the picture, so a single class gets an empty second one, `other`.
    `text` is embedded; a `.txt` file is read in its vocabulary.

    Args:
        name: One of `DATASETS`, or a path. To open a folder that is named as a data set, write `./mnist`.
        split: `train` or `test` of a prepared data set; `train` if left out and prepared, else `test`.
        data_dir: Where data sets are prepared; if left out, the variable JAXLEAK_DATA_DIR, then
            tensorflow-datasets' own default. `photos` and paths need none.
        image_size: Height and width in pixels, one number if they are the same; if left out, as in `DATASETS`, 32 for a
            folder, and as stored for a file. `photos` has 32, 224 and 299.
        pixel_max: The value of white in own pictures of more than 8 bits, as 4095 in those of 12; if left out, 65535
            for pictures that use all 16 bits, and 1 for floats.
        length: Tokens of a text, of `text` and `.txt` files; if left out, 16.

    Raises:
        InputError: no such data set, not prepared, no such split, or a file that is not a picture.

    Example:
        >>> import numpy as np
        >>> import jaxleak
        >>> np.savez("own.npz", images=np.zeros((5, 8, 8, 1), np.uint8), labels=[0, 1, 2, 0, 1])
        >>> jaxleak.load_dataset("own.npz")
        Dataset(own.npz/all: 5 images 8x8x1, 3 classes)
    """
    check_type("dataset", name, (str, Path), "a name or a path")
    if name == "":
        raise InputError(
            f"`dataset` must be one of {', '.join(DATASETS)}, a folder of pictures or an .npz file; got ''."
        )
    sides = image_size if image_size is None or isinstance(image_size, tuple) else (image_size, image_size)
    for side in sides or ():
        check_positive("image_size", side, integer=True)
    if name == "text" or Path(name).suffix == ".txt":
        for setting, value in {"image_size": sides, "pixel_max": pixel_max}.items():
            if value is not None:
                raise InputError(f"`{setting}` is for pictures; leave it out with the data set {name}.")
        if name == "text":
            return load_text(split, length)
        return load_text_file(str(name), _existing_path(name), split, length)
    if length is not None:
        raise InputError(f"`length` is the number of tokens of a text; leave it out with the data set {name}.")
    if pixel_max is not None:
        check_positive("pixel_max", pixel_max)
        if name in DATASETS:
            raise InputError(f"`pixel_max` is for pictures of your own; {name} has 255. Leave it out.")
    if name == "photos":
        return load_photos(split, sides)
    if name in DATASETS:
        return load_prepared(str(name), split, data_directory(data_dir), sides)
    path = _existing_path(name)
    load_path = load_folder if path.is_dir() else load_arrays
    return load_path(str(name), path, split, sides, pixel_max)


def _existing_path(name: str | Path) -> Path:
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long
        raise InputError(f"`dataset` {str(name)!r} cannot be read ({error.strerror}).") from None
    if not there:
        if isinstance(name, Path) or len(path.parts) > 1 or path.suffix in (".npz", ".npy", ".txt"):
            raise InputError(f"`dataset` {str(name)!r} does not exist; give a folder of pictures or an .npz file.")
        try:
            check_choice("dataset", name, DATASETS)
        except InputError as error:
            raise InputError(f"{error} A folder of pictures or an .npz file works too.") from None
    return path
