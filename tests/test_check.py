"""`train check`: everything is looked at before an hour is spent, and all problems come at once."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any

import pytest

from medchat.errors import UserError
from tests.conftest import ROOT
from tests.hub import Hub
from tests.sample_data import write_sample_hub
from train import check, data, estimate, recipe

PUBLISHED = [
    "chatdoctor-stage1",
    "chatdoctor-stage2",
    "doctor-llama",
    "llama3-qlora",
    "llamatron-rs1",
    "medalpaca-lora",
]


@pytest.fixture(scope="module", autouse=True)
def sample(tmp_path_factory):
    """A DATASETS_MIRROR with sample rows of every data set, and caches of this module's own."""
    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASETS_MIRROR", str(write_sample_hub(folder / "hub")))
        patch.setenv("MEDCHAT_CACHE", str(folder / "cache"))
        patch.setattr(check, "PROBE_SECONDS", 0)  # the recipe's own batch size, no other
        yield folder


def checked(name, tiny, tmp_path, *overrides):
    """Return what check prints about a recipe on the tiny base."""
    out = io.StringIO()
    with redirect_stdout(out):
        check.run(recipe.load(name, [f"base={tiny / 'base'}", f"output_dir={tmp_path / 'out'}", *overrides]))
    return out.getvalue()


def refused(name, *overrides):
    with pytest.raises(UserError) as error, redirect_stdout(io.StringIO()):
        check.run(recipe.load(name, overrides))
    return str(error.value)


@pytest.mark.parametrize("name", [*PUBLISHED, "embedded", "medchat-3b"])
def test_every_recipe_passes_on_a_machine_without_a_gpu(name, tiny, tmp_path):
    text = checked(name, tiny, tmp_path, *(["held_out=0.1"] if name == "embedded" else []))
    assert text.endswith("Ready to train.\n")
    for source in recipe.load(name).data[:3]:
        assert source.dataset in text
    assert "learned | " in text
    assert "its end token '<|im_end|>'; nothing else is." in text
    assert " tokens/s, " in text
    assert not (tmp_path / "out").exists()
    assert "\033[" not in text  # no colours where nobody looks
    if recipe.load(name).method == "qlora":
        assert "This recipe is for a GPU. So small a base trains here too, faster with: method=lora" in text


def test_what_is_shown_as_learned_is_the_answers(tiny, tmp_path):
    text = checked("chatdoctor-stage2", tiny, tmp_path)
    shown = text.partition("What is learned")[2].partition("Lengths")[0]
    learned = [line for line in shown.splitlines() if "learned | " in line]
    assert len(learned) == 3  # of three sources
    assert all(line.endswith("<|im_end|>") for line in learned)
    rows: Any = data.load(recipe.load("chatdoctor-stage2")).train
    answers = {row["messages"][-1]["content"] for row in rows}
    assert all(line.partition("learned | ")[2].removesuffix("<|im_end|>") in answers for line in learned)
    assert shown.count("read | ") == 3
    assert all("### Input:" in part for part in shown.split("learned | ")[:3])


def test_colours_only_for_people(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    with redirect_stdout(Terminal()):
        assert check._colour("2", "a") == "\033[2ma\033[0m"
        monkeypatch.setenv("NO_COLOR", "1")
        assert check._colour("2", "a") == "a"
    with redirect_stdout(io.StringIO()):
        monkeypatch.delenv("NO_COLOR")
        assert check._colour("2", "a") == "a"


def test_a_template_whose_answers_do_not_end_is_a_problem(tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny / "base", base)
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    for path in base.glob("*chat_template*"):
        path.write_text(endless)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = endless
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    text = refused("llamatron-rs1", f"base={base}", f"output_dir={tmp_path / 'out'}")
    assert "its answers cannot be located" in text
    assert "template=llama-3, llama-3.2 or alpaca" in text
    assert checked("llamatron-rs1", tiny, tmp_path, f"base={base}", "template=alpaca")


def test_the_ledger_counts_what_does_not_fit_and_suggests_a_length(tiny, tmp_path):
    text = checked("llamatron-rs1", tiny, tmp_path, "sft.max_length=190")
    lengths = text.partition("Lengths")[2].partition("Probe")[0]
    assert re.search(r" [1-9]\d* questions are shortened, answers never", lengths)
    assert "For 99 % of the rows whole: sft.max_length=" in lengths
    suggested = lengths.rpartition("sft.max_length=")[2].split()[0]
    text = checked("llamatron-rs1", tiny, tmp_path, f"sft.max_length={suggested}")
    assert "100.0% fit, 0 questions are shortened, answers never, and 0 rows" in text


def test_all_problems_come_at_once(tiny, tmp_path):
    text = refused(
        "llamatron-rs1",
        f"base={tiny / 'base'}",
        f"output_dir={tmp_path / 'out'}",
        "lora.targets=[q_proj, query]",
        "sft.max_length=4096",
        "data=[{dataset: no/such}, {dataset: nor/this}]",
    )
    assert "3 problems" in text
    assert "names query, which this base does not have. Choose among q_proj, k_proj" in text
    assert "Type sft.max_length=1024" in text
    assert "no/such" in text
    assert "nor/this" in text


def test_a_base_of_another_architecture_or_without_any_is_a_sentence(tmp_path):
    from transformers import GPT2Config

    GPT2Config().save_pretrained(tmp_path)
    assert "is a gpt2 model. Choose one of the Llama architecture." in refused("llamatron-rs1", f"base={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert "could not be loaded" in refused("llamatron-rs1", f"base={tmp_path}")


def test_every_answer_too_long_says_which_length_would_do(tiny, tmp_path):
    text = refused("llamatron-rs1", f"base={tiny / 'base'}", f"output_dir={tmp_path / 'out'}", "sft.max_length=64")
    assert "Every answer is longer than 64 tokens. Type sft.max_length=256" in text


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("medchat-3b", "base=embedded method=lora sft.optimizer=adamw"),
        ("chatdoctor-stage1", "base=embedded template=null method=lora"),
        ("medalpaca-lora", "base=embedded template=null"),
    ],
)
def test_a_recipe_for_a_gpu_offers_the_change_and_the_change_works(name, fix):
    """HF_HUB_OFFLINE is set: nothing is known of the base but its name."""
    text = refused(name)
    assert "for a GPU, and there is none here" in text
    assert fix in text
    assert "HF_HUB_OFFLINE=1" in text
    offered = text.partition("type behind it: ")[2].splitlines()[0].split()
    changed = recipe.load(name, offered)
    assert changed.base == "embedded"
    assert not check.for_cpu(changed)


