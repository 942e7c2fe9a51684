"""How much an update tells of its images, before anyone attacks it; with defences compared."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxleak.attacks.layer_weights import layer_weights
from jaxleak.attacks.presets import IDLG
from jaxleak.attacks.trial import Job, Trial
from jaxleak.data.paths import write_atomically
from jaxleak.errors import InputError
from jaxleak.kernels.precision import float64
from jaxleak.results.store.environment import environment
from jaxleak.results.store.parts import json_bytes
from jaxleak.runs.audit.determinacy import HIDDEN, psnr
from jaxleak.runs.audit.floor import ARITHMETIC, MARGIN, noise_variances
from jaxleak.runs.audit.information import Information, information
from jaxleak.runs.audit.page import risk_page
from jaxleak.runs.audit.ranks import LayerRank, layer_ranks, rank_sentences
from jaxleak.runs.audit.refit import squared_norm_of, targets_of, update_at
from jaxleak.threat.defences import DPSGD, Clip, Defence, defend, parse_defence
from jaxleak.threat.observe import follows
from jaxleak.threat.own_defence import OwnDefence
from jaxleak.threat.victim import Victim

# What is compared where nothing else is asked for, the weakest first.
COMPARED = ("fp16", "int8", "gaussian:1e-4", "gaussian:1e-3", "gaussian:1e-2", "prune:0.5")
UNDEFENDED = "none"
MISSED = "so many pixels have a randomised spectrum, which may miss free directions: figures are at most what is known"


@dataclass(frozen=True)
class Line:
    """The best that an attacker who knows the defence can expect.

    Attributes:
        defence: its text, several joined by " ", or "none".
        error: expected root mean squared error per pixel, 0..0.29, of one who knows nothing of pictures.
        psnr: the same as PSNR [dB].
        filled: PSNR [dB] at most, of one who does (`Information.variances`).
        hidden: `filled` is below 20 dB.
    """

    defence: str
    error: float
    psnr: float
    filled: float
    hidden: bool


@dataclass(frozen=True, eq=False)
class Risk:
    """How much one update tells.

    Attributes:
        pixels: the images at which it was computed.
        information: about them, without defences.
        noise: standard deviation that arithmetic in float32 amounts to, on each entry of the update.
        size: root mean square of the update's entries.
        lines: one for each defence, "none" first.
        layers: of a chain of convolutions and dense layers, one image and no defence, what its gradient tells of the
            input of each layer; else empty.
    """

    pixels: Float[np.ndarray, "b h w c"]
    information: Information
    noise: float
    size: float
    lines: list[Line]
    layers: list[LayerRank] = field(default_factory=list)

    @property
    def hiding_noise(self) -> float:
        """Standard deviation of the noise on every entry that hides the images (20 dB), whatever an attacker knows of
        pictures; inf if none does."""
        return self.information.noise_for(HIDDEN, filled=True)

    @property
    def free_directions(self) -> int:
        """Directions of the images that the update leaves free; at least so many, if the spectrum is randomised."""
        return round(float(np.sum(self.information.counts[self.information.free])))

    @property
    def sentences(self) -> list[str]:
        """What the lines do not say."""
        noise = self.hiding_noise
        words = f"noise of {noise:.2g} on every entry" if math.isfinite(noise) else "no noise"
        size = f"the update's entries are {self.size:.2g} (root mean square)"
        free = self.free_directions
        told = f"{free:,} of {self.information.pixels:,} directions are free: knowing pictures, they are guessed right"
        return [
            f"{words} would hide the images (20 dB); {size}",
            *([told] if free else []),
            *([MISSED] if not self.information.exact else []),
            *rank_sentences(self.layers),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The content of `risk.json`."""
        hiding = self.hiding_noise
        known = self.information
        return {
            "psnr": self.lines[0].psnr,
            "psnr_filled": self.lines[0].filled,
            "hiding_noise": hiding if math.isfinite(hiding) else None,
            "hiding_noise_over_update": hiding / self.size if math.isfinite(hiding) and self.size else None,
            "exact": known.exact,
            "pixels": known.pixels,
            "free_directions": self.free_directions,
            "smallest_singular_value": known.smallest,
            "largest_singular_value": float(np.sqrt(max(known.values[-1], 0))),
            "layers": [layer.as_dict() for layer in self.layers],
            "defences": [vars(line) for line in self.lines],
            "noise": [
                {"noise": noise, "psnr": psnr(known.error(noise)), "filled": psnr(known.error(noise, filled=True))}
                for noise in self.size * np.logspace(-6, 2, 17)
            ],
        }


