"""Data sets that tensorflow-datasets has prepared: CIFAR-100, MNIST, LFW."""

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxleak.data.dataset import DATASETS, Dataset
from jaxleak.data.decode import decode, fitted
from jaxleak.errors import InputError, check_choice


def prepared_splits(name: str, directory: Path) -> list[str]:
    """The splits of a data set whose files are there.

    Raises:
        InputError: it is not prepared.
    """
    return _splits_of(name, _prepared_info(name, directory), directory)


def _splits_of(name: str, info: Any, directory: Path) -> list[str]:
    splits = [key for key, value in info.splits.items() if all(Path(file).exists() for file in value.filepaths)]
    if not splits:
        raise InputError(_not_prepared(name, directory))
    return splits


def load_prepared(name: str, split: str | None, directory: Path, sides: tuple[int, int] | None) -> Dataset:
    import tensorflow_datasets as tfds

    info = _prepared_info(name, directory)
    splits = _splits_of(name, info, directory)
    split = check_choice("split", split or ("train" if "train" in splits else splits[0]), splits)
    if info.file_format.value != "array_record":
        raise InputError(
            f"`dataset` {name} in {directory} is stored as {info.file_format.value}, which only "
            f"TensorFlow reads; prepare it again elsewhere: {_prepare_command(name, Path('DIR'))}"
        )
    # SkipDecoding: pictures stay as stored bytes until they are asked for; `decode` reads them with Pillow.
    builder: Any = tfds.builder_from_directory(info.data_dir)
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    column = functools.partial(_text_column, source, f"{name}-{info.version}-{split}", info.splits[split])

    index = np.arange(len(source))
    if "id" in info.features:  # `train_20319`: tensorflow-datasets shuffles, the id keeps the original index
        index = np.asarray([int(value.rpartition(b"_")[2]) for value in column("id")])
    class_names = getattr(info.features["label"], "names", None)
    if class_names is None:  # LFW's label is the person's name
        class_names = sorted({value.decode() for value in column("label")})
    class_names = tuple(class_names)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    sides = sides or (DATASETS[name], DATASETS[name])

    def reader(positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        records = source.__getitems__(list(positions))
        pixels = [fitted(decode(record["image"]), sides) for record in records]
        labels = [record["label"] for record in records]
        labels = [label_of[label.decode()] if isinstance(label, bytes) else label for label in labels]
        return np.stack(pixels), np.asarray(labels)

    return Dataset(
        name=name,
        split=split,
        image_shape=(*sides, info.features["image"].shape[-1]),
        class_names=class_names,
        index=index,
        reader=reader,
    )


def data_directory(data_dir: str | Path | None) -> Path:
    """The directory of prepared data sets; one that the user named must exist."""
    named = {"`data_dir`": data_dir, "JAXLEAK_DATA_DIR": os.environ.get("JAXLEAK_DATA_DIR")}
    for source, value in named.items():
        if value:
            directory = Path(value).expanduser()
            if not directory.is_dir():
                raise InputError(f"{source} {str(value)!r} is not a directory; give the one with prepared data sets.")
            return directory
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepared_info(name: str, directory: Path) -> Any:
    """The description of the newest prepared version of a data set."""
    import tensorflow_datasets as tfds

    versions = {
        tuple(int(part) for part in file.parent.name.split(".")): file.parent
        for file in (directory / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+(\.\d+)*", file.parent.name)
    }
    if not versions:
        raise InputError(_not_prepared(name, directory))
    return tfds.builder_from_directory(versions[max(versions)]).info


def _not_prepared(name: str, directory: Path) -> str:
    command = _prepare_command(name, directory)
    return f"`dataset` {name} is not prepared in {directory}; prepare it once, which needs TensorFlow: {command}"


def _prepare_command(name: str, directory: Path) -> str:
    arguments = f"{name!r}, data_dir={str(directory)!r}, file_format='array_record'"
    python = f"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
    return f'pip install tensorflow && python -c "{python}"'


def _text_column(source: Any, name: str, split_info: Any, feature: str) -> np.ndarray:
    """One text feature at every position of a data source, as bytes [n]; walked once, then cached."""
    files = [Path(file) for file in split_info.filepaths]
    identity = repr([(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxleak"
    file = cache / f"{name}-{feature}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npy"
    try:
        column = np.load(file, allow_pickle=False)
        if column.shape == (len(source),) and column.dtype.kind == "S":
            return column
    except (OSError, ValueError, EOFError):
        pass
    blocks = (range(start, min(start + 2000, len(source))) for start in range(0, len(source), 2000))
    column = np.asarray([record[feature] for block in blocks for record in source.__getitems__(list(block))])
    _save_quietly(file, column)
    return column


def _save_quietly(file: Path, array: np.ndarray) -> None:
    """Write a cache file in one step; a directory that cannot be written only costs time next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            try:
                np.save(temporary, array, allow_pickle=False)
                temporary.close()
                os.replace(temporary.name, file)
            except OSError:
                Path(temporary.name).unlink(missing_ok=True)
    except OSError:
        pass
