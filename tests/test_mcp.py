"""The MCP tools through a real client, what can be called at all, and the README's examples as they stand."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT

pytest.importorskip("mcp")
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

TOOLS = {"chat", "sources", "triage", "models"}
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = README.split("\n## API\n")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"```(python|bash)\n(.*?)```", API, re.DOTALL)


def with_session(url, use):
    """Return what `use(session)` gives in a session with the app's MCP server."""

    async def main():
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    with ThreadPoolExecutor(1) as pool:  # the browser of other tests holds this thread's event loop
        return pool.submit(asyncio.run, main()).result()


def call(url, name, **arguments):
    """Return (text, whether it is an error) of one call."""

    async def use(session):
        found = await session.call_tool(name, arguments)
        return found.content[0].text, found.isError

    return with_session(url, use)


def test_the_tools_are_the_four_functions_with_their_docstrings(page_url):
    async def use(session):
        return (await session.list_tools()).tools, await session.list_resources(), await session.list_prompts()

    tools, resources, prompts = with_session(page_url, use)
    assert {tool.name for tool in tools} == TOOLS
    assert not resources.resources
    assert not prompts.prompts
    by_name = {tool.name: tool for tool in tools}
    assert "not a doctor's advice" in by_name["chat"].description
    assert 'never "safe"' in by_name["triage"].description
    assert by_name["chat"].inputSchema["required"] == ["message"]
    assert set(by_name["chat"].inputSchema["properties"]) == {
        "message", "history", "adapter", "max_tokens", "temperature", "seed", "knowledge",
    }  # fmt: skip
    for tool in tools:
        for name, about in tool.inputSchema["properties"].items():
            assert about["description"], (tool.name, name)


def test_the_tools_answer(page_url):
    text, failed = call(page_url, "chat", message="What is anemia?", max_tokens=30)
    assert "anemia" in text
    assert not failed
    found = ast.literal_eval(call(page_url, "triage", text="My dad has crushing chest pain")[0])
    assert found["level"] == "emergency"
    assert "anemia" in ast.literal_eval(call(page_url, "sources", question="What is anemia?")[0])[0]["title"]
    assert ast.literal_eval(call(page_url, "models")[0])["engine"] == "scripted"
    text, failed = call(page_url, "chat", message="I want to kill myself")
    assert text.startswith("### You matter")


def test_mistakes_are_errors_with_a_sentence(page_url):
    assert call(page_url, "chat", message=" ") == ("Your message is empty. Please type a question.", True)
    for name in ("_take", "respond", "new_conversation"):
        text, failed = call(page_url, name)
        assert failed
        assert "Unknown tool" in text


def test_nothing_but_the_four_functions_is_public(page_url):
    with urllib.request.urlopen(f"{page_url}/config") as answer:
        dependencies = json.load(answer)["dependencies"]
    assert {d["api_name"] for d in dependencies if d["api_visibility"] != "private"} == TOOLS


@pytest.mark.parametrize(("kind", "code"), EXAMPLES, ids=["gradio_client", "curl", "mcp"])
def test_the_examples_of_the_readme_run_as_they_stand(kind, code, app_url):
    """Only the address is that of the app under test."""
    code = code.replace("http://127.0.0.1:7860", app_url)
    command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-euc", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    expected = {"python": "emergency", "bash": "event: complete"}[kind]
    assert expected in done.stdout


def test_without_the_extra_the_app_says_so_and_starts():
    code = """
import sys
sys.modules["mcp"] = None  # as where it is not installed
import gradio as gr
def length(text: str) -> int:
    return len(text)
with gr.Blocks() as demo:
    gr.api(length, api_name="length")
demo.launch(mcp_server=True, prevent_thread_lock=True)
assert demo.mcp_error
demo.close(verbose=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "gradio[mcp]" in done.stdout
