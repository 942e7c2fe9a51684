"""Label strategies: rules that read the labels of the images from the head's gradient.

With mean cross-entropy over N images the head's bias gradient is, for class k with c_k of the N labels,

    g_k = pbar_k - c_k / N,    pbar_k = mean over the images of softmax(logits)_k.

Every strategy is a function `read(update, count, logits)`: of the update (the mean gradient of `count` images, as a
tree), the number of labels wanted, and the network's outputs [m, k] for m images of the attacker's own
(`probe_images`). It returns `count` labels; in which order says nothing about the images.

Other losses are brought to this form first (`class_gradient`), as are updates of local steps (`Attacker.labels`):
label smoothing and sums by their shift and factor, one logit of binary cross-entropy as softmax over two classes. Where
the outputs are a yes or no each, `read_bits` reads those of one image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.errors import InputError
from jaxleak.threat.loss import BinaryCrossEntropy, CrossEntropy, Loss

PROBES = 32


def head_gradient(update: PyTree, tensor: str) -> Array:
    """A tensor of the part of an update that belongs to the layer named "head".

    Raises:
        InputError: no layer of that name, or it has no such tensor.
    """
    if "head" not in update:
        raise InputError(
            f"`label` other than joint and known needs a layer named 'head'; the model has {', '.join(sorted(update))}."
        )
    if tensor not in update["head"]:
        raise InputError(
            f"this `label` needs a head with a {tensor}; the model's has {', '.join(sorted(update['head']))}."
        )
    return update["head"][tensor]


def idlg_label(update: PyTree) -> Int[Array, ""]:
    """The label of one image: the class whose row of the head's weight gradient has the smallest sum.

    With cross-entropy the row of class k is (softmax_k - [k = label]) times the head's input; behind a sigmoid that
    input is positive, so only the true class has a negative row.

    Source: Zhao, Mopuri & Bilen 2020 (iDLG), section 3.1 and the reference implementation's `argmin` of row sums.
    """
    return jnp.argmin(_row_sums(update))


def idlg_labels(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """The smallest row sums of the head's weight gradient.

    Classes in the order of sum_i G_ik, with G_ik the gradient of the weight from input i of the head to class k;
    the first `count` of them, each once.

    Right for one image whose head input has a positive sum, as behind a sigmoid. Of a batch it finds no repeated
    class, and misses classes that the network expects anyway.

    Source: Zhao, Mopuri & Bilen 2020 (iDLG), section 3.1, which is for one image.
    Differs: `count` labels instead of one.

    Raises:
        InputError: more labels than classes.
    """
    return _smallest(_row_sums(update), count)


def bias_labels(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """The smallest bias gradients of the head.

    Classes in the order of g_k, the first `count` of them, each once.

    Right for one image with any activations: there g_k = softmax_k - [k = label]. Of a batch it finds no repeated
    class, and misses classes that the network expects anyway.

    Source: as iDLG's, Zhao, Mopuri & Bilen 2020, section 3.1.
    Differs: bias gradients instead of row sums, which need a head input with a positive sum; `count` labels.

    Raises:
        InputError: more labels than classes.
    """
    return _smallest(head_gradient(update, "bias"), count)


def unique_labels(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """The classes with a negative bias gradient, each once.

    g_k < 0 proves that class k is in the batch: g_k = pbar_k - c_k / N with pbar_k > 0. Most negative first; where
    there are fewer than `count`, the same classes follow again in that order, and where none is negative, the class
    with the smallest g_k.

    Right for batches without repeated classes, unless the network expects one of them with pbar_k > 1 / N.

    Source: breaching, `breaching/attacks/base_attack.py`, label strategy "analytic".
    Differs: missing labels are classes already found, there random ones.
    """
    slopes = head_gradient(update, "bias")
    negative = jnp.maximum(jnp.sum(slopes < 0), 1)
    return jnp.argsort(slopes)[jnp.arange(count) % negative]


def row_minima_labels(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """The smallest entries of the head's weight gradient, one per class.

    Classes in the order of min_i G_ik, with G_ik the gradient of the weight from input i of the head to class k;
    the first `count` of them, each once. An input that is large for one image alone shows that image's label though
    others cancel it in the sum.

    Right for batches without repeated classes, where head inputs are not negative.

    Source: Yin et al. 2021 (GradInversion), batch label restoration.

    Raises:
        InputError: more labels than classes.
    """
    kernel: Float[Array, "i k"] = head_gradient(update, "kernel")
    return _smallest(jnp.min(kernel, axis=0), count)


def published_counts(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """Bias gradients in units of one label's average share.

    The share is m = -(sum of the negative g_k) / N, and class k has about -g_k / m labels. Every class with a
    negative g_k is named once; each further label goes to the class that has the most left, -g_k less m for each of
    its labels so far.

    Right where all classes are about equally expected (a fresh network with small weights) and many. Needs no
    network, and no units: any positive multiple of the gradient gives the same labels.

    Source: breaching, `breaching/attacks/base_attack.py`, label strategy "bias-corrected"; after Wainakh et al. 2021.
    Differs: more negative g_k than labels (only after a defence): the most negative are kept, there all.
    """
    slopes = head_gradient(update, "bias")
    share = -jnp.sum(jnp.minimum(slopes, 0)) / count
    return _apportion(-slopes, share, slopes, count)


def counts(update: PyTree, count: int, logits: Float[Array, "m k"]) -> Int[Array, "count"]:
    """Bias gradients less what the network expects, as whole numbers.

    Class k has N (pbar_k - g_k) labels. The attacker has the network, so it takes for pbar the mean softmax over its
    own images (`logits`). Every class with a negative g_k is named once, since it is in the batch; each further label
    goes to the class that has the most left, which gives the nearest whole numbers with sum N (least squares).

    Right, repeated classes included, as long as pbar depends little on the image, as in networks that are not
    trained: the error of N pbar_k has to stay below 1/2. A trained network's pbar follows the image, and there
    this is no better than `published_counts`. `update` must be in units of the gradient: a difference of weights
    divided by learning rate and steps.

    Source: ours. Wainakh et al. 2021, LLG with a known network, likewise measures an offset of each class on random
        images, from row sums; the published code is breaching's "wainakh-whitebox".
    """
    slopes = head_gradient(update, "bias")
    expected = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=0)
    return _apportion(expected - slopes, 1 / count, slopes, count)


def class_gradient(
    update: PyTree, logits: Float[Array, "m k"], loss: Loss, images: int
) -> tuple[PyTree, Float[Array, "m k"]]:
    """The head's part of an update, and logits, as if the loss were mean cross-entropy over classes.

    Args:
        update: that of the client, for local steps already divided by their length.
        logits: of the attacker's own images.
        loss: the client's.
        images: N.
    """
    head = update.get("head")
    if head is None:
        return update, logits
    outputs = head["kernel"].shape[-1]
    head = jax.tree.map(lambda leaf: leaf / loss.unit(outputs, images), head)
    if isinstance(loss, BinaryCrossEntropy) and outputs == 1:  # softmax over the logits (0, o)
        both = jnp.asarray([-1.0, 1.0])
        return {**update, "head": jax.tree.map(lambda leaf: leaf * both, head)}, logits * jnp.asarray([0.0, 1.0])
    smoothing = loss.smoothing if isinstance(loss, CrossEntropy) else 0.0
    if smoothing and "bias" in head:  # pbar - (1 - e) c / N - e / k
        head = {**head, "bias": head["bias"] + smoothing / outputs}
        if "linear" in loss.shows(outputs, images) and len(logits):
            expected = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=0)
            head["bias"] = (head["bias"] - smoothing * expected) / (1 - smoothing)
    return {**update, "head": head}, logits


def read_bits(strategy: "LabelStrategy", update: PyTree) -> Float[Array, "1 k"]:
    """The yes or no of each output for one image: sigmoid less target is below 0 only where the target is 1.

    "idlg" reads row sums, which need a head input with a positive sum; "bias" the head's bias.
    """
    slopes = _row_sums(update) if strategy.read is idlg_labels else head_gradient(update, "bias")
    return (slopes < 0).astype(slopes.dtype)[None]


@dataclass(frozen=True)
class LabelStrategy:
    """A source of an attack's labels.

    Attributes:
        read: the function that reads them from the update (this file's first lines); None: nothing is read.
        needs: what the loss has to show of labels (`Loss.shows`); "" needs nothing.
        needs_network: True where it looks at the outputs `logits`.
    """

    read: Callable[[PyTree, int, Array], Array] | None = None
    needs: str = "least"
    needs_network: bool = False

    def holds_for(self, loss: Loss, outputs: int, images: int) -> bool:
        """True if it reads the labels of so many images from gradients of this loss."""
        shown = loss.shows(outputs, images)
        return not self.needs or self.needs in shown or ("bits" in shown and self.reads_bits)

    @property
    def reads_bits(self) -> bool:
        """True if it also reads a yes or no for each output of one image."""
        return self.read in (idlg_labels, bias_labels)


LABEL_STRATEGIES = {
    "joint": LabelStrategy(needs=""),  # optimised beside the images
    "known": LabelStrategy(needs=""),  # the true ones
    "text": LabelStrategy(needs="text"),  # the candidate's own tokens
    "idlg": LabelStrategy(idlg_labels),
    "bias": LabelStrategy(bias_labels),
    "unique": LabelStrategy(unique_labels, needs="signs"),
    "row-minima": LabelStrategy(row_minima_labels),
    "counts": LabelStrategy(counts, needs="linear", needs_network=True),
    "counts-published": LabelStrategy(published_counts, needs="linear"),
}


def _row_sums(update: PyTree) -> Float[Array, "k"]:
    # Linen's kernel is [inputs, classes]: torch's row of a class is a column here.
    kernel: Float[Array, "i k"] = head_gradient(update, "kernel")
    return jnp.sum(kernel, axis=0)


def _smallest(score: Float[Array, "k"], count: int) -> Int[Array, "count"]:
    if count > score.size:
        raise InputError(
            f"`label` strategies that name each class at most once need as many classes as images; got {count} images "
            f"and {score.size} classes. Use label counts or unique."
        )
    return jnp.argsort(score)[:count]


def _apportion(
    wanted: Float[Array, "k"], share: Float[Array, ""] | float, slopes: Float[Array, "k"], count: int
) -> Int[Array, "count"]:
    """`count` labels: each class with a negative slope once, then whichever has most of `wanted` left.

    One label at a time is exact for least squares: a further label of class k, one `share`, changes the
    square of what is left, r = wanted_k - share taken_k, by share^2 - 2 share r, which only grows with taken_k.
    """

    def take(taken, _):
        due = (slopes < 0) & (taken == 0)
        chosen = jnp.argmax(jnp.where(jnp.any(due), jnp.where(due, -slopes, -jnp.inf), wanted - share * taken))
        return taken + (jnp.arange(taken.size) == chosen), chosen

    _, labels = lax.scan(take, jnp.zeros_like(wanted), length=count)
    return labels


def probe_images(key, shape: tuple[int, int, int]) -> Float[Array, "m h w c"]:
    """Smooth random images in [0, 1] that stand for the private ones: 2x2 colours from U[0, 1), stretched bilinearly.

    Their mean softmax was closer to that of private images than with noise in every pixel. LeNet with weights
    U(-0.5, 0.5), 300 batches of 32 CIFAR-100 images, whole batches right: 81 % with these, 78 % with plain greys,
    82 % with other CIFAR-100 images.
    """
    height, width, channels = shape
    colours = jax.random.uniform(key, (PROBES, 2, 2, channels))
    return jax.image.resize(colours, (PROBES, height, width, channels), "linear", antialias=False)
