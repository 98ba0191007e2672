"""What cannot be had never keeps the app from starting: the embedded model and a notice, with the real Hub client."""

from __future__ import annotations

import importlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from gradio_client import Client

from medchat import adapters, embedded
from medchat.engines import EMBEDDED, GPU_ADAPTER, GPU_BASE, choose
from medchat.settings import read_settings
from tests.conftest import ROOT, free_port
from tests.hub import Hub

# The Hub's client reads its address once, at import; hence a process, one for many cases. Its last line is the answer.
OPEN = """
import faulthandler, functools, json, os, sys
from medchat.engines import llama_cpp, open_engine
from medchat.errors import UserError
from medchat.settings import read_settings

faulthandler.dump_traceback_later(500, exit=True)  # should one ever hang, this says where
# The embedded model stands in for nearly all: loaded once, not twenty times.
llama_cpp.open_llama_cpp = functools.cache(llama_cpp.open_llama_cpp)
answers = []
for case in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = case.get("token") or ""
    try:
        engine, notice = open_engine(read_settings(case["argv"], case.get("environ", {})))
        listed = [adapter.summary() for adapter in engine.adapters.values()]
        answers.append({"engine": engine.name, "base": engine.base, "adapters": listed, "notice": notice})
        del engine
    except UserError as error:
        answers.append({"refused": str(error)})
print(json.dumps(answers))
"""
MINE = {name: (adapters.EMBEDDED / name).read_bytes() for name in (adapters.CONFIG, adapters.WEIGHTS)}
WRONG = "hf_WrongTokenCanary"
INSTEAD = "The small embedded model answers instead of "


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as server:
        yield server


