"""The training data of a recipe: read, cleaned, freed of duplicates and test questions, mixed and split."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medchat import knowledge, prompt, words
from medchat.errors import Unavailable, UserError
from medchat.files import cache_dir, sha256
from medchat.prompt import SYSTEM, Message
from train import clean, corpus, mix, overlap, quote, sources, tables
from train.recipe import Recipe, Source

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Mixture:
    """What a recipe trains on, on disk; columns: messages (system turn included), last_only, source, group.

    `last_only`: only the last assistant turn is learned, otherwise all of them. No `group` stands in both parts.
    `report` says for each source and in all how many rows came in and went out, and why the others left.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    report: dict[str, Any]


# What training data must not hold: (data set, configuration, split).
EVALUATION = [
    (sources.PUBMEDQA, "pqa_labeled", "train"),  # its official test questions and their contexts
    ("GBaker/MedQA-USMLE-4-options", None, "test"),
    ("openlifescienceai/medmcqa", None, "validation"),
    ("cais/mmlu", "anatomy", "test"),
    ("cais/mmlu", "clinical_knowledge", "test"),
    ("cais/mmlu", "college_biology", "test"),
    ("cais/mmlu", "college_medicine", "test"),
    ("cais/mmlu", "medical_genetics", "test"),
    ("cais/mmlu", "professional_medicine", "test"),
    ("Itaykhealth/K-QA", None, "test"),
]


def load(recipe: Recipe) -> Mixture:
    """Return the mixture of a recipe; the same recipe and data give the same rows, from a cache the second time.

    Raises UserError, with all that is wrong, for data that cannot be found, read or trained on.
    """
    places = _find_all(recipe.data)
    tests = _find_tests() if recipe.decontaminate else {}
    folder = cache_dir() / "data" / _key(recipe, places, tests)
    if not (folder / "report.json").is_file():
        try:
            _build(recipe, places, tests, folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            what = f"The cleaned data cannot be written into {folder.parent}: {os.strerror(error.errno)}."
            raise UserError(what, "Make room there, or set MEDCHAT_CACHE to a folder on another disk.") from error
    from datasets import Dataset

    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, test in report["evaluation sets"].items() if recipe.decontaminate else ():
        if "missing" in test:
            print(f"The data was not checked against {name}: {test['missing']}", file=sys.stderr)
    train, held_out = (Dataset.from_file(str(folder / f"{part}.arrow")) for part in ("train", "held_out"))
    return Mixture(train, held_out, report)


def _find_all(data: Sequence[Source]) -> list[list[tables.Place]]:
    """Return the places of every source; all that cannot be found is reported at once."""
    places: list[list[tables.Place]] = []
    wrong: list[UserError] = []
    for source in data:
        try:
            places.append(sources.find(source))
        except UserError as error:
            wrong.append(error)
    _complain(wrong)
    return places


def _complain(wrong: Sequence[UserError]) -> None:
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        listed = "\n  - ".join(str(error) for error in wrong)
        raise UserError(f"{len(wrong)} data sets cannot be used:\n  - {listed}\n", "Mend these and run it again.")


def _find_tests() -> dict[str, tables.Place | str]:
    """Return the place of each evaluation set, or the reason why it cannot be had."""
    import huggingface_hub

    found: dict[str, tables.Place | str] = {}
    away = False  # then nobody waits for it ten times
    for name, config, split in EVALUATION:
        title = f"{name} {config}" if name == "cais/mmlu" else name
        try:
            found[title] = tables.place(name, config, split, hub=not away)
        except UserError as error:
            found[title] = error.what
            away = away or (isinstance(error, Unavailable) and not huggingface_hub.is_offline_mode())
    return found


def _key(recipe: Recipe, places: Sequence[Sequence[tables.Place]], tests: dict[str, tables.Place | str]) -> str:
    """Return the name of the recipe's folder in the cache: another one for other data, settings or code."""
    chosen = asdict(recipe)
    settings = {name: chosen[name] for name in ("data", "system", "held_out", "decontaminate", "seed")}
    code = [
        Path(module.__file__ or "")
        for module in (sys.modules[__name__], clean, mix, overlap, quote, sources, tables, knowledge, prompt, words)
    ]
    # What is shown before the questions, and which topics are held out.
    own = [*code, *sorted(path for path in knowledge.TOPICS.iterdir() if path.is_file()), corpus.DIALOGUES]
    digests = [sha256(path) for path in own]
    states = [place.state() for each in places for place in each]
    checked = {name: place if isinstance(place, str) else place.state() for name, place in tests.items()}
    return hashlib.sha256(json.dumps([settings, digests, states, checked]).encode()).hexdigest()[:24]


def _build(
    recipe: Recipe, places: Sequence[Sequence[tables.Place]], tests: dict[str, tables.Place | str], folder: Path
) -> None:
    """Write train.arrow, held_out.arrow and report.json into `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        texts = overlap.Texts()
        checked = _read_tests(tests, texts)
        rows, ledgers = _read(recipe, places, texts, work / "rows.arrow")
        mix.drop_repeats(rows, texts)
        mix.take(recipe, rows)
        _check_rows(recipe, rows, ledgers)
        mix.split(recipe, rows)
        report = _write(recipe, rows, ledgers, checked, work)
        (work / "rows.arrow").unlink()
        (work / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        try:
            work.rename(folder)
        except OSError:  # another process was faster, and wrote the same
            if not (folder / "report.json").is_file():
                raise


def _read_tests(tests: dict[str, tables.Place | str], texts: overlap.Texts) -> dict[str, dict[str, Any]]:
    """Take the evaluation sets in; return for each how many questions it has, or why it is missing."""
    checked: dict[str, dict[str, Any]] = {}
    for name, place in tests.items():
        checked[name] = {"questions": 0, "rows removed": 0}
        try:
            if isinstance(place, str):
                raise UserError(place, "")
            for _, row in tables.open_table(place).rows():
                if isinstance(row, dict) and (place.name != sources.PUBMEDQA or sources.is_pubmedqa_test(row)):
                    checked[name]["questions"] += 1
                    texts.add_test(name, *sources.test_texts(row))
        except UserError as error:
            checked[name] = {"missing": error.what}
    texts.seal()
    return checked


def _read(
    recipe: Recipe, places: Sequence[Sequence[tables.Place]], texts: overlap.Texts, path: Path
) -> tuple[mix.Rows, list[sources.Ledger]]:
    """Clean every source's rows into the Arrow file `path`; sources that cannot be read are reported together."""
    import pyarrow as pa

    schema = _schema("messages", "last_only", "source")
    rows, ledgers = mix.Rows(), [sources.Ledger() for _ in places]
    wrong: list[UserError] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for i, source in enumerate(recipe.data):
            try:
                for place in places[i]:
                    for example in _progress(source, place, ledgers[i]):
                        shown = [turn["content"] for turn in example.messages]
                        texts.add(example.question, example.answer, shown)
                        rows.source.append(i)
                        rows.topic.append(example.topic)
                        rows.split.append(example.split)
                        rows.terse.append(example.terse)
                        messages = _with_system(recipe, source, example.messages)
                        waiting.append({"messages": messages, "last_only": example.last_only, "source": source.dataset})
                        if len(waiting) == 1000:
                            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema))
                            waiting = []
            except UserError as error:
                wrong.append(error)
        writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema))
    _complain(wrong)
    rows.why = [""] * len(rows.source)
    return rows, ledgers


