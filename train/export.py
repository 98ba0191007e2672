"""`python -m train export ADAPTER_DIR --format gguf --output FILE`: for llama.cpp and Ollama, checked by loading it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from medchat import adapters, embedded
from medchat.adapters import Adapter
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp, usable_cores
from medchat.errors import UserError
from medchat.gguf_header import GGUFHeader, read_header
from medchat.prompt import DATE, SYSTEM, Message, Template
from train.card import licences
from train.merge import QUESTIONS, base_of, conversation, recipe_of

CONTEXT = 2048  # tokens, for the check
REPLY_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="adapter folder, Hub id, or `embedded`")
    parser.add_argument("--format", choices=["gguf"], default="gguf", help="GGUF, the format of llama.cpp and Ollama")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write, ending in .gguf")
    parser.add_argument(
        "--base", default="", metavar="FILE|embedded", help="GGUF file of the base (default: the embedded one)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, and print how to use what was written."""
    lora, modelfile, base = export(arguments.adapter, arguments.output, base=arguments.base)
    print(f"{lora}: the adapter; plain llama.cpp gives the same greedy text with it as MedChat does.")
    print(f"  llama-server -m {base} --lora {lora}")
    print(f"{modelfile}: for Ollama")
    print(f"  ollama create {lora.stem.lower()} -f {modelfile}")


def export(source: str, output: Path, *, base: str = "") -> tuple[Path, Path, Path]:
    """Write the adapter as a GGUF LoRA with an Ollama Modelfile beside it; return both paths and the base's.

    The file is loaded in llama.cpp, without any of our code between, and must give the greedy text that the app's
    engine gives; otherwise nothing is written. Raises UserError for a base that is no GGUF file or does not fit, an
    adapter that a GGUF LoRA cannot hold, an output that exists, and texts that differ.
    """
    adapter = adapters.open_adapter(source)
    path = _base_file(adapter, base)
    modelfile = output.with_name(f"{output.stem}.Modelfile")
    problems = [f"{file} exists already" for file in (output, modelfile) if file.exists()]
    if output.suffix != ".gguf":
        problems.append(f"{output} does not end in .gguf")
    if problems:
        raise UserError(f"{'; '.join(problems)}.", "Choose another --output.")
    header = read_header(path)
    lora = adapters.to_gguf(adapter, header)  # in the cache

    plain = _Plain(path, lora, adapter.template)
    template = Template(*plain.template())
    sampling = Sampling(temperature=0, max_tokens=REPLY_TOKENS, repetition_penalty=1)
    engine = open_llama_cpp(str(path), [source], grouped=False)
    (name,) = engine.adapters
    for question in QUESTIONS[:3]:
        messages = conversation(adapter, question)
        stream = engine.stream(messages, adapter=name, sampling=sampling, cancel=Event())
        ours, theirs = "".join(delta.text for delta in stream), plain.reply(messages)
        if ours != theirs:
            raise UserError(
                f"To {question!r} llama.cpp answers {theirs[:80]!r}, the app's engine {ours[:80]!r}.",
                "Nothing was written. Please report this with the adapter's name.",
            )
    adds_bos = bool(engine.tokenize("", add_special=True))
    text = ollama_modelfile(adapter, template, header, _from(path, output.parent), output.name, adds_bos=adds_bos)
    _write(output, modelfile, lora, text)
    return output, modelfile, path


