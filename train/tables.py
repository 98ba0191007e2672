"""Tables of rows: a split of a Hub data set, in a mirror or on the Hub, or a person's own file."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medchat.errors import Unavailable, UserError

FILE_TYPES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Place:
    """Where a data set was found: files of a mirror or a person's own, or a commit on the Hub."""

    name: str
    config: str | None = None
    split: str = "train"
    files: tuple[Path, ...] = ()
    commit: str = ""
    away: bool = False  # the Hub did not answer, and the commit is the cache's

    def state(self) -> list[Any]:
        """Return what changes when the data does: of files path, size and time, of the Hub the commit."""
        files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in self.files]
        return [self.name, self.config, self.split, self.commit, files]


def place(name: str, config: str | None, split: str, revision: str | None = None, *, hub: bool = True) -> Place:
    """Return where one split of a Hub data set is: under DATASETS_MIRROR when its folder exists, else on the Hub."""
    mirror = os.environ.get("DATASETS_MIRROR")
    folder = Path(mirror) / name if mirror else None
    if folder is None or not folder.is_dir():
        if not hub:
            raise Unavailable(f"The Hub cannot be reached, so {name} could not be loaded.", "Check the network.")
        commit, away = _commit(name, revision)
        return Place(name, config, split, commit=commit, away=away)
    inner = folder / config if config and (folder / config).is_dir() else folder
    found = inner.rglob("*") if not config or inner != folder else [*folder.glob("*"), *folder.glob("data/*")]
    files = sorted(path for path in found if path.suffix in FILE_TYPES)
    chosen = tuple(path for path in files if _split_of(path) == split)
    if not chosen:
        there = ", ".join(sorted({_split_of(path) for path in files})) or "nothing"
        wanted = f"{split} split" + (f" of {config!r}" if config else "")
        raise UserError(
            f"The mirror's copy of {name} in {inner} has no {wanted}, only {there}.",
            f"Put a {split}-*.parquet file into {Path(name, config or 'data')} there.",
        )
    return Place(name, config, split, chosen)


def _split_of(path: Path) -> str:
    """Return the split that a file's name or folder says; one that says nothing is for training."""
    for text in (path.stem, path.parent.name):
        if found := re.search(r"(?:^|[-_.])(train|test|validation|valid|val|dev)(?:$|[-_.])", text):
            return "validation" if found.group(1) in ("valid", "val", "dev") else found.group(1)
    return "train"


def _commit(name: str, revision: str | None) -> tuple[str, bool]:
    """Return the commit of a data set and False; or, when the Hub does not answer in seconds, its cache's and True."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    from medchat.adapters import PATIENCE, within

    chosen = constants.HF_HUB_ETAG_TIMEOUT
    patience = PATIENCE if chosen == constants.DEFAULT_ETAG_TIMEOUT else chosen
    mirror = f"put its parquet files into DIR/{name} and set DATASETS_MIRROR=DIR"

    def cached(*, only: bool) -> str:
        found = hub.resolve_revision(name, repo_type="dataset", revision=revision, local_files_only=only)
        return found.resolved

    try:
        within(patience, lambda: hub.HfApi().dataset_info(name, revision=revision, timeout=patience))
        return cached(only=False), False  # notes the commit in the cache, for when the Hub is away
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/datasets/{name}"
        raise UserError(f"The data set {name} is gated.", f"Accept its terms at {page} and set HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"The Hub has no data set {name!r}.", "Check the spelling, or set HF_TOKEN.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"The data set {name} has no revision {revision!r}.", "Check `revision`.") from error
    except Exception as error:
        with contextlib.suppress(errors.RevisionResolutionError):
            return cached(only=True), True
        if hub.is_offline_mode():
            what = f"The data set {name} is not on this machine, and HF_HUB_OFFLINE=1 forbids to fetch it."
            raise Unavailable(what, f"Take HF_HUB_OFFLINE away, or {mirror}.") from error
        what = f"The Hub cannot be reached, so the data set {name} could not be loaded ({type(error).__name__})."
        raise Unavailable(what, f"Check the network, or {mirror}.") from error


# --- reading ---

Numbered = Iterator[tuple[int, dict[str, Any] | str]]  # (line or row from 1, the row or what is wrong with it)


@dataclass(frozen=True)
class Table:
    """The rows of one place: `unit` is what they are counted in, `count` how many there are (None: not known yet)."""

    columns: list[str]
    rows: Callable[[], Numbered]
    unit: str = "row"
    count: int | None = None


def open_table(place: Place) -> Table:
    """Return the columns and rows of a place, which stay on disk. Raises UserError when it cannot be read."""
    if not place.files:
        return _hub_table(place)
    tables = [_file_table(path) for path in place.files]
    counts = [table.count for table in tables]
    total = None if None in counts else sum(count or 0 for count in counts)

    def rows() -> Numbered:
        for table in tables:
            yield from table.rows()

    return Table(tables[0].columns, rows, tables[0].unit, total)


def _file_table(path: Path) -> Table:
    try:
        return {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read: {first_line}.", f"Is it a {path.suffix} file, in UTF-8?") from error


def _jsonl(path: Path) -> Table:
    def rows() -> Numbered:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except json.JSONDecodeError as error:
                    yield number, f"is not JSON ({error.msg} at character {error.colno})"
                except UnicodeDecodeError as error:
                    yield number, f"is not UTF-8 (byte {error.start + 1})"
                else:
                    yield number, row if isinstance(row, dict) else "is not an object like {...}"

    first = next((row for _, row in rows() if isinstance(row, dict)), {})
    return Table(list(first), rows, "line")


def _csv(path: Path) -> Table:
    csv.field_size_limit(1 << 24)  # an answer may be longer than the default of 128 kB

    def rows() -> Numbered:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            try:
                for row in reader:
                    whole = None not in row and None not in row.values()
                    yield reader.line_num, row if whole else f"has not {len(reader.fieldnames or [])} fields"
            except (csv.Error, UnicodeDecodeError) as error:
                yield reader.line_num + 1, f"cannot be read ({error})"

    with path.open(encoding="utf-8-sig", newline="") as file:
        return Table(next(csv.reader(file), []), rows, "line")


def _parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    def rows() -> Numbered:
        with pq.ParquetFile(path, memory_map=True) as file:
            number = 0
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row

    with pq.ParquetFile(path) as file:
        return Table(file.schema_arrow.names, rows, count=file.metadata.num_rows)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let the Hub's clients look into their caches only: they would retry for half a minute first."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _hub_table(place: Place) -> Table:
    from datasets import concatenate_datasets, load_dataset

    try:
        with _offline() if place.away else contextlib.nullcontext():
            splits = load_dataset(place.name, place.config, revision=place.commit)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"The data set {place.name} could not be loaded ({type(error).__name__}: {first_line}).",
            f"Check the network, or put its parquet files into DIR/{place.name} and set DATASETS_MIRROR=DIR.",
        ) from error
    if place.split == "train" and "train" not in splits:
        raise UserError(
            f"The data set {place.name} has no train split, only {', '.join(map(str, splits))}.", "Choose another."
        )
    # A test set may stand under any name.
    data = splits[place.split] if place.split in splits else concatenate_datasets(list(splits.values()))

    def rows() -> Numbered:
        number = 0
        batches: Any = data.with_format("arrow").iter(1000)
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield number, row

    return Table(data.column_names, rows, count=len(data))
