"""Fine-tuning on a tiny random Llama: masks, gradients, saving, going on, and chatting with what came out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from medchat import embedded
from medchat.errors import UserError
from medchat.prompt import TEMPLATES, Template, named_template
from tests import tiny as make
from tests.conftest import ROOT, wait_until
from tests.sample_data import write_sample_hub
from train import recipe, sft

NAMES = recipe.names()
ENDS = {"llama-3": "<|eot_id|>", "llama-3.2": "<|eot_id|>", "alpaca": "</s>"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A DATASETS_MIRROR with a few rows of every data set that the recipes name."""
    return write_sample_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True)
def mirror(hub, monkeypatch):
    monkeypatch.setenv("DATASETS_MIRROR", str(hub))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A file with 40 short conversations, some of two turns."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations(40)))
    return path


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Return conversations about the built-in topics, every third of two turns."""
    topics = [json.loads(line) for file in sorted((ROOT / "assets/knowledge").glob("*.jsonl")) for line in file.open()]
    topics = [topic for topic in topics if "overview" in topic][:count]
    rows = []
    for i, topic in enumerate(topics):
        rows.append(
            [
                {"role": "user", "content": f"What is {topic['title']}?"},
                {"role": "assistant", "content": topic["overview"][:300]},
            ]
        )
        if i % 3 == 0:
            rows[-1] += [
                {"role": "user", "content": f"And when should one see a doctor about {topic['title']}? 🩺 Ünïcode"},
                {"role": "assistant", "content": " " + topic["seek_care"][:200] + "\n"},
            ]
    return rows


def arguments(tiny: Path, chats: Path, output: Path, *more: str) -> list[str]:
    return [
        f"base={tiny / 'base'}",
        f"data=[{{dataset: {chats}}}]",
        f"output_dir={output}",
        "held_out=6",
        "lora.strength=1.0",
        "sft.max_length=1024",
        "sft.max_steps=4",
        "sft.log_steps=1",
        "sft.save_steps=2",
        "sft.eval_steps=2",
        "sft.learning_rate=1e-2",
        *more,
    ]


def losses(output: Path) -> dict[int, float]:
    history = json.loads((output / "log.json").read_text())["history"]
    return {entry["step"]: float(entry["loss"]) for entry in history if "loss" in entry}


# ---- what is learned


def tokenizer_for(template: str) -> Any:
    if template == "embedded":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(embedded.transformers_path())
    tokenizer = make.make_tokenizer()
    tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.bos_token = "<s>" if template == "alpaca" else "<|begin_of_text|>"
    tokenizer.eos_token = ENDS[template]
    return tokenizer


def marked_by_transformers(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> list[int]:
    """Return the labels that transformers finds through the twin with generation marks."""
    twin = (TEMPLATES / "training" / f"{template}.jinja").read_text(encoding="utf-8")
    encoded = tokenizer.apply_chat_template(
        messages,
        chat_template=twin,
        return_dict=True,
        return_assistant_tokens_mask=True,
        date_string="26 Jul 2024",
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [token if learned else -100 for token, learned in pairs]


def marked_by_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the labels of a ChatML conversation by its special tokens: from the header of an answer to its end."""
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    labels, inside = [], False
    for i, token in enumerate(ids):
        inside = inside or ids[max(0, i - len(header)) : i] == header
        labels.append(token if inside else -100)
        inside = inside and token != tokenizer.eos_token_id
    return labels


