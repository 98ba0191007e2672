"""The remote engine against real servers (llama.cpp's, `transformers serve`) and against servers that misbehave."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from medchat.engines import Delta, EngineError, Sampling, remote
from medchat.errors import UserError
from tests.tiny import make_adapter, make_llama

KEY = "sk-0123456789-secret"
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is asthma?"}]
GREEDY = Sampling(max_tokens=12, temperature=0, seed=0)


def ask(engine: remote.RemoteEngine, sampling: Sampling = GREEDY, adapter: str = "") -> list[Delta]:
    return list(engine.stream(QUESTION, adapter=adapter, sampling=sampling, cancel=threading.Event()))


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def broken(stream: Iterator[Delta]) -> tuple[list[Delta], str]:
    """Return what a stream gave before its EngineError, and the error's text."""
    deltas = []
    try:
        for delta in stream:
            deltas.append(delta)
    except EngineError as error:
        return deltas, str(error)
    raise AssertionError(f"This reply ended well: {deltas}")


def start(engine: remote.RemoteEngine, sampling: Sampling = GREEDY, content: str = "What is asthma?") -> Any:
    messages = [QUESTION[0], {"role": "user", "content": content}]
    return engine.stream(messages, adapter="", sampling=sampling, cancel=threading.Event())


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# llama.cpp's own server, the one inside xllamacpp. It serves no adapter by name.


@pytest.fixture(scope="module")
def llama() -> Any:
    from medchat import embedded

    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without type stubs

    params = xllamacpp.CommonParams()
    params.model.path = str(embedded.gguf_path())
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = 4096, 2, 32, 32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    params.api_keys = [KEY]
    params.endpoint_slots = True
    return xllamacpp.Server(params)


