"""The run directory: settings, trial rows in Parquet parts, arrays beside them; safe against a kill.

    run.json  truth.npz  summary.json  figures/  report.html  rows-00000.parquet  arrays-00000.npz  …

Every file is written atomically (`parts.py`). A damaged part is set aside and its trials are run again. Needs a POSIX
system (`fcntl`).
"""

import contextlib
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxleak.data.paths import create, is_local, reachable, sync_directory, write_atomically
from jaxleak.errors import InputError, check_choice
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

FORMAT = 3  # raise it when a column's type or a file's layout changes: parts of another format are refused, not rerun
_ABSENT = object()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _as_json(value: Any) -> Any:
    """`value` as it comes back from JSON: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def settings_hash(settings: dict[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of the settings as canonical JSON."""
    return hashlib.sha256(_canonical(_as_json(settings)).encode()).hexdigest()[:12]


def _differences(stored: Any, asked: Any, name: str = "") -> list[str]:
    """`seeds: 50 in the directory, 20 asked`, for every setting that differs, with nested names dotted.

    What stands in a list of several settings goes by its own name, as in `attacks.dlg.iterations`.
    """
    if isinstance(stored, dict) and isinstance(asked, dict):
        pairs = [(key, stored.get(key, _ABSENT), asked.get(key, _ABSENT)) for key in stored | asked]
    elif _holds_settings(stored) and _holds_settings(asked) and len(stored) == len(asked):
        pairs = [(old.get("name", n), old, new) for n, (old, new) in enumerate(zip(stored, asked, strict=True))]
    else:
        old, new = _text(stored), _text(asked)
        return [] if old == new else [f"{name}: {_near(old, new)} in the directory, {_near(new, old)} asked"]
    nested = (_differences(old, new, f"{name}.{key}" if name else str(key)) for key, old, new in pairs)
    return [text for texts in nested for text in texts]


def _holds_settings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _text(value: Any) -> str:
    """As JSON; of several settings their names."""
    named = _holds_settings(value) and all("name" in part for part in value)
    return "absent" if value is _ABSENT else _canonical([part["name"] for part in value] if named else value)


def _near(text: str, other: str) -> str:
    """The text, or of a long one the part where it begins to differ from the other."""
    if len(text) <= 80:
        return text
    first = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, first - 37)
    return f"{'...' * (start > 0)}{text[start : start + 74]}{'...' * (start + 74 < len(text))}"


def _other_settings(path: Path, differences: list[str]) -> str:
    return (
        f"`out` {path} holds a run with other settings: {'; '.join(differences)}."
        " Give the same settings to continue it, or another directory."
    )


def _make_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"`out` must be a directory; {path} is a file. Give another path.")
    try:
        if is_local(path) and not path.exists():
            path.mkdir(parents=True, exist_ok=True)
            sync_directory(path.parent)
        contents = {file.name for file in (path.iterdir() if is_local(path) else path.glob("*"))}
    except OSError as error:
        raise InputError(f"`out` {path} cannot be made or read ({error.strerror}). Give another path.") from error
    foreign = {name for name in contents if not name.startswith(".lock")} - {file.name for file in own_debris(path)}
    if "run.json" not in contents and foreign:
        raise InputError(
            f"`out` {path} is not empty and not a run directory (no run.json). Give a new or empty directory."
        )


