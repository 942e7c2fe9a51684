"""Properties of a batch's images that their labels do not tell: each is given to them, whatever they show."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError

Images = Float[np.ndarray, "n h w c"]
GREY = np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
FRAME = 16  # a frame's width is the image's side over this


def grey(images: Images) -> Images:
    """Every image is grey: each pixel has its luma in all three channels."""
    if images.shape[-1] != 3:
        raise InputError(f"`property` grey needs pictures with three channels; these have {images.shape[-1]}.")
    return np.repeat((images @ GREY)[..., None], 3, axis=-1)


def mirrored(images: Images) -> Images:
    """Every image is mirrored, left to right."""
    return images[:, :, ::-1]


def framed(images: Images) -> Images:
    """Every image has a white frame, as wide as a sixteenth of its side."""
    width = max(1, min(images.shape[1:3]) // FRAME)
    inner = np.s_[:, width:-width, width:-width]
    whole = np.ones_like(images)
    whole[inner] = images[inner]
    return whole


PROPERTIES: dict[str, Callable[[Images], Images]] = {"grey": grey, "mirrored": mirrored, "framed": framed}