def slots(server: Any) -> list[dict[str, Any]]:
    answer = httpx2.get(f"{server.listening_address}/slots", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    return answer.json()


def busy(server: Any) -> bool:
    return any(slot["is_processing"] for slot in slots(server))


def test_llama_cpp_streams_what_it_answers_at_once(llama: Any) -> None:
    engine = remote.open_remote(llama.listening_address, "", (), token=KEY)
    deltas = ask(engine, replace(GREEDY, repetition_penalty=1.8))
    body = {"messages": QUESTION, "max_tokens": 12, "temperature": 0, "min_p": 0.05, "repeat_penalty": 1.8, "seed": 0}
    headers = {"Authorization": f"Bearer {KEY}"}
    whole = httpx2.post(f"{llama.listening_address}/v1/chat/completions", json=body, headers=headers, timeout=60).json()
    assert text(deltas) == whole["choices"][0]["message"]["content"] != text(ask(engine))
    assert sum(bool(delta.text) for delta in deltas) > 5
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    stats = deltas[-1].stats
    assert stats is not None
    assert stats.completion_tokens == 12
    assert stats.prompt_tokens == engine.count_tokens(QUESTION) == whole["usage"]["prompt_tokens"]
    assert stats.first_token_seconds > 0
    assert stats.tokens_per_second > 0
    assert engine.base.endswith(".gguf")
    assert engine.context == 2048


def test_two_conversations_at_once_equal_each_alone(llama: Any) -> None:
    engine = remote.open_remote(f"{llama.listening_address}/v1/", "", (), token=KEY)
    questions = [[{"role": "user", "content": question}] for question in ("What is a fever?", "Name three vitamins.")]
    replies: dict[int, str] = {}

    def run(i: int) -> None:
        stream = engine.stream(questions[i % 2], adapter="", sampling=GREEDY, cancel=threading.Event())
        replies[i] = text(list(stream))

    run(0)
    run(1)
    threads = [threading.Thread(target=run, args=(i,)) for i in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies[2] == replies[0] != replies[1] == replies[3]


@pytest.mark.parametrize("moment", ["while it writes", "while it reads the prompt"])
def test_closing_the_stream_stops_the_server(llama: Any, moment: str) -> None:
    engine = remote.open_remote(llama.listening_address, "", (), token=KEY)
    writes = moment == "while it writes"
    content = "Write a very long story about a lighthouse." if writes else f"Sum up {time.time()}: " + "fever " * 1800
    stream = start(engine, Sampling(max_tokens=1900 if writes else 8), content)
    if writes:
        assert any(delta.text for delta in stream)
    else:
        assert not next(stream).text
    assert eventually(lambda: busy(llama))
    stream.close()
    assert eventually(lambda: not busy(llama))
    if writes:
        assert all(slot["next_token"][0]["n_decoded"] < 1000 for slot in slots(llama))
    assert text(ask(engine))  # the slot answers again


def test_the_cancel_event_ends_the_reply(llama: Any) -> None:
    engine = remote.open_remote(llama.listening_address, "", (), token=KEY)
    cancel = threading.Event()
    deltas = []
    for delta in engine.stream(QUESTION, adapter="", sampling=Sampling(max_tokens=1900), cancel=cancel):
        deltas.append(delta)
        if delta.text:
            cancel.set()
    assert deltas[-1].finish_reason == "cancelled"
    assert eventually(lambda: not busy(llama))
    assert all(slot["next_token"][0]["n_decoded"] < 1000 for slot in slots(llama))


@pytest.mark.parametrize(
    ("token", "base", "adapters", "expected"),
    [
        ("sk-wrong-key-of-mine", "", (), "refused the key (HTTP 401)"),
        (None, "", (), "wants a key (HTTP 401)"),
        (KEY, "meta-llama/Llama-3.2-3B", (), "no model 'meta-llama/Llama-3.2-3B'"),
        (KEY, "", ("doctor",), "no model 'doctor'"),
    ],
)
def test_llama_cpp_refusals_at_the_start(
    llama: Any, token: str | None, base: str, adapters: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        remote.open_remote(llama.listening_address, base, adapters, token=token)
    assert expected in str(caught.value)
    assert "sk-" not in "".join(traceback.format_exception(caught.value))


def test_a_prompt_that_does_not_fit_is_refused_with_the_servers_words(llama: Any) -> None:
    engine = remote.open_remote(llama.listening_address, "", (), token=KEY)
    _, error = broken(start(engine, content="fever " * 3000))
    assert re.search(r"HTTP 400: request .* exceeds the available context size", error)


def test_the_estimate_is_above_the_count_of_ordinary_text(llama: Any) -> None:
    engine = remote.open_remote(llama.listening_address, "", (), token=KEY)
    for content in (
        "Is 400 mg of ibuprofen every six hours safe with lisinopril and a creatinine of 1.3?",
        "Mon fils de huit ans tousse la nuit depuis trois semaines, que dois-je faire ?",
        "我的孩子发烧三天了，应该去看医生吗？",
        "Hi",
    ):
        messages = [QUESTION[0], {"role": "user", "content": content}]
        assert remote.estimate(messages) >= engine.count_tokens(messages)


# `transformers serve`: models by name from its cache, one of them a base with a PEFT adapter; no key, no /tokenize.


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    from transformers import AutoTokenizer
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("`transformers serve` needs: pip install 'transformers[serving]'")
    home = tmp_path_factory.mktemp("hf")
    base, adapter = cached(home, "test--base"), cached(home, "test--doctor")
    model = make_llama(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = prompt["input_ids"].shape[1]

    def generate(model: Any) -> str:
        ids = model.generate(**prompt, max_new_tokens=GREEDY.max_tokens, do_sample=False)
        return tokenizer.decode(ids[0, length:], skip_special_tokens=True)

    expected = {"": generate(model)}
    peft = make_adapter(model, adapter, targets=["q_proj", "v_proj"], scale=2.0)
    expected["test/doctor"] = generate(peft)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "test/base"}))
    for file in base.iterdir():  # the server wants a config and a tokenizer beside the adapter
        if file.name != "model.safetensors":
            (adapter / file.name).write_bytes(file.read_bytes())
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=(home / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        assert eventually(lambda: process.poll() is not None or healthy(url), 90)
        assert process.poll() is None, (home / "log").read_text()
        yield SimpleNamespace(url=url, expected=expected, prompt_tokens=length)
    finally:
        process.kill()
        process.wait()


def cached(home: Path, name: str) -> Path:
    """Make the folder of a model in a Hub cache, as a download leaves it."""
    folder = home / "hub" / f"models--{name}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs").mkdir()
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_transformers_serve_streams_base_and_adapter_by_name(transformers_serve: SimpleNamespace) -> None:
    engine = remote.open_remote(transformers_serve.url, "test/base", ("test/doctor",), token=None)
    assert transformers_serve.expected[""] != transformers_serve.expected["test/doctor"]
    for adapter in ("", "test/doctor", ""):
        deltas = ask(engine, adapter=adapter)
        # The server holds back a character that is not complete.
        assert text(deltas).rstrip("\ufffd") == transformers_serve.expected[adapter].rstrip("\ufffd")
        assert deltas[-1].finish_reason == "length"
        stats = deltas[-1].stats
        assert stats is not None
        assert (stats.prompt_tokens, stats.completion_tokens) == (transformers_serve.prompt_tokens, 12)
    assert engine.count_tokens(QUESTION) == remote.estimate(QUESTION)
    [summary] = [adapter.summary() for adapter in engine.adapters.values()]
    assert summary["name"] == "test/doctor"
    assert summary["sha256"] is summary["rank"] is None


def test_transformers_serve_stops_when_the_stream_is_closed(transformers_serve: SimpleNamespace) -> None:
    engine = remote.open_remote(transformers_serve.url, "test/base", (), token=None)
    long = Sampling(max_tokens=100_000, temperature=0)  # minutes; it computes one reply after the other
    stream = start(engine, long)
    assert any(delta.text for delta in stream)
    stream.close()
    assert text(ask(engine))


def test_transformers_serve_does_not_know_a_model(transformers_serve: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"no model 'test/nurse'; it lists test/"):
        remote.open_remote(transformers_serve.url, "test/base", ("test/nurse",), token=None)


# Servers that misbehave: a real HTTP server each, whose answer to a chat request is the test's.


class Misbehaving:
    """A server with the models "base" and "doctor"; `chat(handler)` writes the raw answer to a chat request."""

    def __init__(self, chat: Callable[[BaseHTTPRequestHandler], None]):
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: Any = {"data": [{"id": "base"}, {"id": "doctor", "parent": "base"}]}
        self.tokenize: Any = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                respond(self, 200, json.dumps(outer.models))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    respond(self, 200 if outer.tokenize else 404, json.dumps(outer.tokenize))
                    return
                outer.headers.append(dict(self.headers))
                outer.requests.append(body)
                chat(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def open(self, *adapters: str) -> remote.RemoteEngine:
        return remote.open_remote(self.url, "", adapters, token=KEY)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Misbehaving]]:
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))
    servers: list[Misbehaving] = []

    def serve(chat: Callable[[BaseHTTPRequestHandler], None]) -> Misbehaving:
        servers.append(Misbehaving(chat))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def respond(handler: BaseHTTPRequestHandler, status: int, body: str, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body.encode())))
    handler.end_headers()
    handler.wfile.write(body.encode())


