"""Files of tensors that PyTorch users have, and their names beside a model's.

pickled.py  what `torch.save` wrote, read without running it
read.py     `read_tensors`: safetensors, `.npz`, `torch.save`; which part of a checkpoint
flax_trees.py  trees of Flax: msgpack, pickles, flat names
dialects.py names of other libraries
kinds.py    files and folders of other kinds, refused with a way out
names.py    names as the model has them: prefixes, attention in one tensor, tied tensors
"""

from jaxleak.models.files.read import Stored, read_tensors

__all__ = ["Stored", "read_tensors"]
