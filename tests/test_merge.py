"""Merging on a tiny random Llama: the saved model, its error, and what goes wrong on the way."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from medchat import adapters
from medchat.errors import UserError
from tests.test_export import copy_with
from train import recipe
from train.merge import QUESTIONS, base_of, merge, new_folder

needs_4bit = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny adapter as `train sft` leaves one: base recorded, recipe, chat template."""
    folder = copy_with(
        tiny / "adapter", tmp_path_factory.mktemp("trained") / "adapter", base_model_name_or_path=str(tiny / "base")
    )
    (folder / "recipe.yaml").write_text(recipe.load("embedded", [f"base={tiny / 'base'}", "method=qlora"]).to_yaml())
    shutil.copy(tiny / "base" / "chat_template.jinja", folder)
    return folder


def test_into_full_precision(trained: Path, tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    template = (trained / "chat_template.jinja").read_text()
    errors = merge(str(trained), tmp_path / "out", into="full", shard_size="200KB")
    relative, same = errors["full"]
    assert relative < 1e-5
    assert same == 1

    # Plain transformers knows nothing of adapters.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny / "base")
    ids = tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        plain, bare = model(ids).logits, base(ids).logits
        expected = PeftModel.from_pretrained(base, str(trained))(ids).logits
    assert torch.allclose(plain, expected, atol=1e-4)
    assert not torch.allclose(plain, bare, atol=1)
    assert tokenizer.chat_template == template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors.index.json", "generation_config.json", "README.md"} <= files
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    assert "| the full-precision base + adapter | 0.0000 | 100.0% |" in (tmp_path / "out" / "README.md").read_text()
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


@needs_4bit
def test_into_what_4_bits_left(trained: Path, tmp_path: Path) -> None:
    errors = merge(str(trained), tmp_path / "out")  # the recipe says qlora
    assert errors["4bit"][0] < 1e-3  # against the base that the adapter was trained on ...
    assert errors["full"][0] > 0.02  # ... which is not the base at full precision
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config


def test_the_adapters_end_of_turn_ends_the_merged_models_replies(trained: Path, tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny / "base", base)
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 0}))
    merge(str(trained), tmp_path / "out", into="full", base=str(base))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits there")
def test_a_full_disk_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python turns the signal into an error of the write
    try:
        with pytest.raises(UserError, match=r"could not be written: .*Nothing is left"):
            merge(str(trained), tmp_path / "new" / "out", into="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new").iterdir()) == []


def test_there_is_room_before_anything_is_loaded(trained: Path, tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "huge"
    base.mkdir()
    config = json.loads((tiny / "base" / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "vocab_size": 10**13})
    )  # 2,560 TB of embeddings, and a head
    with pytest.raises(UserError, match=r"The model takes 5,120,000\.\d GB, and the disk of .* GB left"):
        merge(str(trained), tmp_path / "out", base=str(base))


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with new_folder(tmp_path / "out", room=0) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_names_the_base_where_the_adapter_does_not(tiny: Path, tmp_path: Path) -> None:
    folder = copy_with(tiny / "adapter", tmp_path / "adapter", base_model_name_or_path=None)
    (folder / "recipe.yaml").write_text(recipe.load("embedded", ["base=clinic/small"]).to_yaml())
    adapter = adapters.open_adapter(str(folder))
    assert base_of(adapter) == "clinic/small"
    assert base_of(adapter, "clinic/other") == "clinic/other"


def test_what_cannot_be_merged(trained: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny / "base", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    quantized = tmp_path / "quantized"
    shutil.copytree(tiny / "base", quantized)
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for source, output, base, sentence in [
        (str(tiny / "adapter"), "out", "", "does not say which base .*--base"),  # no recipe, no base recorded
        (str(trained), "out", str(other), "does not fit this base"),
        (str(trained), "out", str(quantized), "is quantized itself"),
        (str(trained), "out", str(tmp_path / "absent"), "There is no base"),
        (str(trained), "out", "model.gguf", "GGUF file, which cannot be merged"),
        (str(trained), "full", str(tiny / "base"), "exists already"),
        (str(tmp_path / "absent"), "out", "", "no adapter folder"),
        (str(tiny / "base"), "out", "", "is a full model, not an adapter"),
    ]:
        with pytest.raises(UserError, match=sentence):
            merge(source, tmp_path / output, base=base)
    assert not (tmp_path / "out").exists()
    assert (trained / adapters.WEIGHTS).is_file()
