"""Settings of a measurement: the variants, their model, and the time."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models import MODELS as ZOO
from jaxleak.models import build_model

NOT_FIELDS = ("parent", "name")  # of a Linen module

OURS = ("jaxleak", "jaxleak-network-per-trial", "jaxleak-lbfgs", "jaxleak-cosine")
VMAPPED = ("pytorch-vmap", "pytorch-compiled")
PYTORCH = ("pytorch-processes", "pytorch-no-onednn", "pytorch-serial", *VMAPPED, "pytorch-cosine-processes")
COSINE = ("pytorch-cosine-processes", "jaxleak-cosine")  # another attack than the rest: compared with each other only
DESCRIPTIONS = {
    "pytorch-processes": "the PyTorch loop, one process per core with one thread each, summed",
    "pytorch-no-onednn": "the same with oneDNN off, so that PyTorch's own kernels convolve",
    "pytorch-serial": "the PyTorch loop in one process with PyTorch's own number of threads",
    "pytorch-vmap": "torch.func.vmap of the gradient with a batched L-BFGS (or Adam), one process per core, summed",
    "pytorch-compiled": "the same through torch.compile, which takes a minute",
    "plain-vmap": "vmap of stock Flax and the two-loop recursion (or optax's Adam), all cores one device",
    "jaxopt": "vmap of jaxopt's L-BFGS with zoom line search (or OptaxSolver) on jaxleak's objective, one device",
    "jaxleak": "jaxleak's engine, one network for all trials, torch's L-BFGS (or Adam)",
    "jaxleak-network-per-trial": "jaxleak's engine, the same with a network drawn for each trial",
    "jaxleak-lbfgs": "jaxleak's engine, one network for all trials, jaxleak's own L-BFGS",
    "pytorch-cosine-processes": "Inverting Gradients in PyTorch, one process per core with one thread each, summed",
    "jaxleak-cosine": "jaxleak's engine, one network for all trials, the attack ig (cosine, signed Adam)",
}
VARIANTS = tuple(DESCRIPTIONS)
USUAL = tuple(name for name in VARIANTS if name != "pytorch-compiled")  # measured where nothing is asked for
STOCK_LOOPS = ("plain-vmap", "jaxopt")  # in stock Flax, which is there for
STOCK = ("lenet", "resnet18")
MODELS = tuple(ZOO)
TEXT = ("transformer",)  # networks of texts
TOKENS = 16  # of a text
CLASSES, VOCABULARY = 100, 512
IMAGE_SIZES = {"inception3": 299}  # pixels of a side where nothing is asked for; of others
IMAGE_SIZE = 32
# Parts of a step of jaxleak: the objective's value; with its gradient; the solver with a trivial objective; all.
PHASES = ("objective", "objective-and-gradient", "solver", "step")
SMALL = ("lenet", "lenet-cpl", *TEXT)  # attacked with L-BFGS, the others with Adam


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One measurement.

    Attributes:
        model: one of `MODELS`; the LeNets and the transformer are attacked with L-BFGS, the others with Adam. The
            transformer reads texts of 16 tokens.
        only: the variants to measure, of `VARIANTS`; by default `USUAL`, without those in stock
            Flax where the model has none, and of texts without Inverting Gradients.
        lanes: trials at once over all devices. Each count is a number or "auto": jaxleak's engine searches, and
            pytorch-vmap tries a few. None given: every variant takes a count known to be good.
        seconds: all measuring together, without starting and compiling.
        rounds: how often each variant is measured; fewer where `seconds` do not suffice.
        history: pairs that L-BFGS keeps.
        iterations: length of a restart where jaxleak's engine does not decide: outer steps of 20 evaluations (L-BFGS),
            or steps (Adam).
        width: the model's field of that name; None: of resnet18 64 on a GPU and 16 on a CPU, else the model's default.
        image_size: height and width in pixels; None: 32, of inception3 299.
        num_classes: outputs of the head; None: 100, of texts 512.
        profile: measure the phases of a step as well.
    """

    model: str = "lenet"
    only: tuple[str, ...] = USUAL
    lanes: tuple[int | Literal["auto"], ...] = ()
    seconds: float = 120.0
    rounds: int = 5
    history: int = 100
    iterations: int = 40
    width: int | None = None
    image_size: int | None = None
    num_classes: int | None = None
    profile: bool = False

    def __post_init__(self):
        check_choice("model", self.model, MODELS)
        if self.only == USUAL and self.model not in STOCK:
            left_out = STOCK_LOOPS + (COSINE if self.text else ())
            object.__setattr__(self, "only", tuple(name for name in USUAL if name not in left_out))
        if self.text and self.image_size is not None:
            raise InputError(f"`image_size` is of pictures; {self.model} reads texts of {TOKENS} tokens. Leave it out.")
        if self.image_size is None and not self.text:
            object.__setattr__(self, "image_size", IMAGE_SIZES.get(self.model, IMAGE_SIZE))
        if self.num_classes is None:
            object.__setattr__(self, "num_classes", VOCABULARY if self.text else CLASSES)
        if not self.only:
            raise InputError(f"`only` must name at least one of {', '.join(VARIANTS)}.")
        for name in self.only:
            check_choice("only", name, VARIANTS)
            if name in STOCK_LOOPS and self.model not in STOCK:
                raise InputError(f"`only` {name} is there for {' and '.join(STOCK)}; got `model` {self.model}.")
            if name in COSINE and self.text:
                raise InputError(f"`only` {name} is an attack on pictures; got `model` {self.model}, of texts.")
        if len(set(self.only)) < len(self.only):
            raise InputError(f"`only` names must be distinct; got {', '.join(self.only)}.")
        check_positive("seconds", self.seconds)
        for name in ("rounds", "history", "iterations", "num_classes", *(() if self.text else ("image_size",))):
            check_positive(name, getattr(self, name), integer=True)
        if self.width is not None:
            check_positive("width", self.width, integer=True)
            self._check_width()
        for count in self.lanes:
            if count != "auto":
                check_positive("lanes", count, integer=True)

    @property
    def text(self) -> bool:
        """The model reads texts."""
        return self.model in TEXT

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input: height, width and channels, or tokens."""
        return (TOKENS,) if self.image_size is None else (self.image_size, self.image_size, 3)

    @property
    def candidate(self) -> int:
        """Numbers that are optimised: pixels, or those of the tokens that are read; and the logits of labels."""
        assert self.num_classes is not None
        if not self.text:
            return math.prod(self.shape) + self.num_classes
        model = self._built()
        read, predicted = model.places(*self.shape)
        return len(read) * model.dim + len(predicted) * self.num_classes

    def _built(self) -> Any:
        assert self.num_classes is not None
        return build_model(self.model, self.num_classes, **self.fields)

    @property
    def solver(self) -> str:
        """ "lbfgs" or "adam"."""
        return "lbfgs" if self.model in SMALL else "adam"

    @property
    def fields(self) -> dict[str, Any]:
        """The model's fields that are not its defaults."""
        return {} if self.width is None else {"width": self.width}

    def _check_width(self) -> None:
        having = [name for name in MODELS if "width" in type(build_model(name, CLASSES)).__dataclass_fields__]
        if self.model not in having:
            raise InputError(f"`width` is a field of {', '.join(having)}; got `model` {self.model}.")
        self.network()

    def network(self) -> tuple[str, dict[str, Any]]:
        """The model's class and fields as JSON has them, for `networks.build`.

        Raises:
            InputError: the model does not take the width.
        """
        model = self._built()
        values = {name: getattr(model, name) for name in type(model).__dataclass_fields__ if name not in NOT_FIELDS}
        return type(model).__name__, {name: getattr(value, "__name__", value) for name, value in values.items()}

    def plain(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        derived = {"solver": self.solver, "shape": list(self.shape), "candidate": self.candidate}
        return {**asdict(self), "only": list(self.only), "lanes": list(self.lanes), **derived}