def test_a_base_that_another_recipe_makes_says_which():
    assert "Type: python -m train sft chatdoctor-stage1" in refused("chatdoctor-stage2")


def test_an_output_folder_of_another_run_is_found_now_and_not_after_loading(tiny, tmp_path):
    (tmp_path / "recipe.yaml").write_text("description: another\n")
    text = refused("llamatron-rs1", f"base={tiny / 'base'}", f"output_dir={tmp_path}")
    assert "holds a run of another recipe" in text


def test_too_little_disk_is_a_problem(tiny, tmp_path):
    text = refused("llamatron-rs1", f"base={tiny / 'base'}", f"output_dir={tmp_path / 'out'}", "sft.keep=1000000000")
    assert "GB are needed. Make room" in text


# --- the Hub: access, gates and silence, by its real client ---

_SHELL = """
import json, os, sys
from medchat.errors import UserError
from train import check, recipe
for line in sys.stdin:
    variables, overrides = json.loads(line)
    os.environ.update(variables)
    try:
        check.run(recipe.load("llamatron-rs1", overrides))
        print("exit 0")
    except UserError as error:
        print(error, "exit 2")
    print("<end>", flush=True)
"""


def test_gated_bases_and_an_absent_network_say_what_to_do(tiny, tmp_path):
    """One process for all, for its client reads the Hub's address only once."""

    def ask(*overrides, **variables):
        print(json.dumps([variables, overrides]), file=process.stdin, flush=True)
        return "".join(iter(process.stdout.readline, "<end>\n"))

    with Hub(tmp_path) as hub:
        hub.add("meta/gated", {p.name: p.read_bytes() for p in (tiny / "base").iterdir()}, gated=True)
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        process: Any = subprocess.Popen([sys.executable, "-c", _SHELL], env=hub.env(tmp_path / "home"), **pipes)
        with process:
            text = ask("base=meta/gated")
            assert f"'meta/gated' is gated. Accept its terms at {hub.url}/meta/gated and set HF_TOKEN" in text
            assert "lavita/ChatDoctor-HealthCareMagic-100k | 29" in text  # the rest is looked at all the same
            assert text.endswith("exit 2\n")
            text = ask("base=meta/gated", HF_TOKEN=hub.token)
            assert "to be fetched" in text
            assert "HF_TOKEN is set" in text
            assert text.endswith("exit 0\n")
            asked = [line for line in hub.requests if line.startswith("GET") and "safetensors" in line]
            assert not asked  # only its numbers were read
            hub.fail_next("meta/other", times=100)  # by silence
            text = ask("base=meta/other")
            assert "cannot be reached, and 'meta/other' is not on this machine. Check the network" in text
            assert text.endswith("exit 2\n")
            process.stdin.close()


# --- the estimates ---


def base_numbers(tmp_path, **sizes):
    """Return the numbers of a base of the Llama architecture of which only config.json exists."""
    from transformers import LlamaConfig

    LlamaConfig(**sizes).save_pretrained(tmp_path)
    return estimate.read_base(recipe.load("doctor-llama", [f"base={tmp_path}"]))


