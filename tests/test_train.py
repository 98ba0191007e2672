"""Training on a tiny random Llama: data, masks, loss, saving, resuming, serving what came out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from medchat.errors import UserError
from medchat.prompt import SYSTEM, Template
from tests import tiny as make
from tests.conftest import ROOT
from train import data, recipe, sft

HUB = ROOT.parent / "shared" / "data" / "hub"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A DATASETS_MIRROR with 60 rows in MedQuAD's columns."""
    import datasets

    rows = [
        {
            "document_source": "CDC" if i % 3 else "GARD",
            "question_focus": f"Topic {i // 2}",
            "question_type": "information",
            "question": f"What is (are) Topic {i} ?",
            "answer": f"Summary : Topic {i} is common. " + " ".join(make.TEXT),
        }
        for i in range(60)
    ]
    folder = tmp_path / "hub" / "lavita" / "MedQuAD" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    monkeypatch.setenv("DATASETS_MIRROR", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "hub"


def overrides(tiny, output, *more):
    return [
        f"base={tiny / 'base'}",
        f"output_dir={output}",
        "held_out=6",
        "sft.max_length=1024",
        "sft.max_steps=4",
        "sft.log_steps=1",
        "sft.save_steps=2",
        "sft.eval_steps=2",
        "sft.learning_rate=1e-2",
        *more,
    ]


def test_questions_and_answers_are_cleaned():
    assert data.clean_question("What is (are) Cataract ? ?") == "What is Cataract?"
    assert data.clean_question("Do you have information about Fever") == "What should I know about Fever?"
    raw = (
        "Summary : Hypotension (HI-po-TEN-shun) is low pressure. Signs include:\n   \nDizziness\n   \nFainting\n\n"
        "For more information see http://example.org. It has causes that a doctor looks for in a talk and with tests. "
        "A tail without an en"
    )
    cleaned = "Hypotension is low pressure. "
    cleaned += "Signs include: Dizziness; Fainting. It has causes that a doctor looks for in a talk and with tests."
    assert data.clean_answer(raw) == cleaned
    assert data.clean_answer(raw, 30) == "Hypotension is low pressure."
    assert data.clean_answer("One endless sentence " * 50, 100) == ""


def test_rows_are_filtered_and_no_topic_crosses_the_split(mirror):
    loaded = recipe.load("embedded", ["held_out=6"])
    train, held = data.load_rows(loaded)
    assert len(held) >= 6
    assert len(train) + len(held) <= 40  # the GARD third is out
    assert train[0][0] == {"role": "system", "content": SYSTEM}

    def topic(messages):
        return int(messages[1]["content"].split()[-1].rstrip("?")) // 2

    assert not {topic(m) for m in train} & {topic(m) for m in held}
    assert (train, held) == data.load_rows(loaded)


def test_exactly_the_answer_and_its_end_token_carry_loss():
    tokenizer = make.make_tokenizer()
    template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    messages = [
        {"role": "user", "content": "What helps?"},
        {"role": "assistant", "content": "Rest and water."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "See a doctor."},
    ]
    rows, dropped = sft.tokenize([messages], tokenizer, template, 512)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    assert dropped == 0
    assert ids == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    learned = tokenizer.decode([token for token in labels if token != -100])
    assert learned == "Rest and water.<|im_end|>See a doctor.<|im_end|>"
    assert sft.tokenize([messages], tokenizer, template, 8)[1] == 1


def test_the_loss_and_its_gradient_equal_plain_cross_entropy(tiny):
    import torch

    from train.trainer import CHUNK, AnswerLoss

    torch.manual_seed(0)
    hidden = torch.randn(CHUNK + 100, 32, requires_grad=True)
    weight, targets = torch.randn(300, 32), torch.randint(0, 300, (CHUNK + 100,))
    ours = AnswerLoss.apply(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(ours * 0.5, hidden)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain * 0.5, hidden)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient, expected)


def test_a_run_trains_saves_and_is_served_with_the_training_prompt(tiny, mirror, tmp_path):
    from medchat.engines import Sampling
    from medchat.engines.llama_cpp import open_llama_cpp

    output = sft.run(recipe.load("embedded", overrides(tiny, tmp_path / "out", "system=Be kind.")))
    history = json.loads((output / "log.json").read_text())["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])
    assert any("eval_loss" in entry for entry in history)
    assert recipe.load(str(output / "recipe.yaml")).system == "Be kind."

    engine = open_llama_cpp(str(tiny / "base.gguf"), [str(output)])
    assert engine.adapters["out"].system == "Be kind."
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is Topic 1?"}]
    answered = [*messages, {"role": "assistant", "content": "x"}]
    tokenizer = make.make_tokenizer()
    template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    trained = sft.tokenize([answered], tokenizer, template, 512)[0][0]
    served = engine.prompt_ids(messages, "out")
    assert trained["input_ids"][: len(served)] == served  # one renderer, one tokenisation
    assert set(trained["labels"][: len(served)]) == {-100}
    sampling = Sampling(max_tokens=8, temperature=0)
    assert any(d.finish_reason for d in engine.stream(messages, adapter="out", sampling=sampling, cancel=Event()))

    with pytest.raises(UserError, match="finished adapter"):
        sft.run(recipe.load("embedded", overrides(tiny, tmp_path / "out", "system=Be kind.")))
    with pytest.raises(UserError, match="another recipe"):
        sft.run(recipe.load("embedded", overrides(tiny, tmp_path / "out", "seed=5")))


def test_interrupted_with_ctrl_c_and_resumed_gives_the_uninterrupted_losses(tiny, mirror, tmp_path):
    def command(output):
        steps = ["sft.max_steps=150", "sft.epochs=500", "sft.save_steps=500", "sft.eval_steps=500"]
        return [sys.executable, "-u", "-m", "train", "sft", "embedded", *overrides(tiny, output, *steps)]

    def losses(output):
        history = json.loads((output / "log.json").read_text())["history"]
        return {entry["step"]: float(entry["loss"]) for entry in history if "loss" in entry}

    process = subprocess.Popen(
        command(tmp_path / "a"),
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
    resumed = subprocess.run(command(tmp_path / "a"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Resuming from" in resumed.stdout
    straight = subprocess.run(command(tmp_path / "b"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert straight.returncode == resumed.returncode == 0
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert set(a) == set(b)
    assert all(a[step] == pytest.approx(b[step], rel=1e-3) for step in a)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["data=[{dataset: no/such}]"], "could not be loaded"),
        (["data=[{dataset: lavita/MedQuAD, institutes: [XYZ]}]"], "survived"),
        (["base=/nowhere"], "could not be loaded"),
        (["sft.max_length=64"], "longer than"),
        (["held_out=1000"], "leaves no row"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(tiny, mirror, tmp_path, more, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        sft.run(recipe.load("embedded", overrides(tiny, tmp_path / "out", *more)))
    assert error.value.fix.endswith(".")
    assert not Path(tmp_path / "out").exists()


@pytest.mark.skipif(not HUB.is_dir(), reason="the real data sets are not beside this checkout")
def test_the_real_medquad_gives_thousands_of_clean_rows(monkeypatch):
    monkeypatch.setenv("DATASETS_MIRROR", str(HUB))
    train, held = data.load_rows(recipe.load("embedded"))
    assert len(train) == 1800
    assert len(held) == 200
    answers = [m[-1]["content"] for m in train]
    assert all(80 <= len(a) <= 600 and a.endswith((".", "!", "?")) for a in answers)
    assert not any("http" in a or "Summary :" in a for a in answers)
