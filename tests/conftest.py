"""Shared parts of the tests: the tiny models, the embedded engine, a running app, the page on a script, a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on the network
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# Each of the processes that share the tests keeps to a core: threads of llama.cpp and torch wait for others in loops.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of the page two more chances: on a busy machine a browser is now and then too late."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama: `base` (transformers), `base.gguf`, and `adapter` on all linear layers."""
    from tests import tiny as make

    folder = tmp_path_factory.mktemp("tiny")
    model = make.make_llama(folder / "base")
    make.write_gguf(model, make.make_tokenizer(), folder / "base.gguf")
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    make.make_adapter(model, folder / "adapter", targets=linear)
    return folder


@pytest.fixture(scope="session")
def embedded_engine() -> Any:
    """The engine that `python app.py` opens by default."""
    from medchat.engines.llama_cpp import open_llama_cpp

    return open_llama_cpp("embedded", ["embedded"])


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Return whether `condition` came true within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="session")
def app_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `python app.py`, started as a user would."""
    port = free_port()
    log = (tmp_path_factory.mktemp("app") / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    try:
        if not wait_until(answers, 60):
            log.seek(0)
            pytest.fail(f"the app did not start:\n{log.read()}")
        yield url
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.fixture(scope="session")
def scripted() -> Any:
    """The engine of `page_url`; its `computing` tells how many replies run."""
    from tests.scripted import ScriptedEngine

    return ScriptedEngine()


@pytest.fixture(scope="session")
def page_url(scripted: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page on an engine that answers from a script, with the built-in knowledge."""
    from medchat.knowledge import open_knowledge
    from medchat.line import Limits
    from medchat.ui import build_demo, launch_options

    before = os.environ.get("MEDCHAT_CACHE")
    os.environ["MEDCHAT_CACHE"] = str(tmp_path_factory.mktemp("cache"))  # where votes go
    demo = build_demo(scripted, open_knowledge("builtin"), limits=Limits(waiting=2, per_minute=1000))
    _, url, _ = demo.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **launch_options())
    yield url.rstrip("/")
    demo.close(verbose=False)
    if before is None:
        del os.environ["MEDCHAT_CACHE"]
    else:
        os.environ["MEDCHAT_CACHE"] = before


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once. Without it the tests of the page are skipped, but not in CI."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("CI"):
            pytest.fail("CI must test the page: install chromium", pytrace=False)
        pytest.skip("no Chromium here: apt install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()