def risk(
    victim: Victim, compared: Sequence[str] = COMPARED, *, update: int = 0, seed: int = 0, silent: Sequence[str] = ()
) -> Risk:
    """What the best unbiased attacker can expect of an update, by its Fisher information; no attack is run.

    Args:
        victim: with known images; of several updates one is looked at. Its own defences come first.
        compared: texts of further defences, several joined by " ".
        update: which of the victim's updates.
        seed: of the network, where each trial has its own.
        silent: names of tensors that are not shared, as in `layers`.

    Raises:
        InputError: the images are not known, or a defence is not.

    Example:
        >>> import numpy as np
        >>> import jaxleak
        >>> np.savez("own.npz", images=np.linspace(0, 1, 32).reshape(2, 4, 4, 1), labels=[0, 1])
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("own.npz"), [0], fields={"hidden": (16,)})
        >>> [line.defence for line in jaxleak.risk(victim, ["int8", "gaussian:0.1"]).lines]
        ['none', 'int8', 'gaussian:0.1']
    """
    if victim.modality != "image":
        raise InputError("`risk` is for pictures; attack text by `jaxleak run --attack dager`.")
    if not victim.knows_truth:
        raise InputError("`risk` needs images to look at; give --truth, or pictures that could be the client's.")
    params, pixels, target = _one(victim, update, seed)
    found = risk_at(victim, params, pixels, target, compared, silent=silent)
    return found if silent else replace(found, layers=layer_ranks(victim, params, pixels, target))


def risk_at(
    victim: Victim,
    params: PyTree,
    pixels: Float[np.ndarray, "b h w c"],
    target: Float[np.ndarray, "b k"],
    compared: Sequence[str] = COMPARED,
    known: Information | None = None,
    silent: Sequence[str] = (),
) -> Risk:
    """`risk` of images with these targets, at these weights.

    Args:
        victim: of it the client and its defences.
        params, pixels, target: of one update, in float64.
        compared: as for `risk`.
        known: information at these images, without defences, if there is any.
        silent: as for `risk`.

    Raises:
        InputError: a defence is not known, or there is no gradient.
    """
    stated = {UNDEFENDED: (), **{text: tuple(map(parse_defence, text.split())) for text in compared}}
    if victim.defences:
        stated = {victim.defence_name: victim.defences, **stated}
    for text, defences in stated.items():
        if any(isinstance(defence, OwnDefence) for defence in defences):
            raise InputError(
                f"`risk` knows what the package's defences hide, and not what the function {text} does; measure that "
                "by attacks: jaxleak run --defence."
            )
        if any(defence.in_network for defence in defences):
            raise InputError(f"`risk` looks at one network, and {text} changes it; measure it by attacks: jaxleak run.")
    shares = layer_weights(("*", *(f"{name}:0" for name in silent)), params)
    shared = jax.tree.map(lambda leaf, share: leaf * share, update_at(victim, params, pixels, target), shares)
    norm2 = squared_norm_of(shared)
    if not norm2 > 0:
        raise InputError("`risk` needs an update; this network has no gradient at these images.")
    entries = sum(
        int(np.size(leaf)) for leaf, share in zip(*map(jax.tree.leaves, (shared, shares)), strict=True) if share
    )
    size = math.sqrt(norm2 / entries)
    noise = size * math.sqrt(MARGIN) * ARITHMETIC * 2.0**-24
    known = information(victim, params, pixels, target, shares) if known is None else known
    lines = []
    for text, defences in stated.items():
        error, filled = _errors(victim, params, pixels, target, shared, shares, defences, known, noise)
        lines.append(Line(text, error, psnr(error), psnr(filled), filled > HIDDEN))
    lines.sort(key=lambda line: (line.defence != UNDEFENDED, -line.filled, line.error))
    return Risk(pixels, known, noise, size, lines)