def ollama_modelfile(
    adapter: Adapter, template: Template, header: GGUFHeader, base: str, lora: str, *, adds_bos: bool
) -> str:
    """Return the Modelfile: https://docs.ollama.com/modelfile; `base` and `lora` are what FROM and ADAPTER name.

    TEMPLATE is left out, with a note on stderr, for a chat template that cannot be written in Ollama's language.
    """
    sampling = Sampling()
    trained_on = header.metadata.get(f"{header.metadata['general.architecture']}.context_length", 4096)
    lines = [
        "# Research and education only; never a doctor's substitute.",
        f"FROM {base}",
        f"ADAPTER ./{lora}",
    ]
    if (turns := read_turns(template, adds_bos=adds_bos)) is not None:
        lines.append(f'TEMPLATE """{turns.go()}"""')
    else:
        print("The chat template has no counterpart in Ollama: the Modelfile leaves it to the base.", file=sys.stderr)
    if system := SYSTEM if adapter.system is None else adapter.system:
        lines.append('SYSTEM """' + system.replace('"""', '"') + '"""')
    parameters = {
        "stop": json.dumps(template.eos) if template.eos else None,
        "num_ctx": min(4096, trained_on),
        "num_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": 0,
        "top_p": 1,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": 64,
    }
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items() if value is not None]
    recipe = recipe_of(adapter.folder)
    sources = [(what, licence.text) for what, licence in licences(adapter.base, recipe)]
    lines.append('LICENSE """' + "\n".join(f"{what}: {text}" for what, text in sources) + '"""')
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Turns:
    """A chat template as the text between the contents of its turns.

    `system` comes before a system prompt, `first` before the first question after one, `alone` before the first
    question without one, `later` and `later_alone` before each further question; `reply` stands between a question and
    its answer.
    """

    system: str
    first: str
    alone: str
    later: str
    later_alone: str
    reply: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt: what `go()` gives in Ollama."""
        text, has_system = "", False
        for i, message in enumerate(messages):
            if message["role"] == "system":
                has_system = True
                text += self.system + message["content"]
            elif message["role"] == "user":
                later = self.later if has_system else self.later_alone
                before = self.alone if i == 0 else self.first if has_system and i == 1 else later
                text += before + message["content"] + self.reply
            else:
                text += message["content"]
        return text

    def go(self) -> str:
        """Return the template in Go's text/template, with Ollama's variables."""
        later = self.later
        if self.later_alone != self.later:
            later = "{{ if $system }}" + self.later + "{{ else }}" + self.later_alone + "{{ end }}"
        # No "{{-": it would take away the line break before it, which belongs to the template.
        return "".join(
            [
                "{{ $system := false }}{{ range $i, $_ := .Messages }}",
                *('{{ if eq .Role "system" }}{{ $system = true }}', self.system, "{{ .Content }}"),
                *('{{ else if eq .Role "user" }}{{ if eq $i 0 }}', self.alone),
                *("{{ else if and $system (eq $i 1) }}", self.first, "{{ else }}", later, "{{ end }}"),
                *("{{ .Content }}", self.reply),
                "{{ else }}{{ .Content }}{{ end }}{{ end }}",
            ]
        )


def read_turns(template: Template, *, adds_bos: bool) -> Turns | None:
    """Return the text between the turns of a chat template, None when it is not of that kind.

    It is read off a rendered conversation, and then must render other conversations as the template does. Without the
    BOS where the model adds it by itself.
    """
    bos = template.bos if adds_bos else ""
    s, q, a = "<S0>", ["<Q0>", "<Q1>", "<Q2>"], ["<A0>", "<A1>"]

    def cut(with_system: bool) -> list[str]:
        contents = [*([s] if with_system else []), q[0], a[0], q[1], a[1], q[2]]
        rest, pieces = template.render(_messages(contents, with_system)).removeprefix(bos), []
        for content in contents:
            before, found, rest = rest.partition(content)
            if not found:
                raise ValueError(f"{content} is not in the prompt")
            pieces.append(before)
        return [*pieces, rest]

    try:
        system, first, reply, later, *_ = cut(with_system=True)
        alone, _, later_alone, *_ = cut(with_system=False)
        turns = Turns(system, first, alone, later, later_alone, reply)
        # What a Modelfile would take for its own.
        if any('"""' in part or "{{" in part for part in vars(turns).values()):
            return None
        for with_system in (True, False):
            for length in (1, 3, 5):
                contents = [*(["Be kind."] if with_system else []), *["Yes?", "No.", "Why?", "So.", "Ah?"][:length]]
                messages = _messages(contents, with_system)
                if turns.render(messages) != template.render(messages).removeprefix(bos):
                    return None
    except ValueError:  # the template refuses such conversations
        return None
    return turns


def _messages(contents: list[str], with_system: bool) -> list[Message]:
    roles = [*(["system"] if with_system else []), *["user", "assistant"] * 3]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


class _Plain:
    """llama.cpp as it comes: its own template engine, its own tokens, one conversation at a time."""

    def __init__(self, base: Path, lora: Path, template: str | None):
        xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without type stubs
        entry = xllamacpp.CommonAdapterLoraInfo()
        entry.path, entry.scale = str(lora), 1.0
        params = xllamacpp.CommonParams()
        params.model.path, params.lora_adapters = str(base), [entry]
        params.n_ctx, params.n_parallel, params.verbosity = CONTEXT, 1, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable_cores()
        params.chat_template = template or ""
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise UserError(
                f"llama.cpp could not load {base.name} with the exported adapter ({error}).", "Check free memory."
            ) from error

    def template(self) -> tuple[str, str, str]:
        """Return the chat template with the texts of BOS and end token."""
        with urllib.request.urlopen(f"{self._server.listening_address}/props", timeout=60) as answer:
            properties = json.load(answer)
        return properties["chat_template"], properties["bos_token"], properties["eos_token"]

    def reply(self, messages: Sequence[Message]) -> str:
        """Return the greedy reply."""
        request = {
            "messages": list(messages),
            "max_tokens": REPLY_TOKENS,
            "temperature": 0,
            "chat_template_kwargs": {"date_string": DATE.strftime("%d %b %Y")},  # Llama 3.2 writes it into the prompt
        }
        answer = self._server.handle_chat_completions(request)
        if "choices" not in answer:
            raise UserError(f"llama.cpp refuses the chat template ({answer}).", "Nothing was written.")
        return answer["choices"][0]["message"]["content"]


def _base_file(adapter: Adapter, base: str) -> Path:
    chosen = base or base_of(adapter)
    if chosen == "embedded":
        return embedded.gguf_path()
    path = Path(chosen).expanduser()
    if not path.is_file():
        what = "" if base else f" The adapter was trained on {chosen}."
        raise UserError(
            f"A GGUF LoRA is made for a GGUF base, and {chosen!r} is no such file.{what}",
            "Download a GGUF copy of the base and name it: --base FILE.gguf",
        )
    return path


def _from(base: Path, folder: Path) -> str:
    """Return what FROM names: the embedded base by its Hub id, which works on every machine, else the file."""
    if base.name == embedded.FILE:
        return f"hf.co/{embedded.HUB_ID}:{base.stem.rpartition('.')[2]}"
    base, folder = base.resolve(), folder.resolve()
    return f"./{base.relative_to(folder)}" if base.is_relative_to(folder) else str(base)


def _write(output: Path, modelfile: Path, lora: Path, text: str) -> None:
    """Write both files, each whole or not at all."""
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(lora, partial)
        modelfile.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        modelfile.unlink(missing_ok=True)
        raise UserError(f"{output} could not be written: {error.strerror}.", "Choose another --output.") from error
    finally:
        partial.unlink(missing_ok=True)
