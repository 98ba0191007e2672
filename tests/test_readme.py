"""Every command in the README exists, and what it says about the Space is valid."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

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
