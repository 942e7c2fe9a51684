"""Pictures as data URIs: one PNG per trial with its candidates side by side, and one per true image."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jaxleak.data.texts import SPACE
from jaxleak.results.matching import unmosaic
from jaxleak.results.metrics import psnr, ssim
from jaxleak.results.text_metrics import rouge_l, tokens_wrong

if TYPE_CHECKING:
    from jaxleak.results.page.collect import Source

MOST_SIDE = 192  # pixels of a picture on the page; larger ones are made smaller


def digest(pixels: Float[np.ndarray, "h w c"]) -> str:
    """A short hash that identifies a picture."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:12]


def shrunk(height: int, width: int) -> tuple[int, int]:
    """The size in which a picture is shown."""
    scale = min(1.0, MOST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def frame_bytes(source: "Source") -> int:
    """Bytes of one candidate on the page, before compression."""
    if source.run.modality == "text":
        return 8 * source.batch * source.run.settings["victim"]["image_shape"][0]
    height, width, channels = source.run.settings["victim"]["image_shape"]
    columns = math.ceil(math.sqrt(source.batch))
    height, width = shrunk(height * -(-source.batch // columns), width * columns)
    return height * width * channels


def sprite(frames: Float[np.ndarray, "s h w c"]) -> str:
    """Frames of pixels in [0, 1], side by side in one PNG; what is outside is clipped, what is not finite black."""
    from PIL import Image

    height, width = frames.shape[1:3]
    levels = np.round(np.clip(np.nan_to_num(frames, nan=0, posinf=0, neginf=0), 0, 1) * 255).astype(np.uint8)
    levels = levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3]
    pictures = [Image.fromarray(frame) for frame in levels]
    size = shrunk(height, width)
    if size != (height, width):
        pictures = [picture.resize((size[1], size[0]), Image.Resampling.BOX) for picture in pictures]
    whole = Image.new(pictures[0].mode, (size[1] * len(pictures), size[0]))
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place * size[1], 0))
    buffer = io.BytesIO()
    whole.save(buffer, "png", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# Of each kind of data what is measured at the snapshots too: column of a row, name and unit.
LIKENESS = {
    "image": (("psnr", "PSNR", " dB"), ("ssim", "SSIM", "")),
    "text": (("tokens_right", "tokens right", ""), ("rougel", "ROUGE-L", "")),
}


def likenesses(sources: Sequence["Source"]) -> list[tuple[str, str, str]]:
    """`LIKENESS` of the kinds of data that the runs have."""
    return [one for kind in dict.fromkeys(source.run.modality for source in sources) for one in LIKENESS[kind]]


def wrong(sources: Sequence["Source"]) -> str:
    """The name of what rows call `mse`."""
    names = {"text": "share of tokens wrong", "image": "MSE"}
    return " or ".join(dict.fromkeys(names[source.run.modality] for source in sources))


def written(frames: Int[np.ndarray, "s b t"], vocabulary: Any) -> list[list[list[str]]]:
    """The tokens of each text of each frame, as they are read."""
    words = [str(word).replace(SPACE, " ") for word in vocabulary]
    return [[[words[token] for token in text] for text in frame] for frame in frames.astype(int).tolist()]


def likeness_of_texts(frames: Int[np.ndarray, "s b t"], truths: Int[np.ndarray, "s b t"]) -> dict[str, Any]:
    """Share of tokens right in their places and ROUGE-L of each frame, the mean over its texts."""
    flat = [texts.reshape(-1, texts.shape[-1]) for texts in (frames, truths)]
    each = {"tokens_right": 1 - tokens_wrong(*flat) / frames.shape[-1], "rougel": rouge_l(*flat)}
    return {name: np.mean(values.reshape(frames.shape[:2]), axis=1) for name, values in each.items()}


def likeness(
    frames: Float[np.ndarray, "s h w c"], truths: Float[np.ndarray, "s h w c"], batch: int
) -> dict[str, Float[np.ndarray, "s"]]:
    """PSNR and SSIM of each frame to its truth, as of rows: clipped, and of a batch the mean over its images."""
    apart = [unmosaic(np.asarray(images), batch) if batch > 1 else images[:, None] for images in (frames, truths)]
    flat = [images.reshape(-1, *images.shape[2:]) for images in apart]
    each = {"psnr": psnr(*flat), "ssim": ssim(*flat)}
    return {name: np.mean(values.reshape(len(frames), batch), axis=1) for name, values in each.items()}
