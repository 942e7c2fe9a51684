"""Which parts of the images an update determines, at the noise that its floor stands for."""

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxleak.data.paths import write_atomically
from jaxleak.runs.audit.floor import Floor
from jaxleak.runs.audit.information import Information
from jaxleak.runs.audit.refit import squared_norm_of
from jaxleak.threat.victim import Victim

DETERMINED = 0.2  # expected error, as a share of the image's norm: as far as two restarts may differ
HIDDEN = 0.1  # expected error per pixel that hides an image: 20 dB
SPREAD = 0.05  # relative distance of restarts below which no direction is free
UNSURE = 0.1  # expected error of a pixel that is not determined


@dataclass(frozen=True, eq=False)
class Determined:
    """What an update determines of the images found.

    Attributes:
        information: at these images.
        noise: standard deviation on each entry that the floor allows, in the update's units.
        size: root mean square of the update's entries.
        sentences: parts that are not determined; empty where all are.
        map: expected error of each pixel at `noise`.
        free: directions that the update leaves free and that the smoothest image fills in.
        foretold: error of the smoothest image along such directions (`rgap.foretold`); None where none are filled in.
    """

    information: Information
    noise: float
    size: float
    sentences: list[str]
    map: Float[np.ndarray, "b h w c"]
    free: int = 0
    foretold: float | None = None

    @property
    def filled(self) -> str:
        """A sentence on the directions that are filled in; empty without."""
        if self.foretold is None:
            return ""
        known = self.information.pixels - self.free
        return (
            f"the update determines {known} of {self.information.pixels} directions, and the rest is as in the "
            f"smoothest picture, which foretold known outputs that were held back to {psnr(self.foretold):.0f} dB"
        )

    def as_dict(self) -> dict[str, Any]:
        """For the report: `psnr` is the number that says how well the images are determined."""
        error = self.information.error(self.noise)
        hiding = self.information.noise_for(HIDDEN)
        return {
            "psnr": psnr(error),
            "error_per_pixel": error,
            "noise": self.noise,
            "hiding_noise": hiding if math.isfinite(hiding) else None,
            "hiding_noise_over_update": hiding / self.size if math.isfinite(hiding) and self.size else None,
            "exact": self.information.exact,
            "free_directions": self.free,
            "foretold_error": self.foretold,
            "smallest_singular_value": self.information.smallest,
            "largest_singular_value": float(np.sqrt(max(self.information.values[-1], 0))),
            "undetermined": self.sentences,
        }


def psnr(error: float) -> float:
    """PSNR of images in [0, 1] with this root mean squared error [dB]."""
    return -20 * math.log10(max(error, 1e-12))


def determined_at(
    victim: Victim,
    pixels: Float[np.ndarray, "b h w c"],
    known: Information,
    floor: Floor,
    weights: PyTree,
    spread: float | None,
    foretold: float | None = None,
) -> Determined:
    """What the given update determines of images that explain it.

    Args:
        victim: with a given update.
        pixels: the images found.
        known: information at these.
        floor: what a right model leaves.
        weights: of each entry in the comparison.
        spread: largest relative distance between restarts that explain the update and agree; None: there is one.
        foretold: error to expect along directions that are free, which the smoothest image fills in; None: nothing
            fills them in.
    """
    mask = jax.tree.map(lambda weight: (np.asarray(weight) > 0).astype(np.float64), weights)
    leaves = zip(jax.tree.leaves(mask), jax.tree.leaves(victim.update), strict=True)
    entries = sum(float(np.sum(np.broadcast_to(weight, np.shape(leaf)))) for weight, leaf in leaves)
    norm2 = squared_norm_of(victim.update, mask)
    noise = math.sqrt(floor.value * norm2 / max(entries, 1))
    free = 0
    if foretold is not None:
        least = (noise / max(foretold, 1e-6)) ** 2  # the information that leaves this error
        free = int(np.sum(known.values < least))
        known = replace(known, values=np.maximum(known.values, least))
    errors = known.error_map(noise)
    sentences = _sentences(known, noise, errors, pixels)
    if not known.exact and not sentences and not (spread is not None and spread < SPREAD):
        # A randomised spectrum may miss a direction that is not determined; independent restarts differ along it.
        far = (
            "one restart alone shows it"
            if spread is None
            else f"restarts that explain the update differ by {spread:.2g}"
        )
        sentences = [f"whether all of it is determined is not known ({far})"]
    return Determined(known, noise, math.sqrt(norm2 / max(entries, 1)), sentences, errors, free, foretold)