def open_all(hub: Hub, home: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what open_engine() answers to each case, in one process; no token may show."""
    command = [sys.executable, "-c", OPEN, json.dumps(cases)]
    done = subprocess.run(
        command, env=hub.env(home), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    for token in (Hub.token, Hub.stranger, WRONG):
        assert token not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_embedded(answer: dict[str, Any]) -> None:
    assert (answer["engine"], answer["base"]) == ("llama_cpp", embedded.NAME), answer
    assert [adapter["name"] for adapter in answer["adapters"]] == ["medchat"]


def adapter_case(source: str, what: str, fix: str, token: str | None = None) -> tuple[dict[str, Any], str, str]:
    return {"argv": ["--adapter", source], "token": token}, what, fix


def base_case(base: str, what: str, fix: str, *options: str) -> tuple[dict[str, Any], str, str]:
    return {"argv": ["--base", base, *options]}, what, fix


ADAPTERS = [
    adapter_case("clinic/absent", "no public repository 'clinic/absent'", "if it is private, set HF_TOKEN"),
    adapter_case("clinic/private", "no public repository 'clinic/private'", "set HF_TOKEN to a token from"),
    adapter_case("clinic/private", "that your token may read", "token of an account that may", Hub.stranger),
    adapter_case("clinic/gated", "'clinic/gated' is gated.", "/clinic/gated and set HF_TOKEN to a token from"),
    adapter_case("clinic/gated", "your account is not on its list", "Ask for access at", Hub.stranger),
    adapter_case("clinic/adapter", "does not accept your token", "Set HF_TOKEN to a valid one", WRONG),
    adapter_case("clinic/adapter@v9", "has no revision 'v9'", "leave @... out"),
    adapter_case("clinic/other", "does not fit this base", "Choose that base with --base"),
    adapter_case("clinic/dora", "has DoRA, which llama.cpp cannot add", "Type --engine transformers"),
    adapter_case("clinic/pickle", "only a pickle", "saved as safetensors"),
    adapter_case("clinic/big", "has 3,000 MB", "give --adapter its folder"),
    adapter_case("clinic/cut", "broke while 'clinic/cut' was being fetched", "start again"),
]
BASES = [
    base_case("clinic/absent-gguf", "no public repository 'clinic/absent-gguf'", "set HF_TOKEN"),
    base_case("clinic/gated-gguf", "'clinic/gated-gguf' is gated.", "/clinic/gated-gguf and set HF_TOKEN"),
    base_case("clinic/cut-gguf", "broke while 'clinic/cut-gguf' was being fetched", "start again"),
    base_case("clinic/adapter", "holds no GGUF file", "another --base", "--engine", "llama_cpp"),
    base_case("clinic/false-gguf/model.gguf", "holds only other.gguf", "Choose one of these"),
    base_case("clinic/absent", "no public repository 'clinic/absent'", "set HF_TOKEN"),
    base_case("clinic/gated-base", "'clinic/gated-base' is gated.", "/clinic/gated-base and set HF_TOKEN"),
    base_case("clinic/adapter", "holds an adapter, not a base", "--adapter clinic/adapter"),
    base_case("clinic/pickle-base", "could not be loaded", "Choose another --base"),
    base_case("clinic/cut-base", "broke while 'clinic/cut-base' was being fetched", "start again"),
]


def other_base() -> bytes:
    """Return the weights of an adapter that fits a larger model."""
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{q_proj}.lora_A.weight": np.ones((8, 64)), f"{q_proj}.lora_B.weight": np.ones((64, 8))}
    return safetensors.numpy.save(pair)


def cut(hub: Hub, content: bytes) -> bytes:
    """Let the connection break in the middle of this file, whenever it is fetched."""
    hub.fail_next(f"GET /cdn/{hub.store(content).sha256}", cut_after=len(content) // 2, times=99)
    return content


def test_every_adapter_that_cannot_be_had_ends_in_the_notice(hub: Hub, tmp_path: Path) -> None:
    config = json.loads(MINE[adapters.CONFIG])
    hub.add("clinic/adapter", MINE)
    hub.add("clinic/private", MINE, private=True)
    hub.add("clinic/gated", MINE, gated=True)
    hub.add("clinic/other", MINE | {adapters.WEIGHTS: other_base()})
    hub.add("clinic/dora", MINE | {adapters.CONFIG: json.dumps(config | {"use_dora": True}).encode()})
    hub.add("clinic/pickle", {adapters.CONFIG: MINE[adapters.CONFIG], "adapter_model.bin": 5_000_000})
    hub.add("clinic/big", {adapters.CONFIG: MINE[adapters.CONFIG], adapters.WEIGHTS: 3_000_000_000})
    cut_weights = cut(hub, safetensors.numpy.save({"a": np.ones(200_000)}))
    hub.add("clinic/cut", MINE | {adapters.WEIGHTS: cut_weights})

    answers = open_all(hub, tmp_path / "home", [case for case, _, _ in ADAPTERS])

    for (case, what, fix), answer in zip(ADAPTERS, answers, strict=True):
        assert_embedded(answer)
        assert answer["notice"].startswith(f"**{INSTEAD}embedded with {case['argv'][1]}.** "), answer
        assert what in answer["notice"]
        assert fix in answer["notice"]


def test_every_base_that_cannot_be_had_ends_in_the_notice(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    base = {path.name: path.read_bytes() for path in (tiny / "base").iterdir()}
    hub.add("clinic/adapter", MINE)
    hub.add("clinic/gated-gguf", {"model.gguf": (tiny / "base.gguf").read_bytes()}, gated=True)
    hub.add("clinic/cut-gguf", {"model.gguf": cut(hub, (tiny / "base.gguf").read_bytes())})
    hub.add("clinic/false-gguf", {"other.gguf": b"GGUF"})
    hub.add("clinic/gated-base", base, gated=True)
    pickle = {name: content for name, content in base.items() if name != "model.safetensors"}
    hub.add("clinic/pickle-base", {**pickle, "pytorch_model.bin": 9_000})
    hub.add("clinic/cut-base", {**base, "model.safetensors": cut(hub, base["model.safetensors"])})

    answers = open_all(hub, tmp_path / "home", [case for case, _, _ in BASES])

    for (case, what, fix), answer in zip(BASES, answers, strict=True):
        assert_embedded(answer)
        assert answer["notice"].startswith(f"**{INSTEAD}{case['argv'][1]}.** "), answer
        assert what in answer["notice"]
        assert fix in answer["notice"]


def test_what_can_be_had_starts(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    base = {path.name: path.read_bytes() for path in (tiny / "base").iterdir()}
    fitting = {path.name: path.read_bytes() for path in (tiny / "adapter").iterdir()}
    commit = hub.add("clinic/tiny-adapter", fitting)
    hub.add("clinic/tiny-gguf", {"model.gguf": (tiny / "base.gguf").read_bytes()}, gated=True)
    hub.add(GPU_BASE, base)
    on_zero_gpu = {"SPACES_ZERO_GPU": "1"}
    gguf = ["--base", "clinic/tiny-gguf", "--adapter", "clinic/tiny-adapter"]
    cases: list[dict[str, Any]] = [
        {"argv": gguf, "token": Hub.token},
        {"argv": [*gguf, "--adapter", "clinic/absent"], "token": Hub.token},
        {"argv": ["--base", GPU_BASE, "--adapter", "clinic/tiny-adapter"]},
        {"argv": [], "environ": on_zero_gpu},  # its adapter, which nobody named, is not on this Hub
        {"argv": ["--adapter", "clinic/absent"], "environ": on_zero_gpu},
    ]

    whole, rest, by_transformers, default, named = open_all(hub, tmp_path / "home", cases)

    for answer in (whole, rest, by_transformers):
        listed = [(adapter["name"], adapter["revision"]) for adapter in answer["adapters"]]
        assert listed == [("clinic/tiny-adapter", commit)]
    assert (whole["engine"], whole["base"], whole["notice"]) == ("llama_cpp", "clinic/tiny-gguf", None)
    assert rest["notice"].startswith("**Running without clinic/absent.** The Hub has no")
    assert (by_transformers["engine"], by_transformers["notice"]) == ("transformers", None)
    assert (default["engine"], default["base"], default["adapters"]) == ("transformers", GPU_BASE, [])
    assert default["notice"].startswith(f"**Running without {GPU_ADAPTER}.** The Hub has no")
    assert_embedded(named)
    assert named["notice"].startswith(f"**{INSTEAD}{GPU_BASE} with clinic/absent.**")


def test_mistakes_here_are_refused_but_not_on_a_space(hub: Hub, tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))  # a file that nobody foresaw: valid, without metadata
    space = {"SPACE_ID": "org/space"}
    missing = ["--base", "/nowhere/model.gguf"]
    cases = [
        {"argv": missing},
        {"argv": ["--base", "./nowhere"]},
        {"argv": ["--adapter", "/nowhere/adapter"]},
        {"argv": [], "environ": {**space, "MEDCHAT_BASE": missing[1]}},
        {"argv": ["--base", str(empty)]},
    ]

    first, second, third, on_space, unforeseen = open_all(hub, tmp_path / "home", cases)

    assert "There is no file /nowhere/model.gguf. Check the path" in first["refused"]
    assert "There is no base './nowhere'" in second["refused"]
    assert "There is no adapter folder '/nowhere/adapter'" in third["refused"]
    assert_embedded(on_space)
    assert "There is no file /nowhere/model.gguf." in on_space["notice"]
    assert on_space["notice"].endswith("MEDCHAT_BASE for --base) and tokens as secrets.")
    assert_embedded(unforeseen)
    assert "could not be loaded (KeyError)" in unforeseen["notice"]


def test_a_server_that_is_down_or_wants_another_key(hub: Hub, tmp_path: Path) -> None:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # its HTTP server is a real one
    params = xllamacpp.CommonParams()
    params.model.path = str(embedded.gguf_path())
    params.n_ctx, params.cpuparams.n_threads, params.verbosity, params.api_keys = 256, 1, -1, ["the-right-key"]
    server = xllamacpp.Server(params)
    down = ["--base-url", f"http://127.0.0.1:{free_port()}/v1", "--adapter", "doctor"]
    key = {"MEDCHAT_API_KEY": "the-wrong-key"}

    cases = [{"argv": down}, {"argv": ["--base-url", server.listening_address], "environ": key}]
    absent, locked = open_all(hub, tmp_path / "home", cases)

    assert_embedded(absent)
    assert absent["notice"].startswith(f"**{INSTEAD}the model of the server with doctor.** {down[1]}: The model")
    assert "cannot be reached" in absent["notice"]
    assert "Start it, or check --base-url" in absent["notice"]
    assert_embedded(locked)
    assert "refused the key (HTTP 401). Set MEDCHAT_API_KEY" in locked["notice"]
    assert "the-wrong-key" not in locked["notice"]


@contextmanager
def running(env: dict[str, str], *arguments: str) -> Iterator[Client]:
    """`python app.py`, started as a user would, and a client for it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *arguments], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                client = Client(f"http://127.0.0.1:{port}", verbose=False)
                break
            except Exception:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.3)
        yield client
    finally:
        process.terminate()
        process.wait(10)


