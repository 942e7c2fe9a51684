"""What the client shares: its training, the defences it applies, or the update itself where that is given."""

from dataclasses import dataclass, field

from jaxtyping import PyTree

from jaxleak.errors import InputError, check_choice, check_seed
from jaxleak.threat.client import Client
from jaxleak.threat.defences import Defence, check_defences, defence_text

DEFENCE_DRAWS = ("per-victim", "per-trial")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sharing:
    """From a client's batch to what the attacker sees.

    Attributes:
        client: computation of the update: a gradient, or local steps.
        defences: defences applied to the update before it is shared, in this order; also functions of one's own
            (`own_defence.OwnDefence`).
        defence_seed: seed from which their noise is drawn.
        defence_draw: "per-victim": every restart meets the same noise; "per-trial": noise of its own, which makes the
            best of several restarts better than an attacker's.
        update: the shared update where it is given and not computed: of one victim, with given `params`, a tree of
            floats like these.
    """

    client: Client = field(default_factory=Client)
    defences: tuple[Defence, ...] = ()
    defence_seed: int = 0
    defence_draw: str = "per-victim"
    update: PyTree | None = None

    def _check_sharing(self, batch: int) -> None:
        self.client.check(batch)
        check_defences(self.defences)
        check_seed("defence_seed", self.defence_seed)
        check_choice("defence_draw", self.defence_draw, DEFENCE_DRAWS)
        for defence in self.defences:
            if (defence.per_example or defence.in_network) and (self.client.trains or self.client.clients > 1):
                name = defence_text(defence).split(":")[0]
                what, instead = "clips the gradients of single images", ", or use clip and gaussian"
                if defence.in_network:
                    what, instead = "draws noise for one pass through the network", ""
                raise InputError(
                    f"`defence` {name} {what} and needs one client that shares a gradient; "
                    f"leave out --client-steps, --client-epochs and --clients{instead}."
                )
        if self._clips_examples and any(defence.in_network for defence in self.defences):
            raise InputError("`defence` dp-sgd and precode exclude each other; leave one of them out.")
        terms = [term for _, term in getattr(self.client.loss, "terms", ((1.0, self.client.loss),))]
        weighted = batch > 1 and any(getattr(term, "weights", ()) for term in terms)
        if self._clips_examples and (weighted or any(term.reduction != "mean" for term in terms)):
            raise InputError(
                "`defence` dp-sgd averages the gradients of single images; leave out --reduction sum and "
                "--class-weights, or use clip and gaussian."
            )

    @property
    def _clips_examples(self) -> bool:
        return bool(self.defences) and self.defences[0].per_example

    @property
    def defence_name(self) -> str:
        """The defences as on the command line, "none" without any."""
        return " ".join(map(defence_text, self.defences)) or "none"
