"""The run directory: settings, trial rows in Parquet parts, arrays beside them; safe against a kill.

    run.json  truth.npz  summary.json  figures/  report.html  rows-00000.parquet  arrays-00000.npz  …

Every file is written atomically (`parts.py`). A damaged part is set aside and its trials are run again. Needs a POSIX
system (`fcntl`).
"""

import contextlib
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxleak.data.paths import check_inside, create, is_local, reachable, write_atomically, writing
from jaxleak.errors import InputError, StorageError, check_choice
from jaxleak.results.store.description import (
    as_json,
    begun,
    differences_of,
    make_directory,
    other_settings,
    read_description,
)
from jaxleak.results.store.locks import Lock, alone, lock
from jaxleak.results.store.parts import (
    Part,
    PartName,
    arrays_path_of,
    joined,
    json_bytes,
    load_parts,
    npz_bytes,
    own_debris,
    parquet_bytes,
    part_names,
    rows_table,
    schema,
)
from jaxleak.results.store.shard import ALL, Shard, missing_shards

if TYPE_CHECKING:
    import pyarrow


class Run:
    """A run directory, open to write (`create_or_resume`) or to read (`open`); close it, or use `with`.

    Attributes:
        path: the directory.
        settings, settings_hash, environment, created: what `run.json` holds.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("photos"), images=[6])
        >>> _ = jaxleak.attack(victim, "analytic", seeds=1, quiet=True, out="my-run")
        >>> run = jaxleak.Run.open("my-run")
        >>> [(row["trial"], row["status"]) for row in run.rows()]
        [(0, 'converged')]
        >>> run.truth()["pixels"].shape
        (1, 32, 32, 3)
    """

    def __init__(self, path: Path, description: dict[str, Any], locks: list[Lock], shard: Shard = ALL):
        self.path = path
        self.settings: dict[str, Any] = description["settings"]
        self.settings_hash: str = description["settings_hash"]
        self.environment: dict[str, Any] = description["environment"]
        self.created: str = description["created"]
        self.shard = shard
        self._locks = locks
        self._parts = load_parts(path, shard if locks else None)
        self._done = {trial for part in self._parts for trial in part.table["trial"].to_pylist()}
        self._next = 1 + max((name.number for name in part_names(path) if name.shard == shard), default=-1)

    def shards(self, total: int) -> dict[str, Any] | None:
        """Number of shards of a run of `total` trials, and progress of the incomplete ones.

        The number is read from the parts' names; None if the run was not divided.
        """
        count = max((name.shard.count for name in part_names(self.path)), default=1)
        if count == 1:
            return None
        sizes = {index: Shard(index, count).size(total) for index in range(count)}
        done = missing_shards(count, total, self._done)
        missing = [{"shard": str(Shard(i, count)), "done": n, "trials": sizes[i]} for i, n in done.items()]
        return {"count": count, "missing": missing}

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        settings: dict[str, Any],
        environment: dict[str, Any],
        shard: Shard = ALL,
        *,
        mix_versions: bool = False,
    ) -> "Run":
        """Start a run in a new or empty directory, or continue the one that is there with the same settings.

        Args:
            path: the directory; made if it is not there.
            settings: all that decides the results, as JSON values.
            environment: versions, device, git revision: recorded when the run is made. Only `solvers` is compared.
            shard: which of the processes that write this run at the same time this one is.
            mix_versions: continue a run of other versions of the solvers.

        Raises:
            InputError: other settings (each is named), other solvers, a directory of something else, a file, a damaged
                run.json, a directory that cannot be written, links that lead out of it, another process writing to
                it, or another number of shards than before.
            StorageError: the disk is full.
        """
        path = reachable(path)
        make_directory(path)
        locks = lock(path, shard)
        try:
            with alone(path, shard):
                description = begun(path, settings, environment, mix_versions)
            others = {name.shard.count for name in part_names(path)} - {1, shard.count}
            if others and shard.count > 1:
                raise InputError(
                    f"`shard` {shard}: {path} was begun in {max(others)} shards. Give one of these, or none to run "
                    "all that is left in one process."
                )
            for file in own_debris(path, shard):
                file.unlink(missing_ok=True)
            return cls(path, description, locks, shard)
        except BaseException:
            for held_lock in locks:
                held_lock.close()
            raise

    @classmethod
    def check(cls, path: str | Path, settings: dict[str, Any], later: tuple[str, ...]) -> None:
        """Raise as `create_or_resume` would, as far as settings are known before long work; nothing is written.

        Args:
            path: the directory.
            settings: the settings known so far.
            later: dotted names of settings that are not known yet.

        Raises:
            InputError: as there.
        """
        path = reachable(path)
        if not path.exists():
            return
        make_directory(path)
        if (path / "run.json").exists():
            differences = differences_of(read_description(path)["settings"], as_json(settings))
            known = [text for text in differences if not text.startswith(tuple(f"{name}:" for name in later))]
            if known:
                raise InputError(other_settings(path, known))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run for reading: nothing in the directory changes, and another process may be writing it.

        Raises:
            InputError: no such directory, not a run directory (or one of `jaxleak infer`), or a damaged run.json.
        """
        path = reachable(path)
        if not path.is_dir():
            what = "is not a directory" if path.exists() else "does not exist"
            raise InputError(f"run directory {path} {what}. Give what `jaxleak run --out` was given.")
        description = read_description(path)
        if "infer" in description["settings"]:
            raise InputError(f"{path} was written by `jaxleak infer`, which has no trials; see its summary.json.")
        return cls(path, description, [])

    def close(self) -> None:
        """Let other processes write the run; this object can still read it."""
        for held_lock in self._locks:
            held_lock.close()
        self._locks = []

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_writable(self) -> None:
        if not self._locks:
            raise ValueError(f"the run {self.path} is open for reading only")

    def append(self, rows: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """Commit finished trials as one part: when this returns they are on the disk, whatever happens next.

        Args:
            rows: the result rows; exactly the names of `columns.COLUMNS`.
            arrays: by name, each with one leading entry per row. `trial` is added if it is not there.

        Raises:
            ValueError: wrong columns, a trial that is there already, or an array of another length.
            StorageError: the disk is full or failing; nothing is committed and the call can be made again.
        """
        self._check_writable()
        if not rows:
            return
        table = rows_table(rows)
        trials = np.array(table["trial"].to_pylist(), dtype=np.int64)
        arrays = {"trial": trials} | {name: np.asarray(array) for name, array in arrays.items()}
        self._check_new(trials, arrays)
        payload = npz_bytes(arrays)
        rows_path = self.path / PartName(self.shard, self._next).file
        parquet = parquet_bytes(table, hashlib.sha256(payload).hexdigest())
        with self._storing(len(payload) + len(parquet)):
            try:
                create(arrays_path_of(rows_path), payload)
                create(rows_path, parquet)
            except FileExistsError as error:
                words = "another process has begun to write this run. Stop one."
                raise InputError(f"`out` {self.path}: {words}") from error
            except BaseException:
                self._forget_arrays(rows_path)
                raise
        self._parts.append(Part(arrays_path_of(rows_path), table, np.arange(len(trials))))
        self._done.update(trials.tolist())
        self._next += 1

    @contextlib.contextmanager
    def _storing(self, needed: int) -> Iterator[None]:
        """What is written inside may find the disk full, or gone."""
        try:
            yield
        except StorageError as error:
            error.needed = needed
            raise
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise StorageError(f"{self.path} cannot be written ({reason}).", needed=needed) from error

    def _forget_arrays(self, rows_path: Path) -> None:
        """Arrays whose rows were not written would keep a full disk full."""
        with contextlib.suppress(OSError):
            if is_local(rows_path) and not rows_path.exists():
                arrays_path_of(rows_path).unlink()

    def _check_new(self, trials: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        twice = self._done.intersection(trials.tolist())
        if twice or len(set(trials.tolist())) < len(trials):
            raise ValueError(f"trials are stored once; there already, or twice in the part: {sorted(twice)[:8]}")
        wrong = [n for n, a in arrays.items() if a.ndim == 0 or len(a) != len(trials) or a.dtype.hasobject]
        if wrong or not np.array_equal(arrays["trial"], trials):
            raise ValueError(f"arrays must have one numeric entry per row, in the rows' order; wrong: {wrong}")

    def table(self) -> "pyarrow.Table":
        """All rows, in the order in which they were committed."""
        import pyarrow as pa

        return pa.concat_tables([schema().empty_table(), *(part.table for part in self._parts)])

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dicts, in the order in which they were committed."""
        return self.table().to_pylist()

    def frame(self):
        """All rows as a pandas DataFrame, sorted by trial; columns are explained in jaxleak/results/README.md.

        Raises:
            InputError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise InputError("`frame` needs pandas: pip install pandas; `table()` is an Arrow table.")
        return self.table().sort_by("trial").to_pandas()

    def write_rows(self, path: str | Path) -> None:
        """Copy every row into one Parquet file, sorted by trial."""
        import pyarrow.parquet as parquet

        parquet.write_table(self.table().sort_by("trial"), path)

    def done(self) -> set[int]:
        """The ids of the trials that need not be run again."""
        return set(self._done)

    def arrays(self, keys: Iterable[str] | None = None, trials: Iterable[int] | None = None) -> dict[str, np.ndarray]:
        """Arrays in the order of the rows; loads only parts that hold `trials`, and of those only `keys`.

        Args:
            keys: names of arrays; all of them if None.
            trials: ids of the trials wanted; all of them if None. Ask for the key `trial` to see their order.

        Raises:
            InputError: a name or a trial that the run does not have.
        """
        wanted = self._done if trials is None else set(map(int, trials))
        if wanted - self._done:
            raise InputError(f"`trials` must be in the run; not there: {sorted(wanted - self._done)[:8]}.")
        names = None if keys is None else list(keys)
        pieces = defaultdict(list)
        for part in self._parts:
            chosen = [i for i, trial in enumerate(part.table["trial"].to_pylist()) if trial in wanted]
            if not chosen:
                continue
            with part.arrays.open("rb") as file, np.load(file) as stored:
                for name in stored.files if names is None else names:
                    pieces[check_choice("keys", name, stored.files)].append(stored[name][part.keep[chosen]])
        return {name: joined(chunks) for name, chunks in pieces.items()}

    def write_truth(
        self,
        image: np.ndarray,
        label: np.ndarray,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """Store the true images once.

        Args:
            image: [I] indices, of a batch that of its first image.
            label: [I], likewise.
            pixels: [I, h, w, c] in [0, 1]; of text the tokens of each batch [I, b, t].
            labels: [I, b], all labels of each batch.
            class_names: one for each class [k]; they decide nothing.
        """
        self._check_writable()
        truth: dict[str, np.ndarray] = {
            "image": np.asarray(image, np.int64),
            "label": np.asarray(label, np.int64),
            "pixels": np.asarray(pixels, np.float32),
        }
        if labels is not None:
            truth["labels"] = np.asarray(labels, np.int64)
        if len({len(array) for array in truth.values()}) != 1:
            raise ValueError("`image`, `label` and `pixels` must have the same length, and `labels` too")
        if class_names:
            truth["class_names"] = np.array([str(name) for name in class_names])
        self._write("truth.npz", npz_bytes(truth))

    def truth(self) -> dict[str, np.ndarray]:
        """The true images: `image`, `label`, `pixels`; of newer runs `labels` and perhaps `class_names` too.

        Raises:
            InputError: they are missing or damaged.
        """
        try:
            with np.load(io.BytesIO((self.path / "truth.npz").read_bytes())) as stored:
                more = [name for name in ("labels", "class_names") if name in stored.files]
                truth = {name: stored[name] for name in ("image", "label", "pixels", *more)}
            self._check_truth(truth)
        except Exception as error:  # bytes that were changed make numpy and zipfile raise almost anything
            raise InputError(
                f"{self.path / 'truth.npz'} is missing or damaged. Start the same run again to write it anew."
            ) from error
        return truth

    @staticmethod
    def _check_truth(truth: dict[str, np.ndarray]) -> None:
        count = len(truth["image"])
        whole = all(
            np.issubdtype(truth[name].dtype, np.integer) for name in ("image", "label", *({"labels"} & {*truth}))
        )
        fits = truth["image"].shape == truth["label"].shape == (count,) and truth["pixels"].shape[:1] == (count,)
        pixels = (
            truth["pixels"].ndim in (3, 4) and truth["pixels"].dtype == np.float32 and 0 not in truth["pixels"].shape
        )
        labels = "labels" not in truth or (truth["labels"].ndim == 2 and len(truth["labels"]) == count)
        if not (whole and fits and pixels and labels and count == len(set(truth["image"].tolist()))):
            raise ValueError("the arrays do not belong to each other")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`.

        Raises:
            StorageError: the disk is full or failing.
        """
        self._check_writable()
        self._write("summary.json", json_bytes(summary))

    def _write(self, name: str, payload: bytes) -> None:
        check_inside(self.path, name)
        with self._storing(len(payload)):
            write_atomically(self.path / name, payload)

    @property
    def modality(self) -> str:
        """The kind of private data: "image" or "text"."""
        return self.settings.get("victim", {}).get("modality") or "image"

    @property
    def figures(self) -> Path:
        """The directory for figures, made when first asked for; nothing in it leads out of the run."""
        path = self.path / "figures"
        check_inside(self.path, "figures")
        with writing("path", path):
            if is_local(path):
                path.mkdir(exist_ok=True)
                check_inside(self.path, *(f"figures/{file.name}" for file in path.glob("*.png")))
        return path