def answer_of(client: Client) -> str:
    return client.predict("What is asthma?", max_tokens=8, temperature=0, knowledge=False, api_name="/chat")


def test_the_app_answers_although_the_network_is_gone(hub: Hub, tmp_path: Path) -> None:
    hub.close()

    with running(hub.env(tmp_path / "home"), "--adapter", "clinic/adapter") as client:
        models = client.predict(api_name="/models")
        assert_embedded(models)
        assert "cannot be reached, and 'clinic/adapter' is not on this machine" in models["notice"]
        assert "Check the network, or give --adapter a folder" in models["notice"]
        assert answer_of(client)


def test_the_app_answers_although_the_server_is_down(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    with running({**os.environ, "HF_HOME": str(tmp_path)}, "--engine", "remote", "--base-url", address) as client:
        models = client.predict(api_name="/models")
        assert_embedded(models)
        assert "Start it, or check --base-url" in models["notice"]
        assert answer_of(client)


def test_the_app_lists_an_adapter_of_the_hub_with_its_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("clinic/adapter", MINE)

    with running(hub.env(tmp_path / "home"), "--adapter", "clinic/adapter") as client:
        models = client.predict(api_name="/models")
        assert models["notice"] is None
        assert [(a["name"], a["revision"]) for a in models["adapters"]] == [("clinic/adapter", commit)]
        assert answer_of(client)


@pytest.mark.parametrize(
    ("argv", "plan"),
    [
        ([], EMBEDDED),
        (["--engine", "transformers"], ("transformers", *EMBEDDED[1:])),
        (["--adapter", "org/name"], ("llama_cpp", "embedded", ("org/name",))),
        (["--base", "org/Model-GGUF"], ("llama_cpp", "org/Model-GGUF", ())),
        (["--base", "org/name/file.gguf"], ("llama_cpp", "org/name/file.gguf", ())),
        (["--base", "README.md"], ("llama_cpp", "README.md", ())),
        (["--base", "org/name@v1"], ("transformers", "org/name@v1", ())),
        (["--base", "tests"], ("transformers", "tests", ())),
        (["--base-url", "http://host"], ("remote", "", ())),
    ],
)
def test_the_engine_follows_the_base(argv: list[str], plan: tuple[str, str, tuple[str, ...]]) -> None:
    from torch import cuda

    if cuda.is_available() and "--base" not in argv:
        pytest.skip("without a base, a GPU decides")
    assert choose(read_settings(argv, {})) == plan


@pytest.mark.parametrize(
    ("argv", "plan"),
    [
        ([], ("transformers", GPU_BASE, (GPU_ADAPTER,))),
        (["--adapter", "org/name"], ("transformers", GPU_BASE, ("org/name",))),
        (["--engine", "llama_cpp"], EMBEDDED),
        (["--base", "embedded"], EMBEDDED),
        (["--adapter", "assets/adapter"], ("llama_cpp", "embedded", ("assets/adapter",))),
    ],
)
def test_a_gpu_gets_the_larger_model(
    argv: list[str], plan: tuple[str, str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert choose(read_settings(argv, {"SPACES_ZERO_GPU": "true"})) == plan
    assert {"id": GPU_ADAPTER, "base": GPU_BASE}.items() <= adapters.curated()[0].items()