def _begun(path: Path, settings: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """`run.json`, made if it is not there; it must have these settings."""
    if not (path / "run.json").exists():
        description = _describe(settings, environment)
        with contextlib.suppress(FileExistsError):  # another shard was faster
            create(path / "run.json", json_bytes(description))
            return description
    description = _read_description(path)
    differences = _differences(description["settings"], _as_json(settings))
    if differences:
        raise InputError(_other_settings(path, differences))
    return description


def _read_description(path: Path) -> dict[str, Any]:
    """`run.json`, checked."""
    cure = "Restore it from a copy, or move the directory away and start again."
    try:
        description = json.loads((path / "run.json").read_bytes())
        fields = {"format", "settings", "settings_hash", "environment", "created"} - set(description)
        if fields or not isinstance(description["settings"], dict):
            raise ValueError(f"lacks {', '.join(sorted(fields)) or 'settings'}")
    except FileNotFoundError:
        raise InputError(
            f"{path} is not a run directory (no run.json). Give what `jaxleak run --out` was given."
        ) from None
    except OSError as error:
        raise InputError(f"{path / 'run.json'} cannot be read ({error.strerror}). {cure}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path / 'run.json'} is damaged ({' '.join(str(error).split())}). {cure}") from error
    if description["format"] != FORMAT:
        raise InputError(
            f"{path} was written in store format {description['format']!r}; this jaxleak reads {FORMAT}."
            " Use the version that wrote it, or another directory."
        )
    if settings_hash(description["settings"]) != description["settings_hash"]:
        raise InputError(f"{path / 'run.json'} was edited: its settings do not match their hash. {cure}")
    return description


class Run:
    """A run directory, open to write (`create_or_resume`) or to read (`open`); close it, or use `with`.

    Attributes:
        path: the directory.
        settings, settings_hash, environment, created: what `run.json` holds.
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
        cls, path: str | Path, settings: dict[str, Any], environment: dict[str, Any], shard: Shard = ALL
    ) -> "Run":
        """Start a run in a new or empty directory, or continue the one that is there with the same settings.

        Args:
            path: the directory; made if it is not there.
            settings: all that decides the results, as JSON values.
            environment: versions, device, git revision: recorded when the run is made, not compared.
            shard: which of the processes that write this run at the same time this one is.

        Raises:
            InputError: other settings (each is named), a directory of something else, a file, a damaged
                run.json, a directory that cannot be written, another process writing to it, or another number of
                shards than before.
        """
        path = reachable(path)
        _make_directory(path)
        locks = lock(path, shard)
        try:
            with alone(path, shard):
                description = _begun(path, settings, environment)
            others = {name.shard.count for name in part_names(path)} - {1, shard.count}
            if others and shard.count > 1:
                raise InputError(
                    f"`shard` {shard}: {path} was begun in {max(others)} shards. Give one of these, or none to run "
                    "all that is left in one process."
                )
            for file in own_debris(path, shard):
                file.unlink()
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
        _make_directory(path)
        if (path / "run.json").exists():
            differences = _differences(_read_description(path)["settings"], _as_json(settings))
            known = [text for text in differences if not text.startswith(tuple(f"{name}:" for name in later))]
            if known:
                raise InputError(_other_settings(path, known))

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run for reading: nothing in the directory changes, and another process may be writing it.

        Raises:
            InputError: no such directory, not a run directory, or a damaged run.json.
        """
        path = reachable(path)
        if not path.is_dir():
            what = "is not a directory" if path.exists() else "does not exist"
            raise InputError(f"run directory {path} {what}. Give what `jaxleak run --out` was given.")
        return cls(path, _read_description(path), [])

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
            OSError: the disk is full or failing; nothing is committed and the call can be made again.
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
        try:
            create(arrays_path_of(rows_path), payload)
            create(rows_path, parquet)
        except FileExistsError as error:
            raise InputError(f"`out` {self.path}: another process has begun to write this run. Stop one.") from error
        self._parts.append(Part(arrays_path_of(rows_path), table, np.arange(len(trials))))
        self._done.update(trials.tolist())
        self._next += 1

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
            pixels: [I, h, w, c] in [0, 1].
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
        write_atomically(self.path / "truth.npz", npz_bytes(truth))

    def truth(self) -> dict[str, np.ndarray]:
        """The true images: `image`, `label`, `pixels`; of newer runs `labels` and perhaps `class_names` too.

        Raises:
            InputError: they are missing or damaged.
        """
        import zipfile
        import zlib

        try:
            with np.load(io.BytesIO((self.path / "truth.npz").read_bytes())) as stored:
                more = [name for name in ("labels", "class_names") if name in stored.files]
                return {name: stored[name] for name in ("image", "label", "pixels", *more)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{self.path / 'truth.npz'} is missing or damaged. Start the same run again to write it anew."
            ) from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        self._check_writable()
        write_atomically(self.path / "summary.json", json_bytes(summary))

    @property
    def figures(self) -> Path:
        """The directory for figures, made when first asked for."""
        path = self.path / "figures"
        try:
            if is_local(path):
                path.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made ({error.strerror}). Copy the run elsewhere.") from error
        return path


def _describe(settings: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": _as_json(settings),
        "settings_hash": settings_hash(settings),
        "environment": environment,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