LLAMA_3B = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
LLAMA_1B = LLAMA_3B | {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "head_dim": 64,
}


def test_the_numbers_of_the_published_bases(tmp_path):
    """3,212,749,824 parameters of Llama 3.2 3B; 11.27 M trained by LlamaTron, as its card says; none is loaded."""
    large = base_numbers(tmp_path / "3b", **LLAMA_3B)
    assert large.parameters == 3_212_749_824
    assert not large.local
    small = base_numbers(tmp_path / "1b", **LLAMA_1B)
    assert small.trained(recipe.load("llamatron-rs1")) == 11_272_192
    assert large.trained(recipe.load("doctor-llama")) == 28 * 64 * ((3072 + 3072) + (3072 + 1024))


def test_memory_of_a_3b_base_in_four_bits_and_of_all_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("train.sft.uses_bf16", lambda _: True)
    base = base_numbers(tmp_path, **LLAMA_3B)
    gpu = estimate.Machine("cuda", "a GPU", 1, int(8e9), int(8e9), 1e13)
    quantized = estimate.memory(recipe.load("medchat-3b"), base, gpu)
    assert 2.1e9 < quantized["weights"] < 2.4e9  # 2.82 B in 4.13 bits, 0.39 B of embeddings in 16
    assert sum(quantized.values()) < 6e9
    full = estimate.memory(recipe.load("medchat-3b", ["method=full", "sft.optimizer=adamw"]), base, gpu)
    assert full["weights"] + full["trained"] == base.parameters * 18
    problem = check._show_memory(recipe.load("medchat-3b", ["method=lora"]), base, gpu, [])
    assert problem == [problem[0]]
    assert problem[0].endswith("method=qlora")


def test_the_estimate_of_memory_is_near_what_a_step_takes(tmp_path):
    """Against what torch really keeps for the way back of 2 x 512 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}
    base = base_numbers(tmp_path, **sizes, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path))
    kept = 0

    def count(tensor):
        nonlocal kept
        if tensor.untyped_storage().data_ptr() not in weights | seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept += tensor.untyped_storage().nbytes()
        return tensor

    weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, set()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.model(torch.zeros(2, 512, dtype=torch.long))
    loaded = recipe.load("llamatron-rs1", ["sft.batch=2", "sft.max_length=512", "sft.checkpointing=false"])
    cpu = estimate.Machine("cpu", "a CPU", 1, int(8e9), int(8e9), 1e11)
    assert estimate.memory(loaded, base, cpu)["activations"] == pytest.approx(kept, rel=0.1)


def test_the_fastest_batch_is_the_one_that_ends_first():
    rows: Any = SimpleNamespace(train={"input_ids": [[0] * 10] * 8})
    loaded = recipe.load("llamatron-rs1")

    def chosen(*trials):
        best = check._best(loaded, rows, [check.Trial(batch, speed, 1) for batch, speed in trials])
        return best.batch if best else None

    assert chosen((4, 100), (8, 104)) == 4  # as good as the same
    assert chosen((4, 100), (8, 110)) == 8
    assert chosen((4, 0), (2, 50)) == 2
    assert chosen((4, 0)) is None
    mixed: Any = SimpleNamespace(train={"input_ids": [[0] * 10] * 4 + [[0] * 30] * 4})
    assert check._padding(loaded, mixed, 1) == 1
    assert check._padding(loaded, mixed, 8) == 240 / 160
    assert check._padding(recipe.load("medchat-3b"), mixed, 8) == 1


@pytest.mark.parametrize(
    ("speeds", "tried"),
    [
        ({4: 100, 8: 150, 16: 90}, [4, 8, 16]),
        ({4: 100, 8: 90, 2: 80}, [4, 8, 2]),
        ({4: 100, 8: 0, 2: 120, 1: 110}, [4, 8, 2, 1]),
        ({4: 0, 2: 0, 1: 50}, [4, 2, 1]),
        ({4: 0, 2: 0, 1: 0}, [4, 2, 1]),
    ],
)
def test_the_probe_tries_larger_batches_while_that_helps_and_smaller_ones_else(speeds, tried, monkeypatch):
    monkeypatch.setattr(check, "PROBE_SECONDS", 60)
    rows: Any = SimpleNamespace(train={"input_ids": [[0] * 10] * 8})
    trials = check.climb(recipe.load("llamatron-rs1"), rows, lambda batch: check.Trial(batch, speeds[batch], 0))
    assert [trial.batch for trial in trials] == tried


def test_the_probe_really_takes_three_steps_of_the_trainer(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "PROBE_SECONDS", 60)
    text = checked("llama3-qlora", tiny, tmp_path, "method=lora")
    assert re.search(r"sft.batch=1: [\d,]+ tokens/s, [\d.]+ GB\n +sft.batch=2: [\d,]+ tokens/s", text)
    assert re.search(r"Time: \d+ steps, .* \(as measured\)", text)
