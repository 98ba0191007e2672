"""Any OpenAI-compatible server (vLLM, TGI, Inference Endpoints, llama.cpp, `transformers serve`): past one machine."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.errors import InferenceTimeoutError, OverloadedError, TextGenerationError

from medchat.adapters import Adapter
from medchat.engines import Delta, EngineError, Sampling, Stats
from medchat.errors import Unavailable, UserError
from medchat.prompt import Message, plain

SLOTS = 16  # such servers batch; each conversation costs one connection and one waiting thread here
CONTEXT = 4096  # where the server does not say
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # of silence: before the first token, and between two
WAITS = (0.5, 2.0)  # seconds before the second and the third try

_KEY_FIX = "Set MEDCHAT_API_KEY to the key of this server."
_URL_FIX = "Give --base-url the address of an OpenAI-compatible API, http://HOST:8000/v1 for example."


class RemoteAdapter(Adapter):
    """An adapter that lives on the server: only its name is known here, neither weights nor rank nor folder."""

    def summary(self) -> dict[str, Any]:
        """Return what `/models` tells of it, None for what is not known."""
        return {**super().summary(), "sha256": None, "rank": None}


def open_remote(base_url: str, base: str, adapters: Sequence[str], *, token: str | None) -> RemoteEngine:
    """Return an engine on the server at `base_url`, its key `token` (None: it wants none).

    `base` and `adapters` are model names of the server; base "" is its first model. Raises Unavailable when the server
    is down, refuses the key or is no such server, UserError when it lists other models.
    """
    api = _address(base_url)
    if token and not re.fullmatch(r"[!-~]+", token):  # HTTP libraries would quote it in their errors
        raise UserError("The key of the server holds blanks or characters beyond ASCII.", _KEY_FIX)
    # The Hub's own client factory stops at HF_HUB_OFFLINE and follows redirects. This server is not the Hub, and a
    # conversation goes to the address that was given, nowhere else.
    certificates = httpx2.create_ssl_context()  # read once: 30 ms, which every first token would wait
    set_async_client_factory(
        lambda: httpx2.AsyncClient(verify=certificates, timeout=None, event_hooks={"response": [_read_refusal]})
    )
    try:
        models = _models(api, token)
    except Exception as error:
        what, fix = _problem(error, "", token)
        raise Unavailable(f"{base_url}: {what}", fix) from None
    if not base and not models:
        raise UserError(f"The server at {base_url} does not say which models it has.", "Name one with --base.")
    base = base or next((name for name, model in models.items() if not model.get("parent")), next(iter(models)))
    # Some servers answer to any name with the one model that they have, so a wrong name must be found here. A folder is
    # let through: `transformers serve` takes one, and lists only its cache.
    wanted = [*adapters] if base.startswith(("/", ".")) else [base, *adapters]
    if missing := [name for name in wanted if models and name not in models]:
        raise UserError(
            f"The server at {base_url} has no model {missing[0]!r}; it lists {', '.join([*models][:8])}.",
            "Choose one of these, or start the server with it (vLLM: --enable-lora --lora-modules NAME=PATH).",
        )
    served = {
        name: RemoteAdapter(name=name, source=f"{name} on the server", folder=Path(), sha256="", rank=0, base=base)
        for name in adapters
    }
    return RemoteEngine(api, base, served, _context(models.get(base, {})), token)


class RemoteEngine:
    """The models of a server, each known by its name; an adapter is one of them."""

    name = "remote"
    slots = SLOTS

    def __init__(self, api: str, base: str, adapters: Mapping[str, Adapter], context: int, token: str | None):
        self.base = base
        self.adapters = adapters
        self.context = context
        self._api = api
        self._token = token
        self._counts = self._how_it_counts()
        self._plain = False  # True once the server has refused what goes beyond OpenAI's oldest parameters

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield the reply, as engines.Engine.stream says; the connection closes when it ends, however it ends."""
        started = time.perf_counter()
        model = adapter or self.base
        answers: queue.SimpleQueue[_Piece | Exception | None] = queue.SimpleQueue()

        def receive() -> None:
            try:
                asyncio.run(_until(cancel, self._receive(model, plain(messages), sampling, answers.put)))
            except Exception as error:  # must reach the consumer, who would wait for ever
                answers.put(error)
            answers.put(None)

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        times: list[float] = []
        finish: str | None = None
        usage: dict[str, Any] = {}
        try:
            while True:
                try:
                    answer = answers.get(timeout=0.1)
                except queue.Empty:
                    yield Delta("")
                    continue
                if cancel.is_set():
                    yield Delta("", "cancelled")
                    return
                if answer is None:
                    break
                if isinstance(answer, Exception):
                    what, fix = _problem(answer, model, self._token)
                    # Not "from answer": an exception of the HTTP library may quote what the server sent.
                    raise EngineError(f"The reply breaks off here: {what}" if times else what, fix) from None
                text, finish, usage = answer[0], answer[1] or finish, answer[2] or usage
                if text:
                    times.append(time.perf_counter())
                yield Delta(text)
            yield Delta("", "length" if finish == "length" else "stop", _stats(usage, messages, started, times))
        finally:
            cancel.set()
            thread.join()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt: the server's count, or an estimate on the high side."""
        messages = list(messages)
        try:
            if self._counts == "messages":
                return int(self._tokenize({"model": self.base, "messages": messages})["count"])
            if self._counts == "text":
                prompt = self._post("/apply-template", {"messages": messages})["prompt"]
                body = {"content": prompt, "add_special": True, "parse_special": True}
                return len(self._tokenize(body)["tokens"])
        except (httpx2.HTTPError, ValueError, LookupError, TypeError):
            pass  # an estimate now is better than no reply
        return estimate(messages)

    async def _receive(
        self, model: str, messages: Sequence[Message], sampling: Sampling, put: Callable[[_Piece], None]
    ) -> None:
        """Put the reply piece by piece; up to three tries, and never another one after the first token."""
        plain, began = self._plain, False
        for wait in (*WAITS, None):
            finish, received = None, 0
            try:
                async with self._client() as client:
                    async for chunk in await client.chat_completion(**_request(model, messages, sampling, plain=plain)):
                        piece = _piece(chunk)
                        finish, received, began = piece[1] or finish, received + 1, began or bool(piece[0])
                        put(piece)
                if not received:
                    raise ValueError("no event")
                if not _whole(finish):
                    raise httpx2.RemoteProtocolError("closed before the end")
                self._plain = plain
                return
            except Exception as error:
                if _whole(finish) and isinstance(error, httpx2.TransportError):
                    return  # only the connection's end was rough
                if began or wait is None:
                    raise
                if not plain and _status(error) in (400, 422):
                    plain, wait = True, 0.0
                elif not _transient(error):
                    raise
            await asyncio.sleep(wait)

    def _client(self) -> AsyncInferenceClient:
        # The asynchronous one, because it can be stopped at any point: to close a socket does not wake a thread that
        # waits for it, and the server would hear of it only after its next token.
        timeout: Any = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)  # reaches the HTTP client as it is
        # Without a token of ours the client would send the Hub token that is saved on this machine.
        bare: Any = None if self._token else {"authorization": None}
        url = f"{self._api}/chat/completions"
        return AsyncInferenceClient(base_url=url, token=self._token or "none", headers=bare, timeout=timeout)

    def _how_it_counts(self) -> str:
        """Return what the server's /tokenize takes: "messages" (vLLM), "text" (llama.cpp), "" when it has none."""
        try:
            answer = self._tokenize({"model": self.base, "messages": [{"role": "user", "content": "Hello"}]})
        except (httpx2.HTTPError, ValueError):
            return ""
        if not isinstance(answer, dict):
            return ""
        return "messages" if "count" in answer else "text" if "tokens" in answer else ""

    def _tokenize(self, body: dict[str, Any]) -> Any:
        return self._post("/tokenize", body)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        url = self._api.removesuffix("/v1") + path
        return _json(httpx2.post(url, json=body, headers=_headers(self._token), timeout=CONNECT_SECONDS))