def _one(victim: Victim, update: int, seed: int) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """The network, the images and the targets of one update, in float64."""
    pixels = np.asarray(victim.batches(np.asarray(victim.images))[update], np.float64)
    labels = victim.batches(victim.answers)[update]
    with float64():
        trial = Trial(attack=IDLG, victim=victim, threshold=0.0)
        shared, image = trial.shared(), victim.indices[update * victim.batch]
        params, _ = trial.network(shared, Job(*(jnp.asarray(number) for number in (0, update, image, seed))))
        target = targets_of(victim, labels)
        params = victim.train(params, victim.to_input(jnp.asarray(pixels)), jnp.asarray(target))
        return jax.tree.map(np.asarray, params), pixels, target


def _errors(
    victim: Victim,
    params: PyTree,
    pixels: np.ndarray,
    target: np.ndarray,
    shared: PyTree,
    shares: PyTree,
    defences: tuple[Defence, ...],
    known: Information,
    noise: float,
) -> tuple[float, float]:
    """Expected errors per pixel under these defences, by attackers who know them: of pictures nothing, or all."""

    def both(found: Information, noise: float) -> tuple[float, float]:
        return found.error(noise), found.error(noise, filled=True)

    if not defences:
        return both(known, noise)
    with float64():
        x = victim.to_input(jnp.asarray(pixels))
    seen = _through(defences, shared, victim.batch, noise, functools.partial(follows, victim.client_model, params, x))
    variances = [
        np.broadcast_to(variance, mask.shape) for variance, mask in zip(seen.variances, seen.masks, strict=True)
    ]
    first = float(variances[0].ravel()[0])
    alike = all(np.allclose(variance, first, rtol=1e-6, atol=0) for variance in variances)
    if alike and all(np.all(mask) for mask in seen.masks) and not seen.clipped:
        return both(known, math.sqrt(first) / seen.factor)
    weights = [
        share * mask * (first / variance)
        for share, mask, variance in zip(jax.tree.leaves(shares), seen.masks, variances, strict=True)
    ]
    tree = jax.tree.structure(shared).unflatten(weights)
    changed = information(victim, params, pixels, target, tree, free_of_scale=seen.clipped, spectrum_only=True)
    return both(changed, math.sqrt(first) / seen.factor)


@dataclass(frozen=True)
class _Seen:
    """An update after defences: what an attacker who knows them sees of the one before.

    Attributes:
        factor: by which it was scaled.
        variances: of the noise on each entry, after all defences.
        masks: False where entries were set to zero.
        clipped: the factor is not known to the attacker.
    """

    factor: float
    variances: list[np.ndarray]
    masks: list[np.ndarray]
    clipped: bool


