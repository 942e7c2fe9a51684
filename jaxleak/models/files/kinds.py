"""Files and folders of other kinds, told by their first bytes or their names, and how to make tensors of them."""

import contextlib
import zipfile
from pathlib import Path
from typing import Any

from jaxleak.errors import InputError
from jaxleak.models.files.flax_trees import SAVE

LISTED = 6
STARTS = {
    b"\x89HDF": "it is HDF5; read it by h5py or Keras and save np.savez(FILE, **tensors) under torch's names",
    b"\x1f\x8b": "it is compressed by gzip; unpack it first (gunzip)",
    b"BZh": "it is compressed by bzip2; unpack it first (bunzip2)",
    b"\xfd7zXZ": "it is compressed by xz; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd; unpack it first (unzstd)",
    b"7z\xbc\xaf": "it is a 7z archive; unpack it first",
    b"GGUF": "it is GGUF; save the weights from PyTorch as safetensors",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file; fetch it by git lfs pull",
    b"<": "it is a web page or XML, not what was to be downloaded",
    b"{": "it is text (JSON); save tensors",
    b"[": "it is text (JSON); save tensors",
}
# A file in a folder -> what the folder is, and what to do.
FOLDERS = {
    "_CHECKPOINT_METADATA": f"a checkpoint of Orbax; restore it and save {SAVE}",
    "_METADATA": f"a checkpoint of Orbax; restore it and save {SAVE}",
    ".metadata": "a checkpoint of torch.distributed; make one file of it by "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
    "saved_model.pb": "a SavedModel of TensorFlow; save its weights by np.savez under torch's names",
    "model.safetensors.index.json": "a model in several files; load it and save its state_dict()",
    "pytorch_model.bin.index.json": "a model in several files; load it and save its state_dict()",
    "model.safetensors": "a directory; give the file model.safetensors in it",
    "pytorch_model.bin": "a directory; give the file pytorch_model.bin in it",
}


def check_kind(what: str, path: Path, wanted: str) -> None:
    """Raise if a file or folder is of a kind that is known, and not of tensors.

    Raises:
        InputError: it says what it is, and what to do.
    """
    problem = ""
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile):  # said where it is read
        if path.is_dir():
            held = {entry.name for entry in path.iterdir()}
            problem = next((f"is {text}" for name, text in FOLDERS.items() if name in held), "")
        elif path.is_file():
            problem = _of_file(path)
    if problem:
        raise InputError(f"`{what}` must be {wanted}; {str(path)!r} {problem}.")


def _of_file(path: Path) -> str:
    with open(path, "rb") as opened:
        start = opened.read(64)
    if start[8:9] == b"{":
        return ""  # safetensors, whose first bytes are a length
    text = "" if start else "it is empty"
    text = text or next((text for begin, text in STARTS.items() if start.startswith(begin)), "")
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("archive_format") for name in names):
            text = "it is of torch.export; save the module's state_dict() by torch.save"
        elif "model.weights.h5" in names:
            text = "it is a model of Keras; save its weights by np.savez under torch's names"
        elif not any(name.endswith(("data.pkl", ".npy")) for name in names):
            text = f"it is an archive of files ({listed(names)}); unpack it first"
    return text and f"cannot be read: {text}"


def listed(names: Any) -> str:
    """The first names, and how many more there are."""
    names = [str(name) for name in names]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