def _schema(*columns: str) -> Any:
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {"messages": pa.list_(turn), "last_only": pa.bool_(), "source": pa.string(), "group": pa.string()}
    return pa.schema([(column, types[column]) for column in columns])


def _progress(source: Source, place: tables.Place, ledger: sources.Ledger) -> Iterator[sources.Example]:
    from tqdm import tqdm

    table = tables.open_table(place)
    name = " ".join(filter(None, (source.dataset, place.config)))
    examples = sources.examples(source, table, ledger)
    # disable=None: no bar where nobody looks
    yield from tqdm(examples, desc=name, total=table.count, unit=" rows", disable=None, leave=False, miniters=500)


def _with_system(recipe: Recipe, source: Source, messages: list[Message]) -> list[Message]:
    if source.system is None and messages[0]["role"] == "system":
        return messages
    system = next((text for text in (source.system, recipe.system) if text is not None), SYSTEM)
    turns = [turn for turn in messages if turn["role"] != "system"]
    return [{"role": "system", "content": system}, *turns] if system else turns


def _check_rows(recipe: Recipe, rows: mix.Rows, ledgers: Sequence[sources.Ledger]) -> None:
    """Raise UserError when nothing is left to train on, with the reasons."""
    if rows.staying():
        return
    reasons = sum((ledger.left for ledger in ledgers), Counter(rows.why))
    listed = "; ".join(f"{why}: {count:,}" for why, count in reasons.most_common(5))
    raise UserError(
        f"No row of the recipe's data survived cleaning ({listed}).",
        "Check what the recipe asks of its sources (`institutes`, `max_chars`).",
    )


