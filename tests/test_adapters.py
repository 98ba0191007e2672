"""What is not a usable adapter is refused with a sentence that says what to do."""

from __future__ import annotations

import json
import shutil

import pytest

from medchat import adapters
from medchat.errors import UserError
from medchat.gguf_header import read_header


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny / "adapter", tmp_path / "adapter")


def edit_config(folder, **values):
    path = folder / adapters.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder, base=None):
    def use():
        adapter = adapters.open_adapter(str(folder))
        if base:
            adapters.to_gguf(adapter, read_header(base))

    with pytest.raises(UserError) as error:
        use()
    assert error.value.fix.endswith(".")
    return str(error.value)


def test_a_good_adapter_is_described(copy):
    adapter = adapters.open_adapter(str(copy))
    assert (adapter.name, adapter.rank, len(adapter.sha256)) == ("adapter", 8, 64)
    assert adapter.summary()["sha256"] == adapter.sha256


def test_the_embedded_adapter_names_its_public_base_and_brings_its_template():
    adapter = adapters.open_adapter("embedded")
    assert adapter.name == "medchat"
    assert adapter.base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert adapter.template
    assert (adapter.folder / adapters.WEIGHTS).stat().st_size < 10_000_000


def test_missing_path(tmp_path):
    assert "no adapter folder" in refusal(tmp_path / "nowhere")


def test_not_an_adapter(tmp_path):
    assert adapters.CONFIG in refusal(tmp_path)


def test_only_a_pickle_inside(copy):
    (copy / adapters.WEIGHTS).rename(copy / "adapter_model.bin")
    assert "pickle" in refusal(copy)


def test_truncated_weights(copy):
    path = copy / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refusal(copy)


def test_broken_config(copy):
    (copy / adapters.CONFIG).write_text("{")
    assert "JSON" in refusal(copy)


def test_another_kind_of_adapter(copy):
    edit_config(copy, peft_type="IA3")
    assert "IA3" in refusal(copy)


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_what_llama_cpp_cannot_add(copy, tiny, extra):
    edit_config(copy, **extra)
    assert "llama.cpp" in refusal(copy, tiny / "base.gguf")


def test_wrong_shapes_for_this_base_name_the_right_base(copy):
    from medchat import embedded

    edit_config(copy, base_model_name_or_path="someone/tiny-llama")
    text = refusal(copy, embedded.gguf_path())
    assert "down_proj is 128 x 64, the base's is 1536 x 576" in text
    assert "someone/tiny-llama" in text


def test_an_adapter_for_other_modules(copy, tiny, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / adapters.WEIGHTS)
    save_file({name.replace("q_proj", "query"): value for name, value in tensors.items()}, copy / adapters.WEIGHTS)
    assert "the base has no model.layers.0.self_attn.query" in refusal(copy, tiny / "base.gguf")
