"""A model of one's own, as it is: stock Flax layers made fast, its last dense layer found and presented as "head".

Nothing in the model is edited: its layers are replaced while it is applied, by Linen's interceptors.

    adapt.py      `adapt_model`: how a model is called, what is warned of
    adapted.py    the adapted model: names of its parameters, what it computes, its layout beside torch's
    layers.py     its layers: made fast, or told to be slow; which is the head
    nnx_model.py  an NNX module with the methods of a Linen one
    traced.py     convolutions in a traced function
    flatten.py    flattened maps in a traced function
    from_file.py  a model by its name, or from a function in a Python file
"""

from jaxleak.models.own.adapt import adapt_model, module_name
from jaxleak.models.own.adapted import AdaptedModel
from jaxleak.models.own.layers import slow_layers

__all__ = ["AdaptedModel", "adapt_model", "module_name", "slow_layers"]
