"""A mixture of Gaussians over patches of images: what the attacker learned from images of its own."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.data import Dataset
from jaxleak.data.decode import one_line
from jaxleak.data.paths import reachable, write_atomically
from jaxleak.errors import InputError, check_positive

SIDE = 8  # pixels of a patch's side
FILE = "patches.npz"


class PatchMixture(NamedTuple):
    """A mixture of k Gaussians over patches of 8x8 pixels in [0, 1], flattened and less their mean in each channel.

    The precision of component j is factors_j factors_j^T.
    """

    log_weights: Float[np.ndarray, "k"]
    means: Float[np.ndarray, "k f"]
    factors: Float[np.ndarray, "k f f"]

    @property
    def channels(self) -> int:
        """Colours of the images that it was fitted on."""
        return self.means.shape[1] // SIDE**2

    @property
    def digest(self) -> str:
        """The start of a hash of its numbers."""
        content = b"".join(np.asarray(part, np.float64).tobytes() for part in self)
        return hashlib.sha256(content).hexdigest()[:12]


def centred(patches: np.ndarray) -> np.ndarray:
    """Patches [n, 8, 8, c] as rows [n, 64 c], less their mean in each channel."""
    return (patches - patches.mean(axis=(1, 2), keepdims=True)).reshape(len(patches), -1)


def fit_patches(
    data: Dataset, *, exclude: list[int] | None = None, components: int = 10, patches: int = 10_000, seed: int = 0
) -> PatchMixture:
    """Fit the mixture on random patches of a data set's images, two of each.

    Args:
        data: the attacker's own images, of at least 8x8 pixels.
        exclude: indices of images that are not to be used: the private ones, where they are of the same data set.
        components: Gaussians, k.
        patches: drawn for the fit.
        seed: from which images, patches and the fit's start are drawn.

    Source: Zoran & Weiss 2011 (EPLL), section 4: full covariances, patches less their mean.
    Differs: patches of all colours together; means are fitted too; 10 components and 10,000 patches.

    Raises:
        InputError: texts, smaller images, too few images, or scikit-learn is not installed.

    Example:
        >>> import jaxleak
        >>> mixture = jaxleak.fit_patches(jaxleak.load_dataset("photos"), exclude=[6], components=2, patches=400)
        >>> mixture.means.shape
        (2, 192)
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise InputError(
            "`patches` are fitted with scikit-learn, which is not installed: pip install 'jaxleak[infer]'."
        ) from None
    check_positive("components", components, integer=True)
    check_positive("patches", patches, integer=True)
    if data.modality != "image" or min(data.image_shape[:2]) < SIDE:
        raise InputError(f"`patches` are of images of at least {SIDE}x{SIDE} pixels; {data!r} has none.")
    own = np.setdiff1d(data.index, exclude or [])
    if len(own) == 0:
        raise InputError(f"`patches` need images that are not attacked; {data!r} has no others.")
    if patches < 10 * components:
        raise InputError(f"`patches` must be at least 10 for each of {components} `components`; got {patches}.")
    rng = np.random.default_rng(seed)
    images, _ = data.images([int(index) for index in rng.permutation(own)[: -(-patches // 2)]])
    rows, columns = (rng.integers(0, side - SIDE + 1, patches) for side in data.image_shape[:2])
    which = np.arange(patches) % len(images)
    drawn = np.stack([images[i, r : r + SIDE, c : c + SIDE] for i, r, c in zip(which, rows, columns, strict=True)])
    model: Any = GaussianMixture(
        components, reg_covar=1e-4, max_iter=30, tol=1e-2, random_state=seed, init_params="k-means++"
    )
    model.fit(centred(drawn))  # float32
    parts = np.log(np.asarray(model.weights_)), model.means_, model.precisions_cholesky_
    return PatchMixture(*(np.asarray(part, np.float64) for part in parts))


def read_patches(folder: str | Path) -> PatchMixture | None:
    """The mixture of a run directory; None if it has none."""
    path = reachable(folder) / FILE
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return PatchMixture(*(np.asarray(kept[name], np.float64) for name in PatchMixture._fields))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"`out`: {path} is damaged ({one_line(error)}), and trials must go on with the patches they began with. "
            "Restore it, or begin another run."
        ) from None


def write_patches(folder: Path, mixture: PatchMixture) -> None:
    """Keep a mixture in a run directory, whose trials then go on with the same one."""
    if (folder / FILE).exists():
        return
    content = io.BytesIO()
    np.savez(content, **mixture._asdict())
    write_atomically(folder / FILE, content.getvalue())