def _sentences(known: Information, noise: float, spread: np.ndarray, pixels: np.ndarray) -> list[str]:
    sentences = []
    several = len(pixels) > 1
    for place, (errors, image) in enumerate(zip(spread, pixels, strict=True)):
        share = float(np.linalg.norm(errors) / max(np.linalg.norm(np.clip(image, 0, 1)), 1e-12))
        if share < DETERMINED and np.sqrt(np.mean(errors**2)) < HIDDEN:
            continue
        name = f"image {place}" if several else "the image"
        decibels = f"{psnr(float(np.sqrt(np.mean(errors**2)))):.0f} dB expected"
        if _is_contrast(known, noise, pixels, place):
            sentences.append(f"contrast and brightness of {name} are not determined ({decibels})")
            continue
        unsure = np.max(errors, axis=-1) > UNSURE
        rows, columns = np.nonzero(unsure)
        if 0 < unsure.mean() < 0.6:
            where = f"rows {rows.min()} to {rows.max()}, columns {columns.min()} to {columns.max()}"
            sentences.append(f"{unsure.mean():.0%} of the pixels of {name} are not determined ({where}; {decibels})")
        else:
            sentences.append(f"{name} is not determined ({decibels})")
    return sentences


def _is_contrast(known: Information, noise: float, pixels: np.ndarray, place: int) -> bool:
    """True if most of an image's expected error lies in its contrast and in each channel's brightness."""
    if known.basis is None:
        return False
    directions = []
    for channel in range(pixels.shape[-1]):
        plain, bright = np.zeros_like(pixels), np.zeros_like(pixels)
        plain[place, ..., channel], bright[place, ..., channel] = 1, pixels[place, ..., channel]
        directions += [plain.ravel(), bright.ravel()]
    span, _ = np.linalg.qr(np.stack(directions, axis=1))
    variances = known.variances(noise)
    mine = np.zeros(pixels.shape, bool)
    mine[place] = True
    within = float(np.sum((known.basis.T @ span) ** 2 * variances[:, None]))
    total = float(np.sum((np.square(known.basis) @ variances)[mine.ravel()]))
    return within > 0.5 * total


def draw_map(found: Determined, pixels: Float[np.ndarray, "b h w c"], path: Path) -> None:
    """The images found, the expected error of each of their pixels, and the error to expect at any noise."""
    from matplotlib.figure import Figure

    shown = list(zip(pixels, found.map, strict=True))[:4]
    figure = Figure(figsize=(2.1 * len(shown) + 4.2, 4.2), dpi=110, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(2.1 * len(shown), 4.2))
    left, right = halves
    panels = left.subplots(2, len(shown), squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    largest = float(max(np.max(errors) for _, errors in shown))
    picture = None
    for column, (image, errors) in zip(panels.T, shown, strict=True):
        image = np.clip(image, 0, 1)
        column[0].imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        picture = column[1].imshow(np.sqrt(np.mean(errors**2, axis=-1)), cmap="magma", vmin=0, vmax=largest or 1)
    panels[0][0].set_ylabel("found", fontsize=8)
    panels[1][0].set_ylabel("expected error", fontsize=8)
    assert picture is not None
    bar = left.colorbar(picture, ax=list(panels[1]), orientation="horizontal", fraction=0.08)
    bar.ax.tick_params(labelsize=7)
    bar.ax.xaxis.get_offset_text().set_fontsize(7)
    bar.formatter.set_powerlimits((-2, 2))  # pyright: ignore[reportAttributeAccessIssue]
    axes = right.subplots()
    noises = found.size * np.logspace(-6, 3, 91)
    axes.semilogx(noises, [psnr(found.information.error(noise)) for noise in noises], color="#1f4e79")
    axes.axhline(20, color="#999999", linewidth=0.8, linestyle=":")
    axes.text(noises[0], 20.6, "20 dB", fontsize=7, color="#666666")
    axes.axvline(found.noise, color="#b5482a", linewidth=1)
    axes.text(found.noise, 0.98, " floor", fontsize=7, color="#b5482a", va="top", transform=axes.get_xaxis_transform())
    axes.set_xlabel("noise on each entry of the update (standard deviation)", fontsize=8)
    axes.set_ylabel("best PSNR to expect [dB]", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png)
    write_atomically(path, png.getvalue())
