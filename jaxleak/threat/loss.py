"""The loss of a client's training: its value, the space of its targets, and what its slope shows of them."""

import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive

REDUCTIONS = ("mean", "sum")
CONFIDENT = 6.0  # free variable by which a target's largest entry stands above the others
# What targets are, and how an attacker that optimises them gets them from free variables.
TARGETS: dict[str, Callable[[Array], Array]] = {
    "classes": jax.nn.softmax,  # one class, one-hot; or a distribution over classes
    "bits": jax.nn.sigmoid,  # a yes or no for each output
    "numbers": lambda free: free,
}


def cross_entropy(logits: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
    """Mean over the batch of -sum_k target_k log softmax(logits)_k, for any target distribution.

    Source: DLG's `cross_entropy_for_onehot`; with a one-hot target it is torch's `CrossEntropyLoss`.
    """
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def _check_weights(weights: tuple[float, ...]) -> None:
    for weight in weights:
        check_not_negative("class_weights", weight)
    if weights and not any(weights):
        raise InputError("`class_weights` must not all be 0: then nothing is learned.")


def _check_fit(weights: tuple[float, ...], outputs: int) -> None:
    if len(weights) not in (0, outputs):
        raise InputError(f"`class_weights` must be one for each of the {outputs} outputs; got {len(weights)}.")


def _text(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value}"


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """A loss of the network's outputs [b, k] and their targets [b, k].

    Attributes:
        reduction: "mean" or "sum", as torch's.
    """

    kind: ClassVar[str]  # what the command line and `settings` call it
    targets: ClassVar[str]  # one of TARGETS

    reduction: str = "mean"

    def __post_init__(self):
        check_choice("reduction", self.reduction, REDUCTIONS)

    @property
    def name(self) -> str:
        """The kind, with the fields that are not as usual: what messages and `settings` call it."""
        changed = [
            f"{field.name}={_text(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.kind} {' '.join(changed)}".strip()

    @abstractmethod
    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        """The loss of a batch, which can be differentiated twice."""

    @property
    def is_plain(self) -> bool:
        """True if its fields say all that it does."""
        return True

    def check(self, outputs: int) -> None:
        """Raise unless it is a loss of so many outputs.

        Raises:
            InputError: it is not.
        """
        del outputs

    def classes(self, outputs: int) -> int:
        """Classes that labels may name: with one output these are 0 and 1."""
        return max(outputs, 2)

    def target(self, labels: Any, outputs: int, dtype: Any) -> Float[Array, "b k"]:
        """Targets of a client that has classes: one-hot; with one output the label itself."""
        if outputs == 1:
            return jnp.asarray(labels, dtype)[..., None]
        return jax.nn.one_hot(labels, outputs, dtype=dtype)

    def decode(self, free: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """Targets of free variables: of an attacker that optimises them (label "joint")."""
        return TARGETS[self.targets](free)

    def encode(self, target: Float[Any, "... k"]) -> Float[Any, "... k"]:
        """Free variables that `decode` brings near these targets."""
        return {"classes": CONFIDENT * target, "bits": CONFIDENT * (2 * target - 1), "numbers": target}[self.targets]

    def settle(self, target: Float[Any, "... k"]) -> Float[Any, "... k"]:
        """The nearest targets that a client may have: bits are 0 or 1."""
        return (target > 0.5).astype(target.dtype) if self.targets == "bits" else target

    def vectors(self, outputs: int) -> bool:
        """True if a target is more than one class: then what an attacker finds is compared number by number."""
        return self.targets == "numbers" or (self.targets == "bits" and outputs > 1)

    def label(self, target: Float[Any, "... k"]) -> Any:
        """The class that a target names: its largest entry; with one output whether that is above 1/2."""
        if target.shape[-1] == 1:
            return (target[..., 0] > 0.5).astype(jnp.int32)
        return target.argmax(-1)

    def ignores(self, label: int) -> bool:
        """True if images of this class (-1: not known) leave no gradient."""
        del label
        return False

    def hits(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, "b"]:
        """Share of each target that the network's outputs get right: of bits each counts."""
        if self.targets == "bits":
            return jnp.mean((outputs > 0) == (target > 0.5), axis=-1)
        return (self.label(outputs) == self.label(target)).astype(outputs.dtype)

    def shows(self, outputs: int, images: int) -> frozenset[str]:
        """What the slope of the loss at the outputs, summed over the images, shows of classes or bits.

        "least": of one image the label's entry is the smallest; under label smoothing e unless the network gives it a
        chance of more than 1 - e. "signs": an entry below 0 (of smoothing below -e / k) is a label's. "linear": it is
        softmax less target, times `unit`. "bits": an entry is below 0 where the bit is 1.
        """
        del outputs, images
        return frozenset()

    def unit(self, outputs: int, images: int) -> float:
        """The slope's factor before the mean over images of (prediction less target)."""
        del outputs
        return 1.0 if self.reduction == "mean" else float(images)

    def _reduced(self, each: Array) -> Float[Array, ""]:
        return jnp.mean(each) if self.reduction == "mean" else jnp.sum(each)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """-sum_k w_k t_k log softmax(outputs)_k over classes; the mean is weighted too.

    Attributes:
        smoothing: e of label smoothing, in 0..1: the target is (1 - e) one-hot + e / k.
        weights: w, one per class; () is 1 for all.

    Source: torch's `CrossEntropyLoss`; targets that are distributions (label "joint") are weighted alike, so that a
        one-hot one gives torch's loss of class indices.
    """

    kind = "cross-entropy"
    targets = "classes"

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_not_negative("label_smoothing", self.smoothing)
        if self.smoothing >= 1:
            raise InputError(f"`label_smoothing` must be below 1; got {self.smoothing:g}. At 1 no label is left.")
        _check_weights(self.weights)

    def check(self, outputs: int) -> None:
        if outputs == 1:
            raise InputError("`loss` cross-entropy of one output is always 0; use --loss bce, or mse.")
        _check_fit(self.weights, outputs)

    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        if self.reduction == "mean" and not (self.smoothing or self.weights):
            return cross_entropy(outputs, target)
        weights = jnp.asarray(self.weights or 1.0, outputs.dtype)
        logs = weights * jax.nn.log_softmax(outputs, axis=-1)
        each = (1 - self.smoothing) * jnp.sum(target * logs, axis=-1) + self.smoothing * jnp.mean(logs, axis=-1)
        return -jnp.sum(each) / (jnp.sum(weights * target) if self.reduction == "mean" else 1)

    def ignores(self, label: int) -> bool:
        return label >= 0 and not self.smoothing and bool(self.weights) and self.weights[label] == 0

    def shows(self, outputs: int, images: int) -> frozenset[str]:
        if len(set(self.weights)) <= 1 or (images == 1 and self.reduction == "mean" and not self.smoothing):
            return frozenset({"least", "signs", "linear"})
        # Of a batch the label with a small weight may have a larger entry than classes that no image has.
        return frozenset(({"least"} if images == 1 else set()) | (set() if self.smoothing else {"signs"}))

    def unit(self, outputs: int, images: int) -> float:
        """Equal weights cancel in a mean."""
        weight = self.weights[0] if self.weights and self.reduction == "sum" else 1.0
        return weight * super().unit(outputs, images)


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Loss):
    """-p t log sigmoid(output) - (1 - t) log(1 - sigmoid(output)), mean over all outputs of the batch.

    One output is a network's only logit, of classes 0 and 1. Several are a yes or no each (multi-label).

    Attributes:
        weights: p, one per output; () is 1 for all.

    Source: torch's `BCEWithLogitsLoss`, with its `pos_weight`.
    """

    kind = "bce"
    targets = "bits"

    weights: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        _check_weights(self.weights)

    def check(self, outputs: int) -> None:
        _check_fit(self.weights, outputs)

    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        weights = jnp.asarray(self.weights or 1.0, outputs.dtype)
        return self._reduced((1 - target) * outputs + (1 + (weights - 1) * target) * jax.nn.softplus(-outputs))

    def shows(self, outputs: int, images: int) -> frozenset[str]:
        if outputs > 1:
            return frozenset({"bits"} if images == 1 else ())
        # One logit o is softmax of (0, o).
        return frozenset({"least", "signs"} if self.weights else {"least", "signs", "linear"})

    def unit(self, outputs: int, images: int) -> float:
        return super().unit(outputs, images) / (outputs if self.reduction == "mean" else 1)


@dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """(output - target)^2, mean over all outputs of the batch; targets are given, or one-hot.

    Source: torch's `MSELoss`.
    """

    kind = "mse"
    targets = "numbers"

    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        return self._reduced(jnp.square(outputs - target))


@dataclass(frozen=True, kw_only=True)
class WeightedSum(Loss):
    """A sum of losses of the same outputs and targets, each times a factor.

    Attributes:
        terms: factors and losses.
    """

    terms: tuple[tuple[float, Loss], ...]

    @property
    def name(self) -> str:
        return "+".join(loss.name if factor == 1 else f"{factor:g}*{loss.name}" for factor, loss in self.terms)

    @property
    def is_plain(self) -> bool:
        return all(loss.is_plain for _, loss in self.terms)

    @property
    def targets(self) -> str:
        """Numbers only where all take numbers, classes where any does."""
        kinds = {loss.targets for _, loss in self.terms}
        return next(kind for kind in TARGETS if kind in kinds)

    def check(self, outputs: int) -> None:
        for _, loss in self.terms:
            loss.check(outputs)

    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        return sum((factor * loss.value(outputs, target) for factor, loss in self.terms), jnp.zeros(()))

    def shows(self, outputs: int, images: int) -> frozenset[str]:
        return frozenset.intersection(*(loss.shows(outputs, images) for _, loss in self.terms)) & {"bits"}


@dataclass(frozen=True, kw_only=True)
class OwnLoss(Loss):
    """A loss of one's own.

    Attributes:
        function: (outputs [b, k], targets [b, k]) -> a scalar that jax can differentiate twice.
        title: what tables and messages call it.
        targets: what its targets are: "classes" (one-hot), "bits" or "numbers".
    """

    function: Callable[[Array, Array], Array]
    title: str = "own"
    targets: str = "classes"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self):
        super().__post_init__()
        check_choice("targets", self.targets, TARGETS)

    @functools.cached_property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The title, with a hash of what it computes: edited code is another loss."""
        try:
            program = str(jax.make_jaxpr(self.function)(*[jax.ShapeDtypeStruct((2, 3), jnp.float32)] * 2))
        except Exception:  # it is for another number of outputs
            return self.title
        program = re.sub(r" at 0x[0-9a-f]+|0x[0-9a-f]+", "", program)
        return f"{self.title} sha256:{hashlib.sha256(program.encode()).hexdigest()[:12]}"

    @property
    def is_plain(self) -> bool:
        return False

    def check(self, outputs: int) -> None:
        shape = jax.ShapeDtypeStruct((2, outputs), jnp.float32)
        try:
            jax.eval_shape(jax.grad(lambda o, t: jnp.asarray(self.function(o, t)).astype(o.dtype)), *[shape] * 2)
        except Exception as error:  # whatever the user's function raises
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"`loss` {self.title} fails on outputs and targets of shape [2, {outputs}]: {type(error).__name__}: "
                f"{reason}. It takes jax arrays, outputs and targets [b, k] (one-hot unless its `targets` says "
                "otherwise), and returns one number."
            ) from error

    def value(self, outputs: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
        return self.function(outputs, target)


CROSS_ENTROPY = CrossEntropy()
LOSSES: dict[str, type[Loss]] = {kind.kind: kind for kind in (CrossEntropy, BinaryCrossEntropy, SquaredError)}
# Any loss, by its slope: the gradient with respect to the parameters is that of <outputs, d> with d the loss's gradient
# with respect to the outputs. Of one image d is the gradient of the head's bias, so an attacker need not know the loss.
ANY_LOSS = OwnLoss(
    title="any",
    function=lambda outputs, slope: jnp.mean(jnp.sum(outputs * slope, axis=-1)),
    targets="numbers",
)


def as_loss(loss: Any) -> Loss:
    """A `Loss`; its text, as on the command line; or one's own function (outputs, targets) -> number.

    The attribute `targets` of a function, if it has one, says what its targets are (`OwnLoss`).

    Raises:
        InputError: it is none of them.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return parse_loss(loss)
    if not callable(loss):
        raise InputError(f"`loss` must be a Loss, a name or a function of outputs and targets; got {loss!r}.")
    function: Any = loss
    title = getattr(loss, "__name__", type(loss).__name__)
    return OwnLoss(function=function, title=title, targets=getattr(loss, "targets", "classes"))


def parse_loss(
    text: str,
    smoothing: float = 0.0,
    weights: tuple[float, ...] = (),
    reduction: str = "mean",
    own: Callable | None = None,
) -> Loss:
    """The loss of a text: a name, or several with factors, as in cross-entropy+0.1*mse.

    Args:
        text: names of `LOSSES`.
        smoothing: of labels; of the terms that are cross-entropy.
        weights: of classes; of the terms that have weights.
        reduction: of all terms.
        own: name -> one's own loss; None: there are none.

    Raises:
        InputError: an unknown name, or a setting that no term has.
    """
    given: dict[str, Any] = {"smoothing": smoothing, "weights": tuple(weights)}
    given = {name: value for name, value in given.items() if value}
    terms, used = [], set()
    for part in text.split("+"):
        factor, star, name = part.rpartition("*")
        weight = _factor(factor, text) if star else 1.0
        name = name.strip()
        if name not in LOSSES and own is not None:
            terms.append((weight, own(name)))
            if reduction != "mean":
                raise InputError(f"`reduction` is a setting of {', '.join(LOSSES)}; your own {name} reduces by itself.")
            continue
        kind = LOSSES[check_choice("loss", name, LOSSES)]
        known = {field.name for field in fields(kind)} & given.keys()
        used |= known
        terms.append((weight, kind(reduction=reduction, **{field: given[field] for field in known})))
    for name in given.keys() - used:
        flag = {"smoothing": "label_smoothing", "weights": "class_weights"}[name]
        able = [kind.kind for kind in LOSSES.values() if name in {field.name for field in fields(kind)}]
        raise InputError(f"`{flag}` is a setting of the loss {' and '.join(able)}, not of {text}; leave it out.")
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms=tuple(terms))


def _factor(text: str, whole: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        raise InputError(
            f"`loss` terms are a name or NUMBER*name, as in cross-entropy+0.1*mse; got {whole!r}."
        ) from None
    check_positive("loss", factor)
    return factor


def loss_gradient(
    model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"], loss: Loss = CROSS_ENTROPY
) -> PyTree:
    """The gradient of the loss with respect to the parameters: what a client shares.

    Args:
        model: a Linen module; called as `model.apply({"params": params}, x)`.
        params: its `params` collection.
        x: inputs of the network, in its units.
        target: one target per image, as `loss` takes it.
        loss: what is differentiated.
    """
    return jax.grad(lambda p: loss.value(model.apply({"params": p}, x), target))(params)
