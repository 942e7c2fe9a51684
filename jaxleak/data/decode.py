"""Pictures as arrays, by Pillow."""

import io
import sys
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


def is_picture(file: Path) -> bool:
    """True for a file that Pillow knows, of which nothing but the header is read."""
    from PIL import Image

    try:
        with Image.open(file):
            return True
    except Exception:  # Pillow raises a dozen types
        return False


def is_deep(image: Any) -> bool:
    """True for an opened picture of more than 8 bits a channel, of which nothing but the header is read."""
    return image.mode.startswith(("I", "F")) or _raw_mode(image) is not None


def read_picture(file: Path) -> np.ndarray:
    """A picture file as [h, w, 3], turned as its camera says, transparent parts on white.

    Returns:
        uint8; of a picture of more than 8 bits a channel the numbers as they are stored, uint16, int32 or float32.
    """
    from PIL import Image, ImageOps

    with open_picture(file) as image:
        deep = is_deep(image)
        try:
            if deep:
                return _deep(file, image)
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"`dataset` picture {str(file)!r} cannot be read ({one_line(error)}).") from None
    white = Image.new("RGBA", upright.size, "white")
    return np.asarray(Image.alpha_composite(white, upright).convert("RGB"))


def _raw_mode(image: Any) -> str | None:
    """How 16-bit colours are stored, of which Pillow keeps the upper eight bits; None for what it reads whole."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    modes = [argument[0] if isinstance(argument, tuple) else argument for argument in arguments]
    deep = [mode for mode in modes if isinstance(mode, str) and mode.partition(";")[2] in ("16B", "16L", "16N")]
    return deep[0] if deep and not image.mode.startswith("I") else None


def _deep(file: Path, image: Any) -> np.ndarray:
    from PIL import ImageOps

    stored = _raw_mode(image)
    if stored is None:
        pixels = np.asarray(ImageOps.exif_transpose(image))
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        return np.repeat(pixels[..., None], 3, axis=-1)
    channels, _, order = stored.partition(";")
    if channels not in ("RGB", "RGBA"):
        raise ValueError("16 bits and transparency; save it as grey or as RGBA")
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(order[-1], order[-1])
    # Read as of either order of bytes, it gives one half of each number.
    halves = []
    for half in ("B", "L"):
        with open_picture(file) as opened:
            opened.tile = [_with_mode(tile, f"{channels};16{half}") for tile in opened.tile]
            halves.append(np.asarray(ImageOps.exif_transpose(opened)).astype(np.uint16))
    high, low = halves if order == "B" else reversed(halves)
    pixels = high * np.uint16(256) + low
    if channels == "RGB":
        return pixels
    alpha = pixels[..., 3:] / 65535
    return (pixels[..., :3] * alpha + 65535 * (1 - alpha)).round().astype(np.uint16)


def _with_mode(tile: Any, mode: str) -> tuple:
    codec, extents, offset, arguments = tile
    return codec, extents, offset, (mode, *arguments[1:]) if isinstance(arguments, tuple) else mode


def fitted(picture: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """The largest central part of a picture [h, w, c] of this shape, at this height and width in pixels.

    uint8 stays uint8; other types become float32.

    Source: iDLG, iDLG.py, `lfw_dataset`: torchvision's `Resize` of a Pillow image (bilinear, antialiased).
    """
    from PIL import Image

    height, width, channels = picture.shape
    if (height, width) == sides:
        return picture
    scale = min(height / sides[0], width / sides[1])
    part = round(sides[0] * scale), round(sides[1] * scale)
    left, top = (width - part[1]) // 2, (height - part[0]) // 2
    box = (left, top, left + part[1], top + part[0])
    dtype = np.uint8 if picture.dtype == np.uint8 else np.float32
    planes = [Image.fromarray(picture[..., c].astype(dtype)) for c in range(channels)]
    resized = [plane.resize((sides[1], sides[0]), Image.Resampling.BILINEAR, box=box) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
