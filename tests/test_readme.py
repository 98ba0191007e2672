"""Every command in the README exists, and what it says about the Space is valid."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from benchmarks import readme
from medchat.settings import read_settings
from tests.conftest import ROOT
from train import __main__ as trainer
from train import recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    command.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("#")
    for command in line.split("&&")
    if command.strip()
]


def test_the_space_card_is_valid():
    card = yaml.safe_load(README.split("---")[1])
    assert card["sdk"] == "gradio"
    assert (ROOT / card["app_file"]).is_file()
    assert card["license"] == "apache-2.0"
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colors
    assert len(card["short_description"]) <= 60
    assert re.fullmatch(r"6\.\d+\.\d+", card["sdk_version"])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "app.py" in c and "--help" not in c])
def test_app_commands_parse(command):
    words = shlex.split(command)
    read_settings(words[words.index("app.py") + 1 :], {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m train" in c])
def test_train_commands_parse(command):
    words = shlex.split(command)
    words = words[words.index("train") + 1 :]
    arguments = trainer.parser().parse_args(words)
    if arguments.command == "sft":
        recipe.load(arguments.recipe, arguments.overrides)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m benchmarks." in c])
def test_benchmark_commands_exist(command):
    name = re.search(r"-m benchmarks\.(\w+)", command)
    assert name
    assert (ROOT / "benchmarks" / f"{name[1]}.py").is_file()


def test_files_and_pictures_that_it_names_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for requirements in re.findall(r"-r (\S+\.txt)", README):
        assert (ROOT / requirements).is_file()


def test_the_table_of_results_is_what_the_benchmarks_wrote():
    assert readme.main(["--check"]) == 0, "type: python -m benchmarks.readme"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A README and results of its own for benchmarks.readme."""
    (tmp_path / "README.md").write_text(
        "before\n<!-- results -->\nof yesterday\n<!-- /results -->\nafter\n", encoding="utf-8"
    )
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "EVALUATION", tmp_path / "results.json")
    return tmp_path / "README.md"


def test_an_old_table_is_noticed_and_only_the_table_is_rewritten(copy):
    results = json.loads((ROOT / "benchmarks" / "results" / "knowledge.json").read_text(encoding="utf-8"))
    (copy.parent / "knowledge.json").write_text(json.dumps(results), encoding="utf-8")
    assert readme.main(["--check"]) == 1
    assert "of yesterday" in copy.read_text(encoding="utf-8")
    assert readme.main([]) == 0 == readme.main(["--check"])
    text = copy.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- results -->\n\n| what")
    assert text.endswith("\n\n<!-- /results -->\nafter\n")
    assert "of yesterday" not in text
    results["builtin"]["test"]["hit@1"] = 0.123
    (copy.parent / "knowledge.json").write_text(json.dumps(results), encoding="utf-8")
    assert readme.main(["--check"]) == 1
    readme.main([])
    assert "| 0.12, " in copy.read_text(encoding="utf-8")


def test_what_was_not_measured_has_no_row(copy):
    assert readme.table().split("\n") == ["", "| what | figure | command |", "| --- | --- | --- |", "", ""]


def test_the_evaluation_of_the_adapter_has_rows_with_its_command(copy):
    def score(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}

    results = {
        "limit": 50,
        "seed": 0,
        "tasks": {"nll": {"nll": score(2.2)}},
        "base_tasks": {"nll": {"nll": score(2.5)}},
        "paired": {"nll": {"nll": {"difference": -0.3, "low": -0.4, "high": -0.2}}},
    }
    (copy.parent / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (row,) = [line for line in readme.table().splitlines() if "nll" in line]
    assert "| 2.500, 2.200, -0.300 (-0.400 to -0.200) |" in row
    command = re.search(r"`python -m train (.+)`", row)
    assert command
    assert trainer.parser().parse_args(shlex.split(command[1])).limit == 50


def test_results_that_lack_a_figure_and_a_readme_without_a_place_are_said(copy, capsys):
    (copy.parent / "serve.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"serve\.json has no 'app'"):
        readme.main(["--check"])
    copy.write_text("nothing", encoding="utf-8")
    assert readme.main([]) == 1
    assert "<!-- results -->" in capsys.readouterr().err
    assert copy.read_text(encoding="utf-8") == "nothing"