_Piece = tuple[str, str | None, dict[str, Any]]  # text, the server's finish_reason, its usage


def estimate(messages: Sequence[Message]) -> int:
    """Return an estimate, rather too high, of the tokens of `messages` as a prompt.

    A third of the characters (English has about four a token), half of the bytes that they take beyond ASCII (a Chinese
    character is one or two tokens), and 9 tokens for the frame of a turn.
    """
    text = "".join(message["content"] for message in messages)
    return len(text) // 3 + (len(text.encode()) - len(text)) // 2 + 9 * (len(messages) + 1)


async def _until(cancel: Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end or until `cancel` is set: cancelled, it closes its connection at whatever point it is."""
    task = asyncio.ensure_future(work)
    while not task.done() and not cancel.is_set():
        await asyncio.wait({task}, timeout=0.05)
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _request(model: str, messages: Sequence[Message], sampling: Sampling, *, plain: bool) -> dict[str, Any]:
    request = {
        "model": model,
        "messages": list(messages),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "stream": True,
    }
    if plain:
        return request
    # Penalties under vLLM's and llama.cpp's name; each ignores the other's. llama.cpp notices that a connection is gone
    # only when it writes: with return_progress it does so between the steps of a prompt, and stops reading it.
    penalty = {"repetition_penalty": sampling.repetition_penalty, "repeat_penalty": sampling.repetition_penalty}
    extra = {"min_p": sampling.min_p, **penalty, "return_progress": True}
    return {**request, "stream_options": {"include_usage": True}, "extra_body": extra}


def _piece(chunk: Any) -> _Piece:
    """Return what a chunk says; raises ValueError when it is none. The last one may hold the usage and no choice."""
    if not isinstance(chunk.choices, list):
        raise ValueError("no choices")
    usage = chunk.usage if isinstance(chunk.usage, dict) else {}
    if not chunk.choices:
        return "", None, usage
    choice = chunk.choices[0]
    text = (choice.delta.content if choice.delta else None) or ""
    if not isinstance(text, str):
        raise ValueError("no text")
    return text, choice.finish_reason, usage


def _whole(finish: str | None) -> bool:
    return finish not in (None, "abort", "error")  # vLLM's words when it is shut down, and when it fails


def _stats(usage: dict[str, Any], messages: Sequence[Message], started: float, times: Sequence[float]) -> Stats:
    tokens = usage.get("completion_tokens") or len(times)  # servers send a chunk for each token, mostly
    seconds = times[-1] - times[0] if times else 0.0
    return Stats(
        prompt_tokens=usage.get("prompt_tokens") or estimate(messages),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        completion_tokens=tokens,
        first_token_seconds=(times[0] if times else time.perf_counter()) - started,
        tokens_per_second=(tokens - 1) / seconds if seconds else 0.0,
    )


def _address(base_url: str) -> str:
    """Return the address under which /models and /chat/completions lie; a bare host gets OpenAI's /v1."""
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{base_url!r} is not the address of a server.", _URL_FIX)
    if parts.username or parts.password or parts.query:
        raise UserError("The server's address holds a password or parameters, which logs would show.", _KEY_FIX)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _models(api: str, token: str | None) -> dict[str, dict[str, Any]]:
    """Return the server's models by name, {} when it keeps no list."""
    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    response = httpx2.get(f"{api}/models", headers=_headers(token), timeout=timeout)
    if response.status_code in (404, 405):
        return {}
    return {model["id"]: model for model in _json(response)["data"]}


def _context(model: dict[str, Any]) -> int:
    """Return the context of an entry of /models: vLLM's name for it, llama.cpp's two, or the default."""
    meta = model.get("meta") or {}
    return model.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train") or CONTEXT


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _json(response: httpx2.Response) -> Any:
    return response.raise_for_status().json()


async def _read_refusal(response: httpx2.Response) -> None:
    if response.status_code >= 400:
        await response.aread()  # for _detail(); a stream is not read by itself


def _transient(error: Exception) -> bool:
    """Return whether the same request may succeed in a moment. A minute of silence is not tried a second time."""
    if status := _status(error):
        return status == 429 or status >= 500
    cause = _cause(error)
    return isinstance(cause, (httpx2.ConnectTimeout, httpx2.NetworkError, httpx2.RemoteProtocolError, OverloadedError))


def _status(error: BaseException) -> int:
    """Return the HTTP status of a refusal, 0 for any other error."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _problem(error: Exception, model: str, token: str | None) -> tuple[str, str]:
    """Return what happened and what to do, without the key."""
    cause = _cause(error)
    response: httpx2.Response | None = getattr(cause, "response", None)  # of the Hub's error and of httpx2's
    if response is not None and response.status_code >= 400:
        return _refusal(response, model, token)
    if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        reason = _clean(cause, token) or "no answer"
        return f"The model's server cannot be reached ({reason}).", "Start it, or check --base-url and the network."
    if isinstance(cause, httpx2.TimeoutException):
        return f"The model's server was silent for {READ_SECONDS:g} seconds.", "Please send the message again."
    if isinstance(cause, httpx2.TransportError):
        return "The model's server closed the connection.", "Please send the message again."
    if isinstance(cause, TextGenerationError):
        detail = _clean(_message(cause.args[0] if cause.args else ""), token)
        return f"The model's server stopped with an error ({detail}).", "Please send the message again."
    return f"What the server sends is no chat reply ({type(cause).__name__}).", _URL_FIX


def _refusal(response: httpx2.Response, model: str, token: str | None) -> tuple[str, str]:
    status, detail = response.status_code, _detail(response, token)
    if status in (401, 403):
        what = "refused the key" if token else "wants a key"
        return f"The model's server {what} (HTTP {status}).", _KEY_FIX
    if status == 404:
        return (
            f"The model's server has no model {model!r} ({detail}).",
            "Check --base, --adapter and --base-url (vLLM serves an adapter with --lora-modules NAME=PATH).",
        )
    if status == 429:
        return f"The model's server has too many requests ({detail}).", "Please send the message again in a minute."
    if status >= 500:
        return f"The model's server failed ({detail}).", "Please send the message again; its log says more."
    return f"The model's server refused this request ({detail}).", "Please start a new conversation."


def _detail(response: httpx2.Response, token: str | None) -> str:
    try:
        message = _clean(_message(response.json()), token)
    except ValueError:  # a page of some proxy
        message = ""
    return f"HTTP {response.status_code}: {message}" if message else f"HTTP {response.status_code}"


def _message(body: Any) -> Any:
    """Return the sentence in an error, wherever the server puts it."""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    return body


def _clean(text: object, token: str | None) -> str:
    line = " ".join(str(text).split())
    return (line.replace(token, "***") if token else line)[:200]


def _cause(error: Exception) -> BaseException:
    # The Hub's client wraps the time-outs before the first byte, and passes those after it on.
    return error.__cause__ or error if isinstance(error, InferenceTimeoutError) else error
