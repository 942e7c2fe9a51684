"""A transformer that models language: causal, as GPT-2, or masked, as BERT. Modules are named as in `vit`."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models.activations import gelu
from jaxleak.models.layers import classify
from jaxleak.models.vit import Block, layer_norm, small
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS, dlg_uniform

TASKS = ("causal", "masked")
MASK = 0  # the vocabulary's entry that stands where a token is hidden
FIRST_MASKED, EVERY = 3, 7  # places that are hidden: 3, 10, 17, …; one in seven is BERT's 15 %


class Transformer(nn.Module):
    """A language model: token and position embeddings, pre-norm blocks, a norm and a dense head on the vocabulary.

    A causal network of a text of t tokens reads the first t - 1 and predicts each one's next. A masked one reads all t,
    those at the places 3, 10, 17, … replaced by the vocabulary's entry 0, and predicts those. The outputs are the
    predictions only [b, p, k]; head and embeddings do not share weights.

    Source: Radford et al. 2019 (GPT-2), `GPT2LMHeadModel`; Devlin et al. 2019 (BERT), the share of masked places.
    Differs: GPT-2's head is the embeddings' transpose and has no bias. The masked network has GPT-2's blocks, and its
        places are the same in every text: an attacker knows them.

    Attributes:
        num_classes: k, size of the vocabulary.
        dim: e, numbers of a token.
        depth: blocks.
        heads: of the attention; must divide `dim`.
        mlp_ratio: hidden units of a block's dense layers, over `dim`.
        task: "causal" or "masked".
        activation: between the dense layers.
        epsilon: of the norms.
        weight_init: "torch" (GPT-2's: weights, tokens and positions N(0, 0.02^2), biases 0), "uniform" (DLG: all from
            U(-0.5, 0.5), scales and biases of norms too), "uniform-weights" (norms 1 and 0) or "flax" (kernels
            N(0, 1 / fan-in), biases 0, tokens and positions as "torch").

    Raises:
        InputError: a field has a value that is not allowed, or a text is too short.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxleak.models import Transformer
        >>> model = Transformer(num_classes=50, dim=16, depth=1, heads=2)
        >>> texts = jnp.zeros((2, 8), int)  # two texts of eight tokens: seven predictions each
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), texts)[0].shape
        (2, 7, 50)
    """

    num_classes: int
    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    task: str = "causal"
    activation: Callable = gelu
    epsilon: float = 1e-5
    weight_init: str = "torch"

    torch_names = ()
    embedding = "embed"  # the layer that holds the vectors of the tokens
    mask = MASK

    def __post_init__(self):
        check_choice("task", self.task, TASKS)
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        for name in ("dim", "depth", "heads"):
            check_positive(name, getattr(self, name), integer=True)
        for name in ("mlp_ratio", "epsilon"):
            check_positive(name, getattr(self, name))
        if self.dim % self.heads:
            raise InputError(f"`heads` must divide `dim`; got {self.heads} heads for {self.dim}.")
        super().__post_init__()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers from the input on."""
        return (self.embedding, "pos_embed", *(f"blocks.{number}" for number in range(self.depth)), "norm", "head")

    def places(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of a text of `length` tokens that the network sees, and those that it predicts, from 0.

        Raises:
            InputError: the text has too few tokens.
        """
        if self.task == "causal":
            if length < 2:
                raise InputError(f"`length` must be at least 2 for a causal network; got {length}.")
            return np.arange(length - 1), np.arange(1, length)
        if length <= FIRST_MASKED:
            raise InputError(f"`length` must be at least {FIRST_MASKED + 1} for a masked network; got {length}.")
        hidden = np.arange(FIRST_MASKED, length, EVERY)
        return np.setdiff1d(np.arange(length), hidden), hidden

    @nn.compact
    def __call__(self, x: Float[Array, "b t"] | Float[Array, "b n e"]) -> Float[Array, "b p k"]:
        """Logits of what is predicted.

        Args:
            x: numbers of tokens, as floats; or in their place the vectors of the tokens that the network reads, as many
                as there are of these; those of hidden places are not used.
        """
        if x.ndim not in (2, 3):
            raise InputError("`model` transformer reads text; use it with the data set text.")
        drawn = {"uniform": dlg_uniform, "uniform-weights": dlg_uniform}.get(self.weight_init, small)
        embed = nn.Embed(self.num_classes, self.dim, embedding_init=drawn, name=self.embedding)
        length = x.shape[1] + (x.ndim == 3 and self.task == "causal")
        _, predicted = self.places(length)
        tokens = x if x.ndim == 3 else embed(x[:, : length - (self.task == "causal")].astype(int))
        if self.task == "masked":
            tokens = tokens.at[:, predicted].set(embed(jnp.asarray(MASK)))
        tokens += self.param("pos_embed", drawn, (1, tokens.shape[1], self.dim), jnp.float32)
        for number in range(self.depth):
            tokens = Block(
                heads=self.heads,
                hidden=round(self.mlp_ratio * self.dim),
                activation=self.activation,
                encoder="pre-norm",
                epsilon=self.epsilon,
                weight_init=self.weight_init,
                causal=self.task == "causal",
                name=f"blocks.{number}",
            )(tokens)
        tokens = layer_norm(self.weight_init, self.epsilon)(name="norm")(tokens)
        if self.task == "masked":
            tokens = tokens[:, predicted]
        inits = {"kernel_init": small, "bias_init": nn.initializers.zeros}
        return classify(tokens, self.num_classes, self.weight_init, **inits)

    def head_input_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """As of other models: the head reads one token."""
        return 1, 1, self.dim
