"""A recipe: one YAML file that says everything about a training run, read strictly."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from medchat.errors import UserError

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Source:
    """One data set of the mixture, taken whole unless `rows`, `fraction` or `repeat` says otherwise."""

    dataset: str  # Hub id, or the path of a .jsonl, .csv or .parquet file
    config: str | None = None  # the Hub data set's configuration ("pqa_labeled")
    revision: str | None = None  # commit of the Hub data set; None is the newest
    # For files and data sets that MedChat does not know: {"user": column, "assistant": column} and, if there is one,
    # "system"; or {"messages": column}.
    columns: dict[str, str] | None = None
    system: str | None = None  # system prompt of these rows; None is the recipe's
    answer: Literal["decision", "explanation", "both"] | None = None  # PubMedQA: which column is learned; None is both
    quote: bool = False  # dialogues with passages: answer in the passages' own sentences where they hold the answer
    reasoning: bool = True  # reasoning sets: keep the trace, in <think> tags before the answer
    institutes: list[str] | None = None  # MedQuAD: keep rows of these (`document_source`); None keeps all
    max_chars: int | None = None  # cut answers at the last sentence end before this length
    rows: int | None = None  # take this many after a seeded shuffle
    fraction: float | None = None  # take this share after a seeded shuffle
    repeat: int | None = None  # show every row this many times an epoch


@dataclass(frozen=True)
class Lora:
    """Which matrices get how large an adapter; "all-linear" is every linear layer but the output head."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    top_layers: int | None = None  # adapt only the last so many layers: the others need no backward pass; None: all
    # Share of the trained update that is kept, between base (0) and fine-tuned model (1): WiSE-FT, arXiv:2109.01903.
    strength: float = 1.0


@dataclass(frozen=True)
class Sft:
    """The schedule; lengths in tokens, a batch in packs of `max_length` tokens on each device."""

    epochs: float = 1.0
    max_steps: int | None = None  # counts instead of `epochs` where given
    learning_rate: float = 2e-4
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    batch: int = 4
    accumulation: int = 1
    max_length: int = 1024
    packing: bool = True  # several conversations in one row of the batch, none of which sees another
    truncate: Literal["question", "drop"] = "question"  # too long: shorten the questions, or leave the row out
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    checkpointing: bool | None = None  # recompute activations to save memory; None: on a GPU
    compile: bool = False  # torch.compile: pays on long runs on a GPU
    log_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 100
    keep: int = 2  # checkpoints on disk
    patience: int | None = None  # stop after so many evaluations without a new best; None trains to the end
    trackers: list[str] = field(default_factory=list)  # "tensorboard", "trackio"


