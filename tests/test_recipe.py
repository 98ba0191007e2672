"""Recipes are read strictly and all problems are reported at once."""

from __future__ import annotations

import re

import pytest
import yaml

from medchat.errors import UserError
from medchat.prompt import TEMPLATES
from train import recipe
from train.sources import EVALUATION_ONLY, known


def problems(name, *overrides):
    with pytest.raises(UserError) as error:
        recipe.load(name, overrides)
    return str(error.value)


@pytest.mark.parametrize("name", recipe.names())
def test_every_shipped_recipe_loads_and_survives_its_own_yaml(name, tmp_path):
    loaded = recipe.load(name)
    assert loaded.description.endswith(".")
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    assert recipe.load(str(tmp_path / "again.yaml")) == loaded


def test_overrides_replace_any_field():
    loaded = recipe.load(
        "embedded", ["sft.max_steps=10", "sft.learning_rate=1e-4", "base=org/name", "lora.targets=[q_proj]"]
    )
    assert (loaded.sft.max_steps, loaded.sft.learning_rate, loaded.base) == (10, 1e-4, "org/name")
    assert loaded.lora.targets == ["q_proj"]


def test_all_problems_come_at_once_each_with_the_nearest_name():
    text = problems("embedded", "sft.learning_rte=1", "held_uot=3", "seed=abc", "sft.max_length", "lora.r.x=1")
    assert "did you mean 'sft.learning_rate'" in text
    assert "did you mean 'held_out'" in text
    assert "seed: expected int, found 'abc'" in text
    assert "'sft.max_length' is not key=value" in text
    assert "lora.r.x" in text


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("sft.batch=0", "sft.batch"),
        ("sft.batch=true", "expected int"),
        ("lora.dropout=1", "lora.dropout"),
        ("data=[]", "no source"),
        ("sft.save_steps=7", "multiple of sft.eval_steps"),
        ("data=[{}]", "data[0].dataset is missing"),
        ("data=[{dataset: a/b, row: 3}]", "did you mean 'data[0].rows'"),
        ("sft=3", "expected fields"),
    ],
)
def test_impossible_values(override, complaint):
    assert complaint in problems("embedded", override)


def test_unknown_recipe_and_broken_file(tmp_path):
    assert "embedded" in problems("embeded")
    (tmp_path / "r.yaml").write_text("description: [")
    assert "not valid YAML" in problems(str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text("- a\n")
    assert "description is missing" in problems(str(tmp_path / "r.yaml"))


README = recipe.RECIPES / "README.md"
PUBLISHED = [
    "doctor-llama",
    "chatdoctor-stage1",
    "chatdoctor-stage2",
    "medalpaca-lora",
    "llama3-qlora",
    "llamatron-rs1",
]


def tables():
    """Return {recipe: {setting: the text of its "ours" cell}} from the README's tables."""
    found = {}
    for section in README.read_text(encoding="utf-8").split("\n## `")[1:]:
        name, text = section.split("`", 1)
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `" in line]
        column = next(
            [cell.strip() for cell in line.strip("|").split("|")].index("ours")
            for line in text.splitlines()
            if line.startswith("| setting")
        )
        found[name] = {row[0].strip("`"): row[column].strip("`") for row in rows}
    return found


def mixture(loaded):
    """Return the data of a recipe as the README writes it."""
    parts = []
    for source in loaded.data:
        amounts = {name: getattr(source, name) for name in ("rows", "fraction", "repeat", "answer")}
        place = f"{source.dataset}/{source.config}" if source.config else source.dataset
        parts.append(" ".join([place, *(f"{name} {value}" for name, value in amounts.items() if value is not None)]))
    return "; ".join(parts)


@pytest.mark.parametrize("name", [*PUBLISHED, "medchat-3b", "embedded"])
def test_the_readme_tells_each_recipes_settings(name):
    loaded, table = recipe.load(name), tables()[name]
    for key, ours in table.items():
        if key == "data":
            assert ours == mixture(loaded)
            continue
        value = loaded
        for part in key.split("."):
            value = getattr(value, part)
        assert yaml.safe_load(ours) == value or float(ours) == value, key  # YAML 1.1 reads 2e-05 as text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_readme_leaves_out_no_setting_of_a_published_recipe(name):
    """What the file sets, the table explains; in the file every line of the schedule names its source."""
    text = (recipe.RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    told = tables()[name]
    settings = [f"{group}.{key}" for group in ("lora", "sft") for key in values.get(group, {})]
    settings += [key for key in ("base", "method", "data", "template", "held_out", "seed") if key in values]
    assert not [key for key in settings if key not in told and key != "sft.log_steps" and key != "sft.eval_steps"]
    lines = text[text.index("\nsft:") :].splitlines()
    without = [line for line in lines if re.match("  [a-z]", line) and not re.search(_SOURCE, line)]
    assert not without


_SOURCE = r"# .*\[(card|code|paper|readme|tutorial|default)\]"


def test_the_published_settings_of_the_five_systems():
    """Against the publications themselves, by hand: the numbers a reader would look for first."""
    doctor, stage2, meadow, llama3, tron = (recipe.load(name) for name in PUBLISHED if name != "chatdoctor-stage1")
    assert (doctor.method, doctor.lora.targets, [s.fraction for s in doctor.data]) == (
        "qlora",
        ["q_proj", "v_proj"],
        [0.1, 0.1],
    )
    for stage in (recipe.load("chatdoctor-stage1"), stage2):
        assert (stage.method, stage.sft.learning_rate, stage.sft.epochs, stage.sft.max_length) == ("full", 2e-5, 3, 512)
        assert stage.sft.batch * stage.sft.accumulation == 192
        assert (stage.sft.save_steps, stage.sft.keep, stage.template) == (2000, 1, "alpaca")
    assert stage2.base == recipe.load("chatdoctor-stage1").output_dir
    assert (meadow.lora.r, meadow.lora.alpha, meadow.lora.dropout) == (8, 16, 0.1)
    assert (llama3.method, llama3.sft.accumulation, llama3.held_out) == ("qlora", 2, 0.1)
    assert (tron.lora.r, tron.lora.alpha, tron.lora.dropout, len(tron.lora.targets)) == (16, 32, 0.05, 7)
    assert (tron.sft.epochs, tron.sft.learning_rate, tron.sft.optimizer) == (2, 3e-4, "paged_adamw_8bit")
    assert (tron.sft.batch, tron.sft.accumulation, tron.sft.max_length, tron.held_out) == (4, 4, 1024, 0.05)


def test_bases_without_a_chat_template_name_one_that_exists():
    for name in recipe.names():
        loaded = recipe.load(name)
        assert loaded.template is None or (TEMPLATES / f"{loaded.template}.jinja").is_file()
        assert ("llama-7b" not in loaded.base) or loaded.template == "alpaca"


def test_every_data_set_of_every_recipe_is_known_and_may_be_trained_on():
    for name in recipe.names():
        for source in recipe.load(name).data:
            assert source.dataset not in EVALUATION_ONLY
            assert known(source.dataset) or source.dataset.endswith((".jsonl", ".csv", ".parquet")), source.dataset
