"""Pictures as arrays, by Pillow."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxleak.errors import InputError


def decode(encoded: bytes) -> np.ndarray:
    """A stored picture as uint8 [h, w, c]."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def open_picture(file: Path) -> Any:
    from PIL import Image

    try:
        if not file.is_file():  # opening a pipe would wait for a writer
            raise OSError
        return Image.open(file)
    except (OSError, Image.DecompressionBombError):
        problem = "a folder inside a class folder" if file.is_dir() else "not a picture"
        raise InputError(f"`dataset` holds {str(file)!r}, which is {problem}; remove it.") from None


def read_picture(file: Path) -> np.ndarray:
    """A picture file as uint8 [h, w, 3], turned as its camera says, transparent parts on white."""
    from PIL import Image, ImageOps

    with open_picture(file) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"`dataset` picture {str(file)!r} has more than 8 bits a channel; convert it to 8 bits.")
        try:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"`dataset` picture {str(file)!r} cannot be read ({one_line(error)}).") from None
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))


def square(picture: np.ndarray, size: int) -> np.ndarray:
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


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
