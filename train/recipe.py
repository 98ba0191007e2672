"""A recipe: one YAML file that says everything about a training run, read strictly."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from medchat.errors import UserError

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Source:
    """One data set of the mixture."""

    dataset: str  # Hub id
    institutes: list[str] | None = None  # MedQuAD: keep rows of these (`document_source`); None keeps all
    max_chars: int | None = None  # cut answers at the last sentence end before this length
    rows: int | None = None  # take this many after a seeded shuffle


@dataclass(frozen=True)
class Lora:
    """Which matrices get how large an adapter; "all-linear" is every linear layer but the output head."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    # Share of the trained update that is kept, between base (0) and fine-tuned model (1): WiSE-FT, arXiv:2109.01903.
    strength: float = 1.0


@dataclass(frozen=True)
class Sft:
    """The schedule; lengths in tokens, a batch in packs of `max_length` tokens."""

    epochs: float = 1.0
    max_steps: int | None = None  # stops earlier than `epochs` where given
    learning_rate: float = 2e-4
    warmup: float = 0.03  # share of all steps
    batch: int = 4
    accumulation: int = 1
    max_length: int = 1024
    log_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 100


@dataclass(frozen=True)
class Recipe:
    """A training run: `base` + `data` -> an adapter in `output_dir`."""

    description: str
    base: str  # "embedded", a Hub id or a folder
    data: list[Source]
    output_dir: str
    system: str | None = None  # system prompt; None is MedChat's own
    held_out: int = 200  # rows kept for evaluation, split by topic
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
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if typing.get_origin(option) is list and isinstance(value, list):
            (inner,) = typing.get_args(option)
            return [_convert(inner, each, f"{where}[{i}]", problems) for i, each in enumerate(value)]
        if option is float and isinstance(value, str) and _is_float(value):
            return float(value)  # YAML 1.1 reads 2e-4 as text
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    expected = " or ".join("nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    problems.append(f"{where}: expected {expected}, found {value!r}")
    return None


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _impossible(recipe: Recipe) -> list[str]:
    sft, lora = recipe.sft, recipe.lora
    checks = [
        (bool(recipe.data), "data names no source"),
        (recipe.held_out >= 0, "held_out cannot be negative"),
        (lora.r >= 1 and lora.alpha >= 1, "lora.r and lora.alpha must be at least 1"),
        (0 < lora.strength <= 1, "lora.strength must be above 0 and at most 1"),
        (0 <= lora.dropout < 1, "lora.dropout must be at least 0 and below 1"),
        (sft.learning_rate > 0, "sft.learning_rate must be above 0"),
        (sft.epochs > 0, "sft.epochs must be above 0"),
        (sft.max_steps is None or sft.max_steps >= 1, "sft.max_steps must be at least 1"),
        (0 <= sft.warmup < 1, "sft.warmup is a share of all steps: at least 0 and below 1"),
        (min(sft.batch, sft.accumulation) >= 1, "sft.batch and sft.accumulation must be at least 1"),
        (sft.max_length >= 64, "sft.max_length must be at least 64 tokens"),
        (min(sft.log_steps, sft.eval_steps, sft.save_steps) >= 1, "sft's log, eval and save steps must be at least 1"),
    ]
    return [text for ok, text in checks if not ok]