def refuse(status: int, body: str = '{"error": {"message": "no"}}') -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: respond(handler, status, body)


def events(handler: BaseHTTPRequestHandler, *lines: str, close: bool = True) -> None:
    """Write an event stream that promises more than it holds: what follows the lines is the connection's end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for line in lines:
        data = f"data: {line}\n\n".encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.flush()
    handler.close_connection = close


def chunk(content: str | None = None, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})


def test_no_server() -> None:
    with pytest.raises(UserError, match=r"cannot be reached.*Start it, or check --base-url"):
        remote.open_remote(f"http://127.0.0.1:{free_port()}", "", (), token=KEY)


def test_a_server_that_goes_away_after_the_start(misbehaving: Callable[..., Misbehaving]) -> None:
    server = misbehaving(refuse(200))
    engine = server.open()
    server.close()
    with pytest.raises(EngineError, match=r"cannot be reached.*Start it"):
        ask(engine)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "not the address"),
        ("localhost:8000", "not the address"),
        ("ftp://host/v1", "not the address"),
        ("http://[bad/v1", "not the address"),
        (f"http://me:{KEY}@host/v1", "holds a password"),
        (f"https://host/v1?key={KEY}", "holds a password or parameters"),
    ],
)
def test_addresses_that_are_none(url: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        remote.open_remote(url, "", (), token=None)
    assert KEY not in str(caught.value)


def test_a_key_that_no_header_can_carry_is_not_shown() -> None:
    with pytest.raises(UserError, match="MEDCHAT_API_KEY") as caught:
        remote.open_remote("http://127.0.0.1:9", "", (), token=f"{KEY}\nX: 1")
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("status", "tries", "expected"),
    [
        (401, 1, r"refused the key \(HTTP 401\).*MEDCHAT_API_KEY"),
        (403, 1, r"refused the key \(HTTP 403\).*MEDCHAT_API_KEY"),
        (404, 1, "no model 'doctor'.*--lora-modules"),
        (429, 3, r"too many requests \(HTTP 429: .*in a minute"),
        (500, 3, r"failed \(HTTP 500: "),
        (503, 3, r"failed \(HTTP 503: "),
        (400, 2, r"refused this request \(HTTP 400: .*new conversation"),  # the second without what is not standard
    ],
)
@pytest.mark.parametrize(
    "body", ['{"error": {"message": "You sent KEY."}}', '{"detail": "You sent KEY."}', "<p>You sent KEY.</p>"]
)
def test_refusals(
    misbehaving: Callable[..., Misbehaving],
    caplog: pytest.LogCaptureFixture,
    status: int,
    tries: int,
    expected: str,
    body: str,
) -> None:
    caplog.set_level("DEBUG")
    server = misbehaving(refuse(status, body.replace("KEY", KEY)))
    engine = server.open("doctor")
    with pytest.raises(EngineError, match=expected.split(": ")[0]) as caught:
        ask(engine, adapter="doctor")
    if status not in (401, 403) and not body.startswith("<"):
        assert "You sent ***." in str(caught.value)
    assert len(server.requests) == tries
    assert {request["model"] for request in server.requests} == {"doctor"}
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_a_hiccup_before_the_first_token_is_not_seen(misbehaving: Callable[..., Misbehaving]) -> None:
    def chat(handler: BaseHTTPRequestHandler) -> None:
        if len(server.requests) == 1:
            return refuse(503)(handler)
        if len(server.requests) == 2:
            return events(handler, chunk(""))  # a role, and the end
        events(handler, chunk("Rest "), chunk("well."), chunk(finish="stop"), "[DONE]")

    server = misbehaving(chat)
    deltas = ask(server.open())
    assert text(deltas) == "Rest well."
    assert deltas[-1].finish_reason == "stop"
    assert len(server.requests) == 3
    assert deltas[-1].stats is not None
    assert deltas[-1].stats.completion_tokens == 2  # no usage: chunks counted


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((), "closed the connection"),
        (("[DONE]",), "closed the connection"),  # no finish_reason
        (('{"error": {"message": "out of memory"}}',), r"stopped with an error \(out of memory\)"),
        (("<html>",), "no chat reply"),
    ],
)
def test_a_cut_in_mid_stream_keeps_what_came_and_is_not_repeated(
    misbehaving: Callable[..., Misbehaving], last: tuple[str, ...], expected: str
) -> None:
    server = misbehaving(lambda handler: events(handler, chunk("Drink "), chunk("water"), *last))
    deltas, error = broken(start(server.open()))
    assert text(deltas) == "Drink water"
    assert re.search(f"^The reply breaks off here: .*{expected}", error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "line",
    ["not JSON", "[1, 2]", '"text"', "null", '{"x": 1}', '{"choices": "abc"}', '{"choices": ["abc"]}', None],
)
def test_garbage(misbehaving: Callable[..., Misbehaving], line: str | None) -> None:
    page = "<html>Welcome to the portal</html>"
    server = misbehaving(lambda handler: events(handler, line) if line else respond(handler, 200, page, "text/html"))
    with pytest.raises(EngineError, match=r"What the server sends is no chat reply.*--base-url"):
        ask(server.open())
    assert len(server.requests) == 1


@pytest.mark.parametrize("models", ["<html>", {"data": [1]}, {"models": []}, [], None])
def test_a_list_of_models_that_is_none(misbehaving: Callable[..., Misbehaving], models: Any) -> None:
    server = misbehaving(refuse(200))
    server.models = models
    with pytest.raises(UserError, match="--base-url"):
        server.open()


def test_silence(misbehaving: Callable[..., Misbehaving], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "READ_SECONDS", 0.5)
    over = threading.Event()
    server = misbehaving(lambda handler: (events(handler, chunk("Well"), close=False), over.wait(20)))
    deltas, error = broken(start(server.open()))
    over.set()
    assert re.search(r"breaks off here: .*silent for 0\.5 seconds", error)
    assert text(deltas) == "Well"
    assert Delta("") in deltas  # what lets a consumer stop while it waits
    assert len(server.requests) == 1


@pytest.mark.parametrize("headers_sent", [True, False])
def test_closing_the_stream_closes_the_connection_of_a_silent_server(
    misbehaving: Callable[..., Misbehaving], headers_sent: bool
) -> None:
    closed = threading.Event()

    def chat(handler: BaseHTTPRequestHandler) -> None:
        if headers_sent:
            events(handler)
        handler.connection.settimeout(10)  # silent for so long, then it gives up
        with contextlib.suppress(TimeoutError):
            if handler.connection.recv(1) == b"":
                closed.set()

    server = misbehaving(chat)
    stream = start(server.open())
    assert next(stream) == Delta("")
    assert eventually(lambda: len(server.requests) == 1)
    assert not closed.is_set()
    stream.close()
    assert closed.wait(20)


def test_redirects_take_no_conversation_elsewhere(misbehaving: Callable[..., Misbehaving]) -> None:
    elsewhere = misbehaving(refuse(200))

    def chat(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"{elsewhere.url}/v1/chat/completions")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(EngineError):
        ask(misbehaving(chat).open())
    assert elsewhere.requests == []


def test_the_hubs_token_stays_here_and_offline_mode_does_not_matter(
    misbehaving: Callable[..., Misbehaving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server = misbehaving(lambda handler: events(handler, chunk("Fine."), chunk(finish="stop")))
    assert text(ask(remote.open_remote(server.url, "base", (), token=None))) == "Fine."
    assert all("authorization" not in {name.lower() for name in headers} for headers in server.headers)
    assert not any("hf_saved" in value for headers in server.headers for value in headers.values())


def test_vllms_own_words(misbehaving: Callable[..., Misbehaving]) -> None:
    """As vLLM documents them: `max_model_len` in /v1/models, /tokenize on messages, usage with cached tokens."""
    usage = {"prompt_tokens": 31, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 16}}
    end = json.dumps({"choices": [], "usage": usage})
    server = misbehaving(lambda handler: events(handler, chunk("Yes."), chunk(finish="length"), end, "[DONE]"))
    entries = [{"id": "doctor", "parent": "base", "max_model_len": 99}, {"id": "base", "max_model_len": 8192}]
    server.models = {"data": entries}
    server.tokenize = {"count": 31, "max_model_len": 8192, "tokens": [0] * 31}
    engine = server.open("doctor")
    assert engine.base == "base"
    assert engine.context == 8192
    assert engine.count_tokens(QUESTION) == 31
    last = ask(engine, adapter="doctor")[-1]
    assert last.finish_reason == "length"
    assert last.stats is not None
    assert (last.stats.prompt_tokens, last.stats.cached_tokens, last.stats.completion_tokens) == (31, 16, 2)
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    assert server.requests[0]["min_p"] == GREEDY.min_p