def _through(defences: Sequence[Defence], shared: PyTree, batch: int, noise: float, scores: Callable[[], Any]) -> _Seen:
    """The defences in their order. An attacker is taken to know which entries were set to zero: the safe side."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, shared))
    factor, clipped = 1.0, False
    variances = [np.full(leaf.shape, noise**2) for leaf in leaves]
    masks = [np.ones(leaf.shape, bool) for leaf in leaves]
    for defence in defences:
        limit = defence.norm if isinstance(defence, Clip) else defence.clip if isinstance(defence, DPSGD) else 0.0
        norm = math.sqrt(squared_norm_of(leaves))
        if limit and norm > limit:
            times = limit / norm
            factor, clipped = factor * times, True
            leaves = [times * leaf for leaf in leaves]
            variances = [times**2 * variance for variance in variances]
        added = noise_variances(defence, leaves, batch)
        variances = [variance + more for variance, more in zip(variances, added, strict=True)]
        if defence.sparse:
            with float64():
                before = structure.unflatten(list(map(jnp.asarray, leaves)))
                kept = defend((defence,), before, jax.random.key(0), scores)
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(kept)]
            masks = [mask & (leaf != 0) for mask, leaf in zip(masks, leaves, strict=True)]
    return _Seen(factor, variances, masks, clipped)


def with_images(victim: Victim, pixels: Float[np.ndarray, "b h w c"], labels: Any) -> Victim:
    """The victim of a given update with stand-ins for its images, whose update is computed anew."""
    return replace(victim, images=pixels, labels=np.asarray(labels, np.int32), update=None)


def write_risk(risks: Sequence[Risk], folder: Path, victim: Victim) -> list[Path]:
    """Write `risk.json`, `risk.png` and the page `risk.html`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"updates": [risk.as_dict() for risk in risks]}
    write_atomically(folder / "risk.json", json_bytes(content))
    write_atomically(folder / "risk.png", draw(risks[0]))
    page = risk_page(content, victim, environment(folder)).write(folder / "risk.html")
    return [page, folder / "risk.json", folder / "risk.png"]


def draw(found: Risk) -> bytes:
    """The images, where each is least determined, what noise does, and the defences compared, as PNG."""
    from matplotlib.figure import Figure

    hiding = found.hiding_noise
    noise = hiding / 10 if math.isfinite(hiding) else found.noise
    figure = Figure(figsize=(10.4, 3.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 2.2, 2.2))
    image, errors = np.clip(found.pixels[0], 0, 1), found.information.error_map(noise)[0]
    for place, title in ((0, "image"), (1, f"expected error\nat noise {noise:.0e}")):
        axes = figure.add_subplot(grid[place, 0], xticks=[], yticks=[])
        axes.set_title(title, fontsize=7)
        if place == 0:
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        else:
            shown = axes.imshow(np.sqrt(np.mean(errors**2, axis=-1)), cmap="magma", vmin=0)
            figure.colorbar(shown, ax=axes, fraction=0.08).ax.tick_params(labelsize=6)
    curve = figure.add_subplot(grid[:, 1])
    levels = found.size * np.logspace(-6, 2, 81)
    for filled, style, label in ((True, "--", "who knows pictures"), (False, "-", "who knows nothing of them")):
        decibels = [psnr(found.information.error(level, filled=filled)) for level in levels]
        curve.semilogx(levels, decibels, style, color="#1f4e79", linewidth=1.2, label=label)
    curve.legend(title="an attacker", title_fontsize=7, fontsize=7, frameon=False)
    curve.axhline(20, color="#999999", linewidth=0.8, linestyle=":")
    curve.axvline(found.noise, color="#b5482a", linewidth=1)
    curve.text(
        found.noise, 0.98, " float32", fontsize=7, color="#b5482a", va="top", transform=curve.get_xaxis_transform()
    )
    curve.set_xlabel("noise on each entry (standard deviation)", fontsize=8)
    curve.set_ylabel("best PSNR to expect [dB]", fontsize=8)
    bars = figure.add_subplot(grid[:, 2])
    lines = found.lines[::-1]
    bars.barh(
        [line.defence for line in lines],
        [line.filled for line in lines],
        color=["#9db4c8" if line.hidden else "#1f4e79" for line in lines],
        height=0.62,
    )
    for place, line in enumerate(lines):
        bars.text(line.filled + 0.8, place, f"{line.filled:.0f}", fontsize=7, va="center")
    bars.axvline(20, color="#999999", linewidth=0.8, linestyle=":")
    bars.set_xlabel("PSNR at most [dB]; pale: hidden (below 20)", fontsize=8)
    for axes in (curve, bars):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png)
    return png.getvalue()