@dataclass(frozen=True)
class Recipe:
    """A training run: `base` + `data` -> an adapter (or, with method "full", a model) in `output_dir`."""

    description: str
    base: str  # "embedded", a Hub id or a folder
    data: list[Source]
    output_dir: str
    method: Literal["lora", "qlora", "full"] = "lora"
    revision: str | None = None  # commit of the base; None is the newest
    template: str | None = None  # a name in assets/templates, for a base without a chat template
    system: str | None = None  # system prompt; None is MedChat's own, "" is none
    held_out: int | float = 200  # rows, or a share of the rows, kept for evaluation; split by question group
    decontaminate: bool = True  # drop rows that overlap an evaluation set
    seed: int = 0
    lora: Lora = field(default_factory=Lora)
    sft: Sft = field(default_factory=Sft)

    def to_yaml(self) -> str:
        """Return the recipe with every field written out, as saved next to an adapter."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True, width=110)


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(name: str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Return the recipe of that name or path, with `key=value` overrides applied (`sft.max_steps=10`).

    Raises UserError with all problems at once: unknown keys with the nearest valid name, wrong types, bad values.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"There is no recipe {name!r}.", f"Recipes: {', '.join(names())}; or give a path to a YAML file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}.", "Mend the line named above.") from error
    problems: list[str] = []
    if not isinstance(values, dict):
        problems.append("the file does not hold `key: value` lines")
        values = {}
    for override in overrides:
        _apply(values, override, problems)
    recipe = _build(Recipe, values, "", problems)
    if recipe is not None and not problems:
        problems += _impossible(recipe)
    if recipe is None or problems:
        raise UserError(
            f"The recipe {name!r} has {len(problems)} problem(s):\n  - " + "\n  - ".join(problems) + "\n",
            "Mend them in the file or on the command line and run the command again.",
        )
    return recipe


def _apply(values: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        problems.append(f"{override!r} is not key=value")
        return
    *groups, last = key.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            problems.append(f"{key}: {group} holds no fields of its own")
            return
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"{key}: {text!r} is not a YAML value")


def _build(kind: Any, values: Any, where: str, problems: list[str]) -> Any:
    """Return `values` as the dataclass `kind`, or None after noting what is wrong with them."""
    if not isinstance(values, dict):
        problems.append(f"{where or 'recipe'}: expected fields, found {values!r}")
        return None
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1, cutoff=0.4)
            hint = f"did you mean {where + near[0]!r}?" if near else f"valid: {', '.join(hints)}"
            problems.append(f"unknown field {where + str(key)!r}; {hint}")
    made = {}
    for item in fields(kind):
        if item.name in values:
            made[item.name] = _convert(hints[item.name], values[item.name], where + item.name, problems)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.append(f"{where}{item.name} is missing")
            made[item.name] = None
    return kind(**made)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where + ".", problems)
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # `Literal | None` is the latter
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
            continue
        if typing.get_origin(option) is dict and isinstance(value, dict):
            if all(isinstance(part, str) for pair in value.items() for part in pair):
                return value
            continue
        if typing.get_origin(option) is list and isinstance(value, list):
            (inner,) = typing.get_args(option)
            return [_convert(inner, each, f"{where}[{i}]", problems) for i, each in enumerate(value)]
        if option is float and isinstance(value, str) and _is_float(value):
            return float(value)  # YAML 1.1 reads 2e-4 as text
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    expected = " or ".join(_readable(option) for option in options)
    problems.append(f"{where}: expected {expected}, found {value!r}")
    return None


def _readable(option: Any) -> str:
    if option is type(None):
        return "nothing"
    if typing.get_origin(option) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(option))
    return getattr(option, "__name__", str(option)) if typing.get_origin(option) is None else str(option)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _impossible(recipe: Recipe) -> list[str]:
    sft, lora = recipe.sft, recipe.lora
    share = isinstance(recipe.held_out, float)
    checks = [
        (bool(recipe.data), "data names no source"),
        (recipe.held_out >= 0 and not (share and recipe.held_out >= 1), "held_out is a count, or a share below 1.0"),
        (lora.r >= 1 and lora.alpha >= 1, "lora.r and lora.alpha must be at least 1"),
        (lora.top_layers is None or lora.top_layers >= 1, "lora.top_layers must be at least 1"),
        (0 < lora.strength <= 1, "lora.strength must be above 0 and at most 1"),
        (0 <= lora.dropout < 1, "lora.dropout must be at least 0 and below 1"),
        (recipe.method != "full" or lora == Lora(), "method: full trains every weight, so `lora` has no effect"),
        (recipe.method != "qlora" or recipe.base != "embedded", "the embedded base is trained with method: lora"),
        (sft.learning_rate > 0, "sft.learning_rate must be above 0"),
        (sft.epochs > 0, "sft.epochs must be above 0"),
        (sft.max_steps is None or sft.max_steps >= 1, "sft.max_steps must be at least 1"),
        (0 <= sft.warmup < 1, "sft.warmup is a share of all steps: at least 0 and below 1"),
        (sft.weight_decay >= 0, "sft.weight_decay cannot be negative"),
        (min(sft.batch, sft.accumulation) >= 1, "sft.batch and sft.accumulation must be at least 1"),
        (sft.max_length >= 64, "sft.max_length must be at least 64 tokens"),
        (min(sft.log_steps, sft.eval_steps, sft.save_steps) >= 1, "sft's log, eval and save steps must be at least 1"),
        (sft.keep >= 1, "sft.keep must be at least 1 checkpoint"),
        (  # also at held_out 0: files may bring held-out rows of their own
            sft.save_steps % sft.eval_steps == 0,
            "sft.save_steps must be a multiple of sft.eval_steps, so that the best checkpoint is one that was saved",
        ),
        (sft.patience is None or sft.patience >= 1, "sft.patience must be at least 1 evaluation"),
        (sft.patience is None or recipe.held_out > 0, "sft.patience needs rows to evaluate on: held_out above 0"),
        (set(sft.trackers) <= {"tensorboard", "trackio"}, 'sft.trackers knows "tensorboard" and "trackio"'),
    ]
    found = [text for ok, text in checks if not ok]
    for i, source in enumerate(recipe.data):
        found += [f"data[{i}] ({source.dataset}): {text}" for text in _source_problems(source)]
    return found


def _source_problems(source: Source) -> list[str]:
    amounts = [name for name in ("rows", "fraction", "repeat") if getattr(source, name) is not None]
    checks = [
        (len(amounts) <= 1, f"{' and '.join(amounts)} exclude each other"),
        (source.rows is None or source.rows >= 1, "rows must be at least 1"),
        (source.fraction is None or 0 < source.fraction <= 1, "fraction must be above 0 and at most 1"),
        (source.repeat is None or source.repeat >= 1, "repeat must be at least 1"),
        (source.max_chars is None or source.max_chars >= 80, "max_chars must be at least 80"),
    ]
    return [text for ok, text in checks if not ok]
