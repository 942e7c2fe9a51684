"""Private data and labels: embedded photographs and text, CIFAR-100, MNIST, LFW, and the user's own.

load.py      `load_dataset`: by name or path
dataset.py   `Dataset`: pictures by their index; draws of images and batches
prepared.py  what tensorflow-datasets has prepared
pictures.py  the photographs in `photos/`, a folder, an `.npz` file
decode.py    a picture's pixels
texts.py     the text in `text/`, a `.txt` file
paths.py     paths of files in folders and object stores
"""

from jaxleak.data.dataset import BATCH_LABELS, DATASETS, Dataset
from jaxleak.data.load import load_dataset

__all__ = ["BATCH_LABELS", "DATASETS", "Dataset", "load_dataset"]