@pytest.mark.parametrize("name", ["embedded", *ENDS])
def test_exactly_the_answers_and_their_end_tokens_carry_loss_in_200_rows(name):
    tokenizer = tokenizer_for(name)
    if name == "embedded":
        template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    else:
        template = named_template(name, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    rows = conversations(200)
    assert len(rows) == 200
    for messages in rows:
        ids, labels = sft.learned_tokens(messages, tokenizer, template)
        other = (
            marked_by_tokens(tokenizer, messages)
            if name == "embedded"
            else marked_by_transformers(tokenizer, name, messages)
        )
        assert labels == other
        assert labels.count(tokenizer.eos_token_id) == len(messages) // 2
        assert [token for token, label in zip(ids, labels, strict=True) if label != -100] == [
            x for x in labels if x != -100
        ]
        _, last = sft.learned_tokens(messages, tokenizer, template, last_only=True)
        assert last.count(tokenizer.eos_token_id) == 1


def test_too_long_rows_lose_of_their_questions_never_of_their_answers():
    from datasets import Dataset

    tokenizer = make.make_tokenizer()
    template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    question = "It began long ago. " * 60 + "What helps against my headache now?"
    answer = "Rest, water and a dark room. See a doctor when it lasts."
    rows = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": answer}],
        [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": answer * 20}],
    ]
    data = Dataset.from_list([{"messages": messages, "last_only": False} for messages in rows])
    kept, ledger = sft.tokenize(data, tokenizer, template, 128, "question")
    assert (ledger.rows, ledger.fits, ledger.shortened, ledger.left_out) == (3, 1, 1, 1)
    assert max(len(row["input_ids"]) for row in kept) <= 128 < max(ledger.lengths)
    text = tokenizer.decode(kept[0]["input_ids"])
    assert "against my headache now?<|im_end|>" in text
    for row in kept:
        assert tokenizer.decode([x for x in row["labels"] if x != -100]) == f"{answer}<|im_end|>"
    assert sft.tokenize(data, tokenizer, template, 128, "drop")[1].left_out == 2


# ---- loss and gradients


@pytest.mark.parametrize("trained_head", [False, True])
def test_the_loss_and_its_gradients_equal_plain_cross_entropy(trained_head):
    import torch

    from train.kernels import CHUNK, AnswerLoss

    torch.manual_seed(0)
    hidden = torch.randn(CHUNK + 100, 32, requires_grad=True)
    weight = torch.randn(300, 32, requires_grad=trained_head)
    targets = torch.randint(0, 300, (CHUNK + 100,))
    wanted = (hidden, weight) if trained_head else (hidden,)
    ours = AnswerLoss.apply(hidden, weight, targets)
    gradients = torch.autograd.grad(ours * 0.5, wanted)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain * 0.5, wanted)
    torch.testing.assert_close(ours, plain)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packed_training_has_the_gradients_of_one_conversation_at_a_time(tiny, chats, tmp_path, method):
    """Our packs, attention, LoRA step and loss against transformers' own forward on each conversation alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    more = ["lora={}", "method=full"] if method == "full" else []
    loaded = recipe.load("embedded", arguments(tiny, chats, tmp_path / "out", "sft.batch=2", *more))
    rows = [{"messages": messages, "last_only": False} for messages in conversations(12)]
    from datasets import Dataset

    model, tokenizer, template = sft.load_base(loaded)
    data, _ = sft.tokenize(Dataset.from_list(rows), tokenizer, template, 1024, "question")
    trainer = sft.build_trainer(loaded, model, tokenizer, data, data.select([]))
    model = trainer.model
    if method == "lora":
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide the gradients of A
                parameter.data.normal_(std=0.1)
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    model.train()
    learned = sum(sum(label != -100 for label in row["labels"][1:]) for row in data)
    for batch in trainer.get_train_dataloader():
        trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(learned)).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain: Any = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    if method == "lora":
        plain = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
    plain.train()
    for row in data:
        logits = plain(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / learned).backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    assert len(ours) > 10
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_which_matrices_get_an_adapter(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny / "base")
    assert sft.adapted(recipe.Lora(targets="q_proj"), model) == {"target_modules": ["q_proj"]}
    assert sft.adapted(recipe.Lora(), model) == {"target_modules": "all-linear"}
    named = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    top = sft.adapted(recipe.Lora(top_layers=1), model)
    assert top == {"target_modules": named, "layers_to_transform": [1]}  # of two


def test_without_held_out_rows_nothing_waits_for_an_evaluation(tiny, chats, tmp_path):
    from datasets import Dataset

    loaded = recipe.load("embedded", arguments(tiny, chats, tmp_path / "out", "sft.patience=2", "lora.targets=q_proj"))
    model, tokenizer, template = sft.load_base(loaded)
    rows = [{"messages": messages, "last_only": False} for messages in conversations(4)]
    data, _ = sft.tokenize(Dataset.from_list(rows), tokenizer, template, 1024, "question")
    sft.build_trainer(loaded, model, tokenizer, data, data.select([])).train()


def test_a_recipe_for_a_gpu_says_so_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nothing = ["data=[{dataset: no/such}]", f"output_dir={tmp_path / 'out'}"]
    for name, changes in (("medalpaca-lora", "base=embedded template=null"), ("medchat-3b", "method=lora")):
        with pytest.raises(UserError, match="does not know the data set"):
            sft.run(recipe.load(name, nothing))
        assert changes in capsys.readouterr().out
    with pytest.raises(UserError, match="does not know the data set"):
        sft.run(recipe.load("embedded", nothing))
    assert "no GPU" not in capsys.readouterr().out


# ---- whole runs


def test_a_run_trains_saves_and_is_served_with_the_training_prompt(tiny, chats, tmp_path, capsys):
    from medchat.engines import Sampling
    from medchat.engines.llama_cpp import open_llama_cpp

    typed = arguments(tiny, chats, tmp_path / "out", "system=Be kind.", "sft.trackers=[tensorboard]", "seed=3")
    output = sft.run(recipe.load("embedded", typed))
    said = capsys.readouterr().out
    assert "Starting fresh." in said
    for shown in ("step 4/4", "tokens/s", "min left", "held out:"):
        assert shown in said
    found = losses(output)
    assert found[4] < found[1]
    log = json.loads((output / "log.json").read_text())
    evaluations = {e["step"]: e["eval_loss"] for e in log["history"] if "eval_loss" in e}
    assert log["best_held_out"] == min(evaluations.values()) == evaluations[log["best_step"]]
    assert {"torch", "peft", "trl"} <= log["versions"].keys()
    assert recipe.load(str(output / "recipe.yaml")).system == "Be kind."
    assert json.loads((output / "data_report.json").read_text())
    assert (output / "data_report.md").read_text().count("|") > 4
    assert list(output.rglob("events.out.tfevents*"))

    engine = open_llama_cpp(str(tiny / "base.gguf"), [str(output)])
    assert engine.adapters["out"].system == "Be kind."
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What helps?"}]
    tokenizer = make.make_tokenizer()
    template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    ids, labels = sft.learned_tokens([*messages, {"role": "assistant", "content": "x"}], tokenizer, template)
    served = engine.prompt_ids(messages, "out")
    assert ids[: len(served)] == served  # one renderer, one tokenisation
    assert set(labels[: len(served)]) == {-100}
    sampling = Sampling(max_tokens=8, temperature=0)
    assert any(d.finish_reason for d in engine.stream(messages, adapter="out", sampling=sampling, cancel=Event()))

    with pytest.raises(UserError, match="finished run"):
        sft.run(recipe.load("embedded", typed))
    with pytest.raises(UserError, match="another recipe"):
        sft.run(recipe.load("embedded", [*typed, "seed=5"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains_saves_resumes_and_chats(name, tiny, tmp_path, capsys):
    from medchat.engines import Sampling
    from medchat.engines.transformers import open_transformers

    output = tmp_path / "out"
    steps = ["sft.max_steps=4", "sft.save_steps=2", "sft.eval_steps=2", "sft.log_steps=1", "held_out=4", "sft.batch=1"]
    typed = [f"base={tiny / 'base'}", f"output_dir={output}", *steps, "sft.accumulation=1", "sft.keep=2"]
    if recipe.load(name).method == "qlora":
        pytest.importorskip("bitsandbytes")
    resolved = recipe.load(name, typed)
    few = [replace(source, rows=min(source.rows or 60, 60)) for source in resolved.data]
    resolved = replace(resolved, data=few)
    sft.run(resolved)
    whole = losses(output)
    assert len(whole) == 4

    # As if the machine had gone down in the second half.
    (output / "log.json").unlink()
    shutil.rmtree(output / "checkpoints" / "checkpoint-4")
    capsys.readouterr()
    sft.run(resolved)
    assert "Resuming at step 2: the same recipe, data and code." in capsys.readouterr().out
    assert losses(output) == pytest.approx(whole, rel=1e-4)
    assert not list(output.glob("*.bin"))

    base, adapters = (str(output), []) if resolved.method == "full" else (str(tiny / "base"), [str(output)])
    engine = open_transformers(base, adapters, quant="none")
    messages = [{"role": "user", "content": "What helps against a cold?"}]
    deltas = list(
        engine.stream(
            messages, adapter=next(iter(engine.adapters), ""), sampling=Sampling(max_tokens=4), cancel=Event()
        )
    )
    assert deltas[-1].finish_reason in {"stop", "length"}


def command(tiny: Path, chats: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-u", "-m", "train", "sft", "embedded", *arguments(tiny, chats, output, *more)]


def test_interrupted_with_ctrl_c_and_resumed_gives_the_uninterrupted_losses(tiny, chats, tmp_path):
    steps = ["sft.max_steps=30", "sft.epochs=500", "sft.save_steps=500", "sft.eval_steps=500"]
    process = subprocess.Popen(
        command(tiny, chats, tmp_path / "a", *steps),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 130
    assert "Run the same command again" in rest
    resumed = sft.run(recipe.load("embedded", arguments(tiny, chats, tmp_path / "a", *steps)))
    straight = sft.run(recipe.load("embedded", arguments(tiny, chats, tmp_path / "b", *steps)))
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-4)
    assert len(losses(resumed)) == 30


def test_killed_while_saving_it_goes_on_from_the_checkpoint_before(tiny, chats, tmp_path):
    typed = arguments(tiny, chats, tmp_path / "out", "sft.max_steps=6", "sft.epochs=9")
    process = subprocess.Popen(
        command(tiny, chats, tmp_path / "out", "sft.max_steps=6", "sft.epochs=9"), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "out" / "checkpoints"
    assert wait_until((checkpoints / "checkpoint-4").is_dir, 60)
    process.kill()
    process.wait()
    half = checkpoints / "checkpoint-6"  # and one that is surely half written
    half.mkdir(exist_ok=True)
    (half / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    (half / "trainer_state.json").write_text('{"epoch": 1.')
    assert sft.newest_complete(checkpoints) in (checkpoints / "checkpoint-2", checkpoints / "checkpoint-4")
    output = sft.run(recipe.load("embedded", typed))
    assert len(losses(output)) == 6


def test_two_processes_reach_the_losses_of_one(tiny, chats, tmp_path):
    steps = ["sft.max_steps=6", "sft.epochs=9", "held_out=0", "sft.packing=false"]
    one = sft.run(recipe.load("embedded", arguments(tiny, chats, tmp_path / "one", *steps, "sft.batch=4")))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "train/accelerate/cpu.yaml"]
    typed = arguments(tiny, chats, tmp_path / "two", *steps, "sft.batch=2")
    done = subprocess.run(
        [*launch, "-m", "train", "sft", "embedded", *typed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Starting fresh.") == 1
    # The same rows in every step, so only rounding may differ; one process of batch 2 would be 0.3 % off at once.
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-4)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["base=/nowhere"], "There is no base"),
        (["sft.max_length=64"], "longer than"),
        (["sft.trackers=[trackio]"], "trackio is not installed"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(tiny, chats, tmp_path, more, complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=complaint) as error:
        sft.run(recipe.load("embedded", arguments(tiny, chats, tmp_path / "out", *more)))
    assert error.value.fix
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tiny, chats, tmp_path):
    typed = arguments(
        tiny,
        chats,
        tmp_path / "out",
        "sft.learning_rate=1e30",
        "sft.max_steps=50",
        "sft.epochs=99",
        "sft.save_steps=1",
        "sft.eval_steps=1",
        "sft.warmup=0.5",
        "held_out=0",
    )
    with pytest.raises(UserError, match="no longer a number") as error:
        sft.run(recipe.load("embedded", typed))
    assert "checkpoint-" in error.value.fix or "No checkpoint" in error.value.fix


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(tiny, chats, tmp_path):
    """A file size limit is how a full disk looks from inside: the write fails half way."""
    limited = ["bash", "-c", 'ulimit -f 120; exec "$@"', "bash", *command(tiny, chats, tmp_path / "out")]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "The disk is full" in done.stderr
    assert "run the same command again" in done.stderr
    assert len(losses(sft.run(recipe.load("embedded", arguments(tiny, chats, tmp_path / "out"))))) == 4
