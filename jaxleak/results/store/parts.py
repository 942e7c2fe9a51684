"""A run directory's files: trial rows in Parquet parts, arrays beside them, written atomically and checked when read.

A part's arrays go first and its rows second: the Parquet file commits the part, and holds checksums of its rows and of
the arrays. A part that does not match them is damaged.
"""

import hashlib
import io
import json
import re
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxleak.data.paths import is_local, move
from jaxleak.errors import InputError
from jaxleak.results.store.columns import COLUMNS, Row
from jaxleak.results.store.shard import ALL, Shard

if TYPE_CHECKING:
    import pyarrow


STALE_SECONDS = 60.0  # after its last change


class DamagedError(Exception):
    """A part that is not what was written."""


class Part(NamedTuple):
    """One committed part: its rows, and their places in its arrays (not all, if a trial was there twice)."""

    arrays: Path
    table: "pyarrow.Table"
    keep: np.ndarray


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz`. Only arrays that are mostly zero are compressed; others shrink too little for the time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            if np.issubdtype(array.dtype, np.number) and np.count_nonzero(array) < array.size / 2:
                info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def own_debris(path: Path, shard: Shard = ALL) -> list[Path]:
    """Files that a killed run left half done; of a shard only its own parts, others may be at work.

    On a file system these are temporary files, in an object store a part's arrays without its rows.
    """
    if not is_local(path):
        rows = {arrays_path_of(file).name for file in path.glob("rows-*.parquet")}
        return [file for file in path.glob(f"arrays-{shard.prefix}*.npz") if file.name not in rows]
    pattern = r"\.(run|truth|summary|rows-|arrays-)" if shard == ALL else rf"\.(rows|arrays)-{shard.prefix}"
    mine = [file for file in path.glob(".*.tmp") if re.match(pattern, file.name)]
    if shard == ALL:
        mine += [file for file in (*path.glob(".*.tmp"), *path.glob("figures/.*.tmp")) if _stale(file)]
    return list(dict.fromkeys(mine))


def _stale(file: Path) -> bool:
    """True if nobody can still be writing this temporary file: figures and pages are drawn without a lock."""
    try:
        return time.time() - file.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False


def schema() -> "pyarrow.Schema":
    import pyarrow as pa

    return pa.schema([pa.field(column.name, pa.type_for_alias(column.kind), column.may_lack) for column in COLUMNS])


def rows_table(rows: Sequence[Row]) -> "pyarrow.Table":
    import pyarrow as pa

    names = [column.name for column in COLUMNS]
    for row in rows:
        if row.keys() != set(names):
            extra, lacking = sorted(row.keys() - set(names)), sorted(set(names) - row.keys())
            raise ValueError(f"a row must have the columns of COLUMNS; extra: {extra}, lacking: {lacking}")
        wrong = [f"{column.name}={row[column.name]!r}" for column in COLUMNS if not column.fits(row[column.name])]
        if wrong:
            raise ValueError(f"trial {row['trial']!r}: values of the wrong type: {', '.join(wrong)}")
    return pa.Table.from_pylist(list(rows), schema=schema())


def with_all_columns(table: "pyarrow.Table") -> "pyarrow.Table":
    """A stored table with the columns of `COLUMNS`: null where an older version wrote none, without a newer one's.

    Raises:
        ValueError: a column that every row must have is not there, or has another type.
    """
    import pyarrow as pa

    columns = []
    for field in schema():
        if field.name in table.column_names:
            columns.append(table[field.name])
            if columns[-1].type != field.type:
                raise ValueError(f"column {field.name} has the type {columns[-1].type}")
        elif field.nullable:
            columns.append(pa.nulls(len(table), field.type))
        else:
            raise ValueError(f"column {field.name} is missing")
    return pa.table(columns, schema=schema())


def part_digest(table: "pyarrow.Table", arrays_digest: str) -> str:
    return hashlib.sha256((json.dumps(table.to_pydict()) + arrays_digest).encode()).hexdigest()


def parquet_bytes(table: "pyarrow.Table", arrays_digest: str) -> bytes:
    import pyarrow.parquet as pq

    digests = {"jaxleak_rows": part_digest(table, arrays_digest), "jaxleak_arrays": arrays_digest}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(digests), buffer, write_page_checksum=True)
    return buffer.getvalue()


def read_part(rows_path: Path, arrays_path: Path) -> "pyarrow.Table":
    """A part's rows, if they and the arrays beside them are exactly what was written.

    Raises:
        DamagedError: they are not.
        InputError: a file cannot be read at all, which says nothing about what it holds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        payload = rows_path.read_bytes()
        with arrays_path.open("rb") as file:
            arrays_digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        missing = rows_path if not rows_path.exists() else arrays_path
        raise DamagedError(f"{missing.name} is missing") from error
    except OSError as error:
        message = f"{error.filename or rows_path} cannot be read ({error.strerror or error})"
        raise InputError(f"{message}. Check its permissions.") from error
    try:
        file = pq.ParquetFile(pa.BufferReader(payload), page_checksum_verification=True)
        table = file.read(use_threads=False)
        digests = table.schema.metadata or {}
        table = table.replace_schema_metadata(None)
        whole = digests[b"jaxleak_rows"].decode() == part_digest(table, arrays_digest)
        table = with_all_columns(table)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{rows_path.name}: {' '.join(str(error).split())[:120]}") from error
    if not whole:
        raise DamagedError(f"{rows_path.name} and {arrays_path.name} do not match their checksums")
    return table


def arrays_path_of(rows_path: Path) -> Path:
    return rows_path.with_name(rows_path.name.replace("rows-", "arrays-").replace(".parquet", ".npz"))


class PartName(NamedTuple):
    """The shard that wrote a part, and the part's number in that shard. A run that is not sharded has shard 0/1."""

    shard: Shard
    number: int

    @property
    def file(self) -> str:
        """Name of its rows' file."""
        return f"rows-{self.shard.prefix}{self.number:05}.parquet"


def part_name(path: Path) -> PartName | None:
    """The part that a rows' file belongs to, damaged ones included; None if it is no rows' file."""
    match = re.fullmatch(r"rows-(?:(\d+)of(\d+)-)?(\d+)\.parquet(?:\.corrupt)?", path.name)
    return PartName(Shard(int(match[1] or 0), int(match[2] or 1)), int(match[3])) if match else None


def part_names(path: Path) -> list[PartName]:
    """The parts that a run directory has or had, in order."""
    return sorted(filter(None, map(part_name, path.glob("rows-*"))))


def load_parts(path: Path, owner: Shard | None) -> list[Part]:
    """The sound parts in order, each trial once; damaged ones of `owner` are set aside, of other shards skipped."""
    parts, seen = [], set()
    for name in dict.fromkeys(part_names(path)):
        rows_path, writable = path / name.file, owner in (ALL, name.shard)
        if not rows_path.exists():
            continue
        arrays = arrays_path_of(rows_path)
        try:
            table = read_part(rows_path, arrays)
        except DamagedError as error:
            fate = "set aside" if writable else "skipped"
            warnings.warn(f"{path}: damaged part {fate}, its trials count as not run ({error})", stacklevel=4)
            for file in (rows_path, arrays) if writable else ():
                if file.exists():
                    move(file, file.with_name(f"{file.name}.corrupt"))
            continue
        trials = table["trial"].to_pylist()
        first = {trial: position for position, trial in reversed(list(enumerate(trials))) if trial not in seen}
        seen.update(trials)
        keep = np.array(sorted(first.values()), dtype=np.int64)
        parts.append(Part(arrays, table.take(keep), keep))
    return parts


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """Pieces joined along the trials; a short axis 1 is filled: traces by NaN, integers by -1, images by the last."""
    longest = max((piece.shape[1] for piece in pieces if piece.ndim > 1), default=0)
    filled = []
    for piece in pieces:
        lacking = longest - piece.shape[1] if piece.ndim > 1 else 0
        if lacking:
            widths = [(0, lacking if axis == 1 else 0) for axis in range(piece.ndim)]
            trace = piece.ndim == 2
            blank = np.nan if np.issubdtype(piece.dtype, np.floating) else -1
            piece = np.pad(piece, widths, constant_values=blank) if trace else np.pad(piece, widths, mode="edge")
        filled.append(piece)
    return np.concatenate(filled)
