"""`python -m train check RECIPE`: everything that can be known about a training run before an hour is spent on it."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from medchat.errors import UserError
from train import estimate
from train.estimate import GB, Base, Machine
from train.recipe import Recipe

SAMPLE = 2000  # rows whose tokens are counted; a share of them is within 2.2 percentage points 19 times out of 20
PROBE_SECONDS = 60  # no further batch size is tried after that
ON_CPU = 1e9  # parameters; a larger base is for a GPU

_Result = TypeVar("_Result")


def run(recipe: Recipe) -> None:
    """Print what is known about training `recipe` here; nothing is written but caches.

    Raises UserError with every problem at once, each with what to type.
    """
    problems: list[str] = []

    _section("Machine")
    machine = _machine()

    _section("Base", recipe.base)
    base = _attempt(problems, lambda: _base(recipe))
    problems += base.misfits(recipe) if base else []
    problems += _wrong_machine(recipe, base, machine)
    problems += _unready(recipe)

    _section("Data")
    mixture = _attempt(problems, lambda: _mixture(recipe))
    rows = _attempt(problems, lambda: _tokenized(recipe, mixture)) if base and mixture else None
    if rows:
        _section("What is learned", "in a row of each source, three at most")
        problems += _show_rows(recipe, mixture, rows)
        _section("Lengths", f"of {rows.ledger.rows} rows")
        problems += _show_lengths(recipe, rows)

    trials: list[Trial] = []
    if base and base.local and rows and len(rows.train) and not problems:
        _section("Probe", "three training steps for each batch size")
        trials = _attempt(problems, lambda: _probe(recipe, base, machine, rows)) or []

    if base:
        _section("Memory, disk and time")
        problems += _show_memory(recipe, base, machine, trials)
        problems += _show_disk(recipe, base)
        if rows and len(rows.train):
            _show_time(recipe, base, machine, rows, trials)

    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n  - ".join(problems)
        raise UserError(f"\nNot ready to train, {count}:\n  - {listed}\n", "Mend this and check again.")
    print("\nReady to train.")


def _section(title: str, note: str = "") -> None:
    print(f"\n{_colour('1', title)}{f' ({note})' if note else ''}", flush=True)


def _colour(code: str, text: str) -> str:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[{code}m{text}\033[0m" if wanted else text


def _attempt(problems: list[str], action: Callable[[], _Result]) -> _Result | None:
    """Return action(), or None after noting its UserError."""
    try:
        return action()
    except UserError as error:
        problems.append(str(error).strip())
        return None


# --- the machine and the base ---


def _machine() -> Machine:
    """Return the machine after printing it, with the versions of what matters."""
    machine = estimate.this_machine()
    many = f"{machine.count} x " if machine.count > 1 else ""
    print(
        f"{many}{machine.name}, {machine.memory / GB:.1f} of {machine.total / GB:.1f} GB free,"
        f" {machine.speed / 1e12:.2g} TFLOP/s in matrix products"
    )
    packages = ["torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes"]
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in packages))
    return machine


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _wrong_machine(recipe: Recipe, base: Base | None, machine: Machine) -> list[str]:
    """Return the problem of a recipe for a GPU on a machine without one, with what to change."""
    if machine.device == "cuda":
        return []
    changes = for_cpu(recipe)
    if (base.parameters if base else named_size(recipe)) >= ON_CPU:
        return [f"This recipe is for a GPU, and there is none here. For this CPU type behind it: {' '.join(changes)}"]
    if recipe.method == "qlora" or recipe.sft.optimizer != "adamw":
        faster = [change for change in changes if not change.startswith(("base=", "template=", "revision="))]
        print(f"This recipe is for a GPU. So small a base trains here too, faster with: {' '.join(faster)}")
    return []


def named_size(recipe: Recipe) -> float:
    """Return how many parameters the base has by its name ("Llama-3.2-3B-Instruct"), 0 where that says nothing."""
    size = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)b(?![a-z])", recipe.base.lower())
    return float(size[1]) * 1e9 if size else 0.0


def for_cpu(recipe: Recipe) -> list[str]:
    """Return the overrides that turn a recipe for a GPU into one for a CPU."""
    changes = {
        "base=embedded": recipe.base != "embedded",
        "template=null": recipe.template is not None,
        "revision=null": recipe.revision is not None,
        "method=lora": recipe.method != "lora",
        "sft.optimizer=adamw": recipe.sft.optimizer != "adamw",
        "sft.checkpointing=null": recipe.sft.checkpointing is not None,
        "sft.compile=false": recipe.sft.compile,
    }
    return [change for change, needed in changes.items() if needed]


def _unready(recipe: Recipe) -> list[str]:
    """Return what would stop `sft` at once: packages that are missing, and a folder that holds another run."""
    from train import sft

    found: list[str] = []
    _attempt(found, lambda: sft.check_trackers(recipe))
    _attempt(found, lambda: sft.last_checkpoint(Path(recipe.output_dir), recipe))
    if (recipe.method == "qlora" or recipe.sft.optimizer != "adamw") and _version("bitsandbytes") == "missing":
        found.append(
            "bitsandbytes is not installed, which 4 bits and paged optimizers need. Type: pip install bitsandbytes"
        )
    return found


def _base(recipe: Recipe) -> Base:
    """Return the numbers of the recipe's base, after printing them."""
    base = estimate.read_base(recipe)
    trained = base.trained(recipe)
    place = "on this machine" if base.local else f"to be fetched, about {2 * base.parameters / GB:.1f} GB"
    print(f"{_short(base.parameters)} parameters, {place}; {_token()}")
    print(f"{recipe.method} trains {_short(trained)}, {trained / base.parameters:.2%} as many as the base has")
    return base


