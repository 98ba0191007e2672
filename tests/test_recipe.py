"""Recipes are read strictly and all problems are reported at once."""

from __future__ import annotations

import pytest

from medchat.errors import UserError
from train import recipe


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