def _write(
    recipe: Recipe, rows: mix.Rows, ledgers: Sequence[sources.Ledger], checked: dict[str, dict[str, Any]], work: Path
) -> dict[str, Any]:
    """Write both parts, each in one seeded shuffle of all sources, and return the report."""
    from datasets import Dataset

    everything = Dataset.from_file(str(work / "rows.arrow"))
    parts: dict[str, list[int]] = {"train": [], "held_out": []}
    for row in rows.staying():
        repeats = recipe.data[rows.source[row]].repeat or 1
        parts[rows.split[row]] += [row] * (repeats if rows.split[row] == "train" else 1)
    for part, numbers in parts.items():
        random.Random(f"{recipe.seed} {part}").shuffle(numbers)
        _write_part(everything, numbers, rows, work / f"{part}.arrow")
    return _report(recipe, rows, ledgers, checked, parts)


def _write_part(everything: Any, numbers: Sequence[int], rows: mix.Rows, path: Path) -> None:
    import pyarrow as pa

    schema = _schema("messages", "last_only", "source", "group")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(numbers), 1000):
            some = numbers[start : start + 1000]
            table = everything.with_format("arrow")[some]
            table = table.append_column("group", pa.array([str(rows.group[row]) for row in some]))
            writer.write_table(table.cast(schema))


def _report(
    recipe: Recipe,
    rows: mix.Rows,
    ledgers: Sequence[sources.Ledger],
    checked: dict[str, dict[str, Any]],
    parts: dict[str, list[int]],
) -> dict[str, Any]:
    left = [Counter(ledger.left) for ledger in ledgers]
    for number, why in zip(rows.source, rows.why, strict=True):
        left[number].update([why] if why else [])
        if why.startswith(mix.OVERLAPS):
            checked[why.removeprefix(mix.OVERLAPS)]["rows removed"] += 1
    sizes = {part: Counter(rows.source[row] for row in numbers) for part, numbers in parts.items()}
    each = [
        {
            "dataset": source.dataset,
            "rows in": ledger.rows_in,
            "rows out": len({row for numbers in parts.values() for row in numbers if rows.source[row] == i}),
            "train": sizes["train"][i],
            "held out": sizes["held_out"][i],
            "left": dict(left[i].most_common()),
            "cleaned away": dict(+ledger.removed),
        }
        for i, (source, ledger) in enumerate(zip(recipe.data, ledgers, strict=True))
    ]
    total: dict[str, Any] = {key: sum(one[key] for one in each) for key in ("rows in", "rows out", "train", "held out")}
    for key in ("left", "cleaned away"):
        total[key] = dict(sum((Counter(one[key]) for one in each), Counter()).most_common())
    groups = [{rows.group[row] for row in numbers} for numbers in parts.values()]
    banned = {f"{sources.PUBMEDQA} {id}" for id in sources.pubmedqa_test()}
    return {
        "sources": each,
        "total": total,
        "evaluation sets": checked if recipe.decontaminate else "not checked: decontaminate is false",
        "checks": {
            "groups on both sides of the split": len(groups[0] & groups[1]),
            "PubMedQA test questions": sum(rows.topic[row] in banned for row in {*parts["train"], *parts["held_out"]}),
        },
    }


def report_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown: a table of the sources, why rows left, and what was checked."""
    lines = ["| data | rows in | train | held out | left, and why |", "| --- | ---: | ---: | ---: | --- |"]
    for one in [*report["sources"], {"dataset": "all", **report["total"]}]:
        left = "; ".join(f"{why} {count:,}" for why, count in one["left"].items()) or "none"
        lines.append(f"| {one['dataset']} | {one['rows in']:,} | {one['train']:,} | {one['held out']:,} | {left} |")
    removed = ", ".join(f"{count:,} {kind}" for kind, count in report["total"]["cleaned away"].items())
    lines += ["", f"Taken out of the texts: {removed or 'nothing'}."]
    tests = report["evaluation sets"]
    if isinstance(tests, str):
        lines += ["", f"Evaluation sets: {tests}."]
    else:
        there = [f"{name} ({found['questions']:,})" for name, found in tests.items() if "missing" not in found]
        lines += ["", f"Free of the questions of: {', '.join(there) or 'no evaluation set'}."]
        lines += [
            f"NOT checked against {name}: {found['missing']}" for name, found in tests.items() if "missing" in found
        ]
    lines += ["", "; ".join(f"{name}: {count}" for name, count in report["checks"].items()) + "."]
    return "\n".join(lines) + "\n"