def _token() -> str:
    from huggingface_hub import get_token

    return "HF_TOKEN is set" if get_token() else "HF_TOKEN is not set (only gated bases need it)"


def _short(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


# --- rows, masks and lengths ---


@dataclass(frozen=True)
class Rows:
    """A sample of the mixture as the trainer sees it: data sets of input_ids and labels, and what happened to long
    rows (`ledger`, of sft.tokenize); `total` training rows there are."""

    tokenizer: Any
    template: Any
    train: Any
    held_out: Any
    ledger: Any
    total: int


def _mixture(recipe: Recipe) -> Any:
    from train import data

    mixture = data.load(recipe)
    print(data.report_markdown(mixture.report).strip())
    return mixture


def _tokenized(recipe: Recipe, mixture: Any) -> Rows:
    import datasets
    import transformers

    from train import sft

    def tokens(part: Any, count: int) -> tuple[Any, Any]:
        sample = part if len(part) <= count else part.shuffle(seed=recipe.seed).select(range(count))
        return sft.tokenize(sample, tokenizer, template, recipe.sft.max_length, recipe.sft.truncate)

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    _, tokenizer, template = sft.load_base(recipe, weights=False)
    train, ledger = tokens(mixture.train, SAMPLE)
    held_out, _ = tokens(mixture.held_out, 8)
    return Rows(tokenizer, template, train, held_out, ledger, len(mixture.train))


def _show_rows(recipe: Recipe, mixture: Any, rows: Rows) -> list[str]:
    """Print one row of each of three sources, what is learned marked; return the problem of ends that are not."""
    from train import sft

    end = rows.tokenizer.convert_tokens_to_ids(rows.template.eos)
    names = mixture.train["source"][:]
    for name in list(dict.fromkeys(names))[:3]:
        picked = mixture.train.select([names.index(name)])
        shown, _ = sft.tokenize(picked, rows.tokenizer, rows.template, recipe.sft.max_length, recipe.sft.truncate)
        for row in shown:
            print(f"  {name}")
            _show_row(row, rows.tokenizer)
    without = sum(
        next((label for label in reversed(row["labels"]) if label != -100), None) != end for row in rows.train
    )
    if without:
        return [
            f"{without} of {len(rows.train)} rows do not learn the end token {rows.template.eos!r}, so the model"
            " would never stop. Choose another template: template=llama-3, llama-3.2 or alpaca."
        ]
    if len(rows.train):
        print(f"Every answer is learned up to its end token {rows.template.eos!r}; nothing else is.")
    return []


def _show_row(row: dict[str, list[int]], tokenizer: Any) -> None:
    pairs = zip(row["labels"], row["input_ids"], strict=True)
    for learned, part in itertools.groupby(pairs, key=lambda pair: pair[0] != -100):
        text = tokenizer.decode([token for _, token in part]).strip("\n")
        if not text:
            continue
        if len(text) > 700:
            text = f"{text[:400]} [...] {text[-300:]}"
        mark, code = ("learned", "1;32") if learned else ("read", "2")
        for line in text.split("\n"):
            print(f"  {mark:>9} | {_colour(code, line)}")
            mark = ""


def _show_lengths(recipe: Recipe, rows: Rows) -> list[str]:
    """Print how many rows fit and which length would; return the problem of none."""
    ledger, limit = rows.ledger, recipe.sft.max_length
    lengths = sorted(ledger.lengths)
    half, most, nearly = (lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for share in (50, 90, 99))
    print(f"Tokens in a row: half have at most {half}, 90 % {most}, 99 % {nearly}; the longest has {lengths[-1]}.")
    questions = (
        ", none is shortened" if recipe.sft.truncate == "drop" else f", {ledger.shortened} questions are shortened"
    )
    print(
        f"At sft.max_length={limit} {ledger.fits / ledger.rows:.1%} fit{questions}, answers never, and"
        f" {ledger.left_out} rows ({ledger.left_out / ledger.rows:.1%}) are left out: their answers do not fit."
    )
    suggested = 64 * math.ceil(nearly / 64)
    if not len(rows.train):
        return [f"Every answer is longer than {limit} tokens. Type sft.max_length={suggested}"]
    if suggested > limit:
        print(f"For 99 % of the rows whole: sft.max_length={suggested}")
    elif not recipe.sft.packing and suggested <= limit // 2:
        print(f"Less would do: sft.max_length={suggested}")
    return []


# --- three real steps ---


@dataclass(frozen=True)
class Trial:
    """Three steps with `batch` rows at once: `speed` in tokens a second, padding included, and the most memory in use,
    in bytes; a speed of 0 means that memory did not suffice."""

    batch: int
    speed: float
    memory: int


def _probe(recipe: Recipe, base: Base, machine: Machine, rows: Rows) -> list[Trial]:
    """Return trials of batch sizes, and print which of them is the fastest at the recipe's effective batch.

    Raises UserError when none fits into memory, or when the loss is no number.
    """

    def trial(batch: int) -> Trial:
        made = _trial(trainer, recipe, base, machine, batch)
        print(f"  sft.batch={batch}: {_told(made)}", flush=True)
        return made

    whole = recipe.sft.batch * recipe.sft.accumulation
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(recipe, rows, folder)
        trials = climb(recipe, rows, trial)
        best = _best(recipe, rows, trials)
        if best is None:
            raise UserError(
                "Not even one row at a time fits into memory.",
                f"Type sft.max_length={max(64, recipe.sft.max_length // 2)} or method=qlora, or choose a smaller base.",
            )
        if len(rows.held_out):
            _evaluate(trainer, rows, best.batch)
    if best.batch == recipe.sft.batch:
        print("The recipe's own batch is the best here.")
    else:
        print(f"Fastest at the same {whole} rows a step: sft.batch={best.batch} sft.accumulation={whole // best.batch}")
    return trials


def climb(recipe: Recipe, rows: Rows, trial: Callable[[int], Trial]) -> list[Trial]:
    """Return trials of sizes that divide the effective batch: from the recipe's own upwards while that is faster, else
    downwards while it is, or until one fits; after PROBE_SECONDS no further one is begun."""
    whole, own = recipe.sft.batch * recipe.sft.accumulation, recipe.sft.batch
    larger = [size for size in range(own, whole + 1) if whole % size == 0]
    smaller = [size for size in range(own - 1, 0, -1) if whole % size == 0]
    started, trials, best = time.monotonic(), [], None
    for sizes in (larger, smaller):
        if best and best.batch > own:
            break
        for batch in sizes:
            if best and time.monotonic() - started > PROBE_SECONDS:
                break
            trials.append(trial(batch))
            best = _best(recipe, rows, trials)
            if best is not trials[-1] and (trials[-1].speed or sizes is larger):
                break
    return trials


def _trainer(recipe: Recipe, rows: Rows, folder: str) -> Any:
    """Return the trainer that `sft` would use, set to three steps that save nothing."""
    from train import sft

    short = replace(
        recipe.sft,
        max_steps=3,
        accumulation=1,
        log_steps=1,
        patience=None,
        trackers=[],
        compile=False,
    )
    probe = replace(recipe, output_dir=folder, sft=short)
    with _quiet():
        model, tokenizer, _ = sft.load_base(probe)
        trainer = sft.build_trainer(probe, model, tokenizer, rows.train, rows.held_out.select([]))
    trainer.args.save_strategy = "no"
    return trainer


def _trial(trainer: Any, recipe: Recipe, base: Base, machine: Machine, batch: int) -> Trial:
    import psutil
    import torch

    if machine.device == "cpu":  # where too much does not raise an error but ends the process
        needed = sum(estimate.memory(_with_batch(recipe, batch), base, machine).values())
        if needed > machine.memory:
            return Trial(batch, 0, int(needed))
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    clock = _clock(times)
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch
    trainer.add_callback(clock)
    try:
        with _quiet():
            trainer.train()
    except torch.OutOfMemoryError:
        trainer.model.zero_grad(set_to_none=True)
        return Trial(batch, 0, machine.memory)
    finally:
        trainer.remove_callback(clock)
    tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "loss" in entry]
    used = torch.cuda.max_memory_reserved() if machine.device == "cuda" else psutil.Process().memory_info().rss
    return Trial(batch, (tokens[-1] - tokens[0]) / (times[-1] - times[0]), used)  # the first step warms up


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainer's own lines, bars and warnings from the report."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _clock(times: list[float]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    return Clock()


