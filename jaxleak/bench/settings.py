"""Settings of a measurement: the variants, their model, and the time."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxleak.errors import InputError, check_choice, check_positive

OURS = ("jaxleak", "jaxleak-network-per-trial", "jaxleak-lbfgs", "jaxleak-cosine")
VMAPPED = ("pytorch-vmap", "pytorch-compiled")
PYTORCH = ("pytorch-processes", "pytorch-serial", *VMAPPED, "pytorch-cosine-processes")
COSINE = ("pytorch-cosine-processes", "jaxleak-cosine")  # another attack than the rest: compared with each other only
DESCRIPTIONS = {
    "pytorch-processes": "the PyTorch loop, one process per core with one thread each, summed",
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
MODELS = ("lenet", "resnet18")
# Parts of a step of jaxleak: the objective's value; with its gradient; the solver with a trivial objective; all.
PHASES = ("objective", "objective-and-gradient", "solver", "step")
SOLVERS = {"lenet": "lbfgs", "resnet18": "adam"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One measurement.

    Attributes:
        model: "lenet" (with L-BFGS) or "resnet18" (with Adam).
        only: the variants to measure, of `VARIANTS`; by default `USUAL`.
        lanes: trials at once over all devices. Each count is a number or "auto": jaxleak's engine searches, and
            pytorch-vmap tries a few. None given: every variant takes a count known to be good.
        seconds: all measuring together, without starting and compiling.
        rounds: how often each variant is measured; fewer where `seconds` do not suffice.
        history: pairs that L-BFGS keeps.
        iterations: length of a restart where jaxleak's engine does not decide: outer steps of 20 evaluations (L-BFGS),
            or steps (Adam).
        width: channels of the ResNet's first stage; None is 64 on a GPU and 16 on a CPU.
        image_size: height and width in pixels.
        num_classes: outputs of the head.
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
    image_size: int = 32
    num_classes: int = 100
    profile: bool = False

    def __post_init__(self):
        check_choice("model", self.model, MODELS)
        if not self.only:
            raise InputError(f"`only` must name at least one of {', '.join(VARIANTS)}.")
        for name in self.only:
            check_choice("only", name, VARIANTS)
        if len(set(self.only)) < len(self.only):
            raise InputError(f"`only` names must be distinct; got {', '.join(self.only)}.")
        check_positive("seconds", self.seconds)
        for name in ("rounds", "history", "iterations", "image_size", "num_classes"):
            check_positive(name, getattr(self, name), integer=True)
        if self.width is not None:
            check_positive("width", self.width, integer=True)
        for count in self.lanes:
            if count != "auto":
                check_positive("lanes", count, integer=True)

    @property
    def solver(self) -> str:
        """ "lbfgs" or "adam"."""
        return SOLVERS[self.model]

    def plain(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**asdict(self), "only": list(self.only), "lanes": list(self.lanes), "solver": self.solver}