def _evaluate(trainer: Any, rows: Rows, batch: int) -> None:
    """Evaluate once: many a run ends at its first evaluation, for want of memory."""
    import torch

    trainer.args.per_device_eval_batch_size = batch
    try:
        with _quiet():
            trainer.evaluate(rows.held_out)
    except torch.OutOfMemoryError as error:
        raise UserError("Training fits into memory, evaluation does not.", "Type sft.batch=1") from error


def _best(recipe: Recipe, rows: Rows, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial that would end first, the earlier of two that differ by less than 5 %.

    Padding, which grows with the batch, is part of what a trial computes but not of what it gets done.
    """
    best, best_speed = None, 0.0
    for trial in trials:
        speed = trial.speed / _padding(recipe, rows, trial.batch)
        if speed > 1.05 * best_speed:
            best, best_speed = trial, speed
    return best


def _padding(recipe: Recipe, rows: Rows, batch: int) -> float:
    """Return how many tokens are computed for one of a row: rows that are not packed are filled up to the longest."""
    if recipe.sft.packing:
        return 1.0
    lengths = [len(ids) for ids in rows.train["input_ids"]]
    random.Random(recipe.seed).shuffle(lengths)
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(max(part) * len(part) for part in batches) / sum(lengths)


def _told(trial: Trial) -> str:
    if not trial.speed:
        return f"does not fit, it would take {trial.memory / GB:.1f} GB"
    return f"{trial.speed:,.0f} tokens/s, {trial.memory / GB:.1f} GB"


def _with_batch(recipe: Recipe, batch: int) -> Recipe:
    return replace(recipe, sft=replace(recipe.sft, batch=batch))


# --- memory, disk and time ---


def _show_memory(recipe: Recipe, base: Base, machine: Machine, trials: Sequence[Trial]) -> list[str]:
    """Print the estimate; return the problem of too little memory, unless three steps have just run."""
    parts = estimate.memory(recipe, base, machine)
    needed = sum(parts.values())
    listed = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())
    print(f"Memory: about {needed / GB:.1f} GB ({listed}); {machine.memory / GB:.1f} GB are free")
    if needed <= machine.memory or any(trial.speed for trial in trials):
        return []
    whole = recipe.sft.batch * recipe.sft.accumulation
    tries = [
        ([f"sft.batch=1 sft.accumulation={whole}"], _with_batch(recipe, 1)),
        (["sft.checkpointing=true"], replace(recipe, sft=replace(recipe.sft, batch=1, checkpointing=True))),
    ]
    if machine.device == "cuda" and recipe.method != "qlora":
        tries.append(
            (["method=qlora"], replace(recipe, method="qlora", sft=replace(recipe.sft, batch=1, checkpointing=True)))
        )
    typed: list[str] = []
    for words, changed in tries:
        typed += words
        if sum(estimate.memory(changed, base, machine).values()) <= machine.memory:
            return [f"Memory does not suffice for {needed / GB:.1f} GB. Type {' '.join(typed)}"]
    several = " or train on several devices (accelerate launch)" if machine.device == "cuda" else ""
    return [f"Memory does not suffice for {needed / GB:.1f} GB. Choose a smaller base, such as base=embedded{several}."]


def _show_disk(recipe: Recipe, base: Base) -> list[str]:
    """Print what will be written, and return the problem of too little room for it."""
    wanted: dict[Path, float] = {}
    for place, size in estimate.disk(recipe, base).items():
        disk = _existing(place)
        wanted[disk] = wanted.get(disk, 0) + size
    found = []
    for disk, size in wanted.items():
        free = shutil.disk_usage(disk).free
        if size:
            print(f"Disk: {size / GB:.2f} GB will be written under {disk}, {free / GB:.1f} GB are free")
        if size > free:
            found.append(
                f"{disk} has {free / GB:.1f} GB free, and {size / GB:.1f} GB are needed. Make room, or type"
                " output_dir=DIR for another disk (HF_HOME=DIR for the base), or sft.keep=1"
            )
    return found


def _existing(path: Path) -> Path:
    """Return the folder, or the one above it that exists, where its file system can be asked."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _show_time(recipe: Recipe, base: Base, machine: Machine, rows: Rows, trials: Sequence[Trial]) -> None:
    """Print how many steps there are and how long they take, at the probe's speed where it ran."""
    sft = recipe.sft
    per_row = statistics.fmean(len(ids) for ids in rows.train["input_ids"])
    kept = rows.total * len(rows.train) / rows.ledger.rows
    in_a_step = sft.batch * sft.accumulation * (sft.max_length / per_row if sft.packing else 1) * machine.count
    steps = sft.max_steps or math.ceil(kept / min(in_a_step, kept) * sft.epochs)
    best = _best(recipe, rows, trials)
    batch = best.batch if best else sft.batch
    tokens = steps * min(in_a_step, kept) * per_row * _padding(recipe, rows, batch)
    if best:
        speed, how = best.speed, "as measured"
    else:
        speed, how = estimate.speed(recipe, base, machine), "estimated"
    seconds = tokens / (speed * machine.count)
    print(f"Time: {steps:,} steps, {_short(tokens)} tokens at {speed:,.0f} a second ({how}): {_duration(seconds)}")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return "under two minutes"
