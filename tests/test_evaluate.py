"""Evaluation: metrics against their reference code, scores against plain forward passes, the command as users do it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medchat.errors import UserError
from medchat.prompt import SYSTEM, Template
from tests.conftest import ROOT
from tests.sample_data import write_sample_hub
from train import evaluate, metrics
from train.__main__ import main

REAL = ROOT.parent / "shared" / "data" / "hub"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not beside this checkout")
ALL = ",".join(evaluate.TASKS)


@pytest.fixture(scope="module")
def sample_hub(tmp_path_factory):
    return write_sample_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def mirror(sample_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("DATASETS_MIRROR", str(sample_hub))
    monkeypatch.setenv("MEDCHAT_CACHE", str(tmp_path / "cache"))
    return sample_hub


@pytest.fixture
def recipe(tiny, tmp_path):
    """A recipe of the tiny base with six held-out rows."""
    text = (
        f"description: Tiny.\nbase: {tiny / 'base'}\noutput_dir: x\ndata: [{{dataset: lavita/MedQuAD}}]\nheld_out: 6\n"
    )
    (tmp_path / "tiny.yaml").write_text(text)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture
def command(tiny, recipe, tmp_path):
    """The command line for the tiny base and adapter, with some options replaced; None takes one out."""

    def build(**changes):
        options = {
            "base": tiny / "base",
            "adapter": tiny / "adapter",
            "tasks": ALL,
            "recipe": recipe,
            "output": tmp_path / "out" / "results.json",
        } | changes
        return ["evaluate", *(str(x) for k, v in options.items() if v is not None for x in (f"--{k}", v))]

    return build


@pytest.fixture(scope="module")
def chat(tiny, tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.scoring import Answers, Chat

    model = AutoModelForCausalLM.from_pretrained(tiny / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    template = Template(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    answers = Answers(tmp_path_factory.mktemp("answers") / "a.jsonl", {})
    return Chat("base", model, tokenizer, template, SYSTEM, answers)


# --- metrics ---


def test_macro_f1_and_accuracy_are_those_of_sklearn():
    from sklearn.metrics import accuracy_score, f1_score

    random = np.random.default_rng(0)
    for size in (2, 3, 4):
        gold, chosen = random.integers(0, size, 50).tolist(), random.integers(0, size - 1, 50).tolist()
        found = {name: metrics.measure(one, 0)["score"] for name, one in metrics.choices(gold, chosen).items()}
        assert found["accuracy"]["value"] == pytest.approx(accuracy_score(gold, chosen))
        assert found["macro_f1"]["value"] == pytest.approx(f1_score(gold, chosen, average="macro"), abs=1e-6)
        assert found["macro_f1"]["low"] < found["macro_f1"]["value"] < found["macro_f1"]["high"]


def test_intervals_cover_the_truth_about_as_often_as_they_say_and_come_again_with_the_seed():
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        right = (random.random(100) < 0.4).astype(int)
        score = metrics.measure(metrics.choices([1] * 100, right.tolist())["accuracy"], trial)["score"]
        hits += score["low"] <= 0.4 <= score["high"]
    assert 0.90 <= hits / 200 <= 0.99
    scored = metrics.choices([0, 1, 1, 0], [0, 1, 0, 0])["accuracy"]
    assert metrics.measure(scored, 5) == metrics.measure(scored, 5)


def test_a_difference_is_paired():
    random = np.random.default_rng(2)
    tokens = random.integers(20, 200, 100)
    base = metrics.nll((tokens * random.uniform(1, 4, 100)).tolist(), tokens.tolist())["nll"]  # rows differ much
    better = metrics.Scored(base.rows - np.array([0.1, 0]) * base.rows[:, 1:], base.value)  # each a little better
    found = metrics.measure(better, 0, base)
    assert found["difference"]["difference"] == pytest.approx(-0.1)
    assert found["difference"]["high"] - found["difference"]["low"] < 1e-4
    assert found["base"]["high"] - found["base"]["low"] > 0.1
    same = metrics.measure(base, 0, base)["difference"]
    assert same["low"] == same["high"] == same["difference"] == 0


def test_bleu_and_rouge_are_those_of_their_libraries():
    import sacrebleu
    from rouge_score import rouge_scorer

    replies = ["Drink water and sleep well tonight.", "See a doctor when the fever lasts longer than three days.", ""]
    texts = ["Drink enough water and sleep well.", "See a doctor when a fever lasts longer than three days.", "Rest."]
    found = {
        n: metrics.measure(s, 0) for n, s in (metrics.bleu(replies, texts) | metrics.rouge(replies, texts)).items()
    }
    assert found["bleu"]["score"]["value"] == pytest.approx(sacrebleu.corpus_bleu(replies, [texts]).score)
    assert found["bleu"]["score"]["low"] < found["bleu"]["score"]["high"]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    mean = sum(scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(replies, texts, strict=True)) / 3
    assert found["rouge_l"]["score"]["value"] == pytest.approx(mean)


# --- the harness, proven with answers that are known ---


def scripted(pick):
    """Return a model of lm-eval that gives log-likelihood 0 to the option pick(row) and -1 to the others."""
    from lm_eval.api.model import LM

    class Scripted(LM):
        @property
        def tokenizer_name(self):
            return "none"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            assert chat_history[0] == {"role": "system", "content": SYSTEM}
            return "\n".join(turn["content"] for turn in chat_history)

        def loglikelihood(self, requests):
            scored = [(option == pick(request.doc)) - 1.0 for request in requests for option in request.args[1:]]
            return [(score, False) for score in scored]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        generate_until = loglikelihood_rolling

    return Scripted()


def right_option(row):
    if "final_decision" in row:
        return row["final_decision"]
    right = row.get("answer_idx", row.get("cop", row.get("answer")))
    return right if isinstance(right, str) else "ABCD"[right]


@needs_real
@pytest.mark.parametrize(
    ("task", "rows", "commonest", "share"),
    [
        ("pubmedqa", 500, "Yes", 0.552),
        ("medqa", 1273, "A", 0.277),
        ("medmcqa", 4183, "A", 0.322),
        ("mmlu_medical", 1089, "D", 0.323),
    ],
)
def test_an_oracle_scores_one_and_a_constant_answer_the_majority_share(task, rows, commonest, share, monkeypatch):
    monkeypatch.setenv("DATASETS_MIRROR", str(REAL))
    questions = evaluate._questions([task])
    assert len(questions[task].task_docs) == rows
    for pick, expected in ((right_option, 1.0), (lambda row: commonest, share)):
        found = evaluate.grade(scripted(pick), questions, SYSTEM, None, 0)[task]
        values = evaluate._values(found["metrics"])
        assert values["accuracy"] == pytest.approx(expected, abs=5e-4)
        assert found["references"]["majority"]["accuracy"] == pytest.approx(share, abs=5e-4)
        assert (values["macro_f1"] == 1.0) == (expected == 1.0)
    if task == "pubmedqa":  # the paper's human performance, from the answers that are recorded in the data
        assert found["references"]["human"]["accuracy"] == pytest.approx(0.780)
        assert found["references"]["human"]["macro_f1"] == pytest.approx(0.722, abs=5e-4)


@needs_real
def test_the_500_are_the_official_ones(monkeypatch):
    monkeypatch.setenv("DATASETS_MIRROR", str(REAL))
    truth = json.loads((REAL / "qiaojin/PubMedQA/test_ground_truth.json").read_text())
    rows = evaluate._questions(["pubmedqa"])["pubmedqa"].task_docs
    assert {str(row["pubid"]): row["final_decision"] for row in rows} == truth


@pytest.mark.parametrize("task", ["pubmedqa", "medqa"])  # options of several tokens to this tokenizer, and of one
def test_likelihoods_are_those_of_plain_lm_eval(task, chat, mirror):
    from lm_eval.evaluator import evaluate as plain
    from lm_eval.models.huggingface import HFLM

    from train.scoring import ChatLM

    read = []
    hook = chat.model.register_forward_pre_hook(
        lambda _, args, kw: read.append(len(args[0] if args else kw["input_ids"])), with_kwargs=True
    )
    found = []
    plain_lm = HFLM(pretrained=chat.model, tokenizer=chat.tokenizer, batch_size=1, add_bos_token=False)  # type: ignore
    options = {"bootstrap_iters": 0, "apply_chat_template": True, "system_instruction": SYSTEM}
    for lm in (ChatLM(chat), plain_lm):
        tasks = {"tasks": evaluate._questions([task]), "groups": {}}
        graded = plain(lm, tasks, samples={task: [0, 3, 4]}, **options)
        entries = (graded or {}).get("samples", {})[task]
        found.append([score for entry in entries for score, _ in entry["filtered_resps"]])
        if len(found) == 1 and task == "medqa":
            assert sum(read) == 3  # one row a question, whatever its options
    hook.remove()
    assert len(found[0]) == 3 * {"pubmedqa": 6, "medqa": 4}[task]
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_log_probabilities_are_those_of_one_forward_pass_each(chat):
    import torch

    from train.scoring import Item, log_probabilities

    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (30, 7, 90, 31, 12)]
    items = [Item(i, [(3, 5), (len(i) - 1, 9), (len(i) - 1, 17)]) for i in ids]
    found = {}
    log_probabilities(chat.model, items, found.__setitem__)
    for n, item in enumerate(items):
        with torch.inference_mode():
            alone = torch.log_softmax(chat.model(torch.tensor([item.ids])).logits[0], -1)
        assert found[n] == pytest.approx([alone[p, t].item() for p, t in item.asked], abs=1e-4)


def test_nll_is_the_loss_over_the_learned_tokens(chat):
    import torch

    turns = ["What helps?", "Rest and water.", "And then?", "See a doctor."]
    row = {"messages": [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]}
    nats, tokens = chat.nll("x", [row, row | {"last_only": True}])
    ids = torch.tensor([chat.tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]])
    for n, learned in enumerate(["Rest and water.<|im_end|>See a doctor.<|im_end|>", "See a doctor.<|im_end|>"]):
        labels = torch.full_like(ids, -100)
        pieces = learned.split("<|im_end|>")[:-1]
        for piece in pieces:
            want = chat.ids(piece + "<|im_end|>")
            start = next(i for i in range(ids.shape[1]) if ids[0, i : i + len(want)].tolist() == want)
            labels[0, start : start + len(want)] = ids[0, start : start + len(want)]
        with torch.inference_mode():
            loss = chat.model(ids, labels=labels).loss.item()
        assert tokens[n] == (labels != -100).sum().item()
        assert nats[n] / tokens[n] == pytest.approx(loss, abs=1e-4)


def test_the_end_of_a_turn_is_the_one_of_the_template_that_was_trained_on(tiny, tmp_path):
    from medchat import adapters
    from tests.test_export import copy_with
    from tests.tiny import make_tokenizer
    from train import recipe

    folder = copy_with(tiny / "adapter", tmp_path / "adapter")
    (folder / "recipe.yaml").write_text(recipe.load("embedded", ["template=llama-3"]).to_yaml())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    template = evaluate._template(adapters.open_adapter(str(folder)), None, tokenizer)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Rest."}]
    text, ((start, end),) = template.learned_spans(turns)
    assert text[start:end] == "Rest.<|eot_id|>"


def test_replies_in_a_batch_are_those_given_alone(chat):
    questions = ["What helps?", "What are the signs of a migraine, and when should I see a doctor about them?", "Hello"]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    together = chat.replies("x", prompts)
    alone = [chat._generate([chat.ids(chat.template.render(prompt))])[0] for prompt in prompts]
    assert together == alone
    assert any(together)


# --- the command ---


def test_all_tasks_of_base_and_adapter(command, mirror, tiny, capsys):
    assert main(command()) == 0
    folder = Path(command()[-1]).parent
    results = json.loads((folder / "results.json").read_text())
    assert list(results["tasks"]) == list(results["base_tasks"]) == list(results["paired"]) == list(evaluate.TASKS)
    assert (results["seed"], results["limit"], results["adapter"]) == (0, None, str(tiny / "adapter"))
    assert len(results["adapter_sha256"]) == 64
    assert results["seconds"] > 0
    for task, scores in results["tasks"].items():
        for metric, score in scores.items():
            paired, base = results["paired"][task][metric], results["base_tasks"][task][metric]
            assert score["low"] <= score["value"] <= score["high"]
            assert paired["difference"] == pytest.approx(score["value"] - base["value"])
            assert score["n"] == base["n"] == paired["n"] > 0
    nll, perplexity = results["tasks"]["nll"]["nll"], results["tasks"]["perplexity"]["perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(nll["value"]))
    assert nll["n"] == 6
    assert results["paired"]["nll"]["nll"]["difference"] != 0  # the adapter was in it
    assert results["references"]["medqa"]["majority"]["accuracy"] == 1.0  # the invented rows all have A
    table, picture = (folder / "results.md").read_text(), (folder / "results.svg").read_text()
    assert table in capsys.readouterr().out
    assert f"| pubmedqa | accuracy | {results['base_tasks']['pubmedqa']['accuracy']['value']:.3f}" in table
    assert picture.startswith("<svg")
    assert picture.count("<circle") == 4 + 2 * sum(map(len, results["tasks"].values()))

    # The same again, from what is kept, even when a killed run left half a line, and with the adapter's other name.
    kept = folder / "results.answers.jsonl"
    lines = kept.read_text().splitlines()
    answers = [line for line in lines if '"key"' in line]
    kept.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[len(lines) // 2][:4])
    assert main(command()) == 0
    again = json.loads((folder / "results.json").read_text())
    for name in ("tasks", "base_tasks", "paired"):
        assert again[name].keys() == results[name].keys()
        assert flat(again[name]) == pytest.approx(flat(results[name]), abs=1e-4)
    assert sum('"key"' in line for line in kept.read_text().splitlines()) == len(answers)


def flat(values):
    return [x for value in values.values() for x in (flat(value) if isinstance(value, dict) else [value])]


def test_interrupted_it_keeps_what_is_done(command, mirror, monkeypatch, capsys):
    from train.scoring import Progress

    done = []

    def interrupt(self, weight):  # where Ctrl-C arrives in the middle of the adapter's part
        done.append(self.what)
        if done.count("adapter, questions") == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "add", interrupt)
    assert main(command(tasks="medqa")) == 130
    output = Path(command()[-1])
    assert f"{len(done)} answers are kept" in capsys.readouterr().err
    assert not output.exists()
    first = len(done)
    monkeypatch.setattr(Progress, "add", lambda self, weight: done.append(self.what))
    assert main(command(tasks="medqa")) == 0
    assert len(done) == first + (first - 3) - 3  # the base's questions once, the adapter's without the first three


def test_limit_takes_a_seeded_sample_and_later_tasks_join_the_results(command, mirror):
    def results(**options):
        assert main(command(limit=4, **options)) == 0
        return json.loads(Path(command()[-1]).read_text())

    first = results(tasks="nll")
    both = results(tasks="forgetting")
    assert list(both["tasks"]) == ["nll", "forgetting"]
    assert both["tasks"]["nll"] == first["tasks"]["nll"]
    assert both["tasks"]["forgetting"]["nll"]["n"] == 4
    sample = evaluate._sample(1000, 4, 0)
    assert sample == evaluate._sample(1000, 4, 0) != evaluate._sample(1000, 4, 1)
    assert sample == sorted(sample) != [0, 1, 2, 3]


def test_a_base_alone(command, mirror):
    assert main(command(adapter=None, tasks="medqa", limit=3)) == 0
    results = json.loads(Path(command()[-1]).read_text())
    assert results["adapter"] is None
    assert results["paired"] == results["base_tasks"] == {}
    assert results["tasks"]["medqa"]["accuracy"]["n"] == 3


def test_all_mistakes_on_the_command_line_come_at_once(command, capsys):
    wrong = {"tasks": "pubmedqua,nll,wealth", "limit": 0, "output": "results.txt", "base": None, "adapter": None}
    assert main(command(**wrong)) == 2
    said = capsys.readouterr().err
    assert "did you mean 'pubmedqa'" in said
    assert "--limit is 0" in said
    assert "neither --adapter nor --base" in said
    assert "results.txt is not the name" in said


def test_what_cannot_be_evaluated_is_a_sentence(command, mirror, tiny, tmp_path, capsys, monkeypatch):
    from tests import tiny as make

    def complaint(**options):
        assert main(command(**options)) == 2
        return capsys.readouterr().err

    assert "does not say which base" in complaint(base=None)
    assert "held-out rows of a recipe" in complaint(recipe=None)
    assert "no adapter folder" in complaint(adapter=tmp_path / "nowhere")
    other = make.make_llama(tmp_path / "other")
    make.make_adapter(other, tmp_path / "wide", targets=["lm_head"])
    config = json.loads((tiny / "base" / "config.json").read_text()) | {"hidden_size": 32}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    assert "does not fit this base" in complaint(base=tmp_path / "small")
    assert "does not fit" not in complaint(base=tmp_path / "empty")
    monkeypatch.setenv("DATASETS_MIRROR", str(tmp_path))
    said = complaint(tasks="medqa,medmcqa")
    assert "GBaker/MedQA-USMLE-4-options" in said
    assert "openlifescienceai/medmcqa" in said
    assert not (tmp_path / "out").exists()


def test_results_of_another_evaluation_are_never_mixed_in(command, mirror, recipe, tmp_path, capsys):
    from tests import tiny as make

    assert main(command(tasks="forgetting", limit=2)) == 0
    output = Path(command()[-1])
    before = output.read_text()
    make.make_adapter(make.make_llama(tmp_path / "b"), tmp_path / "other", targets=["q_proj"], seed=7)
    for change in ({"adapter": tmp_path / "other"}, {"adapter": None}, {"limit": 3}, {"seed": 1}):
        assert main(command(**({"tasks": "forgetting", "limit": 2} | change))) == 2
        assert "is of another evaluation" in capsys.readouterr().err
    assert output.read_text() == before
    assert main(command(tasks="nll", limit=2)) == 0
    Path(recipe).write_text(Path(recipe).read_text().replace("held_out: 6", "held_out: 8"))
    assert main(command(tasks="nll", limit=2)) == 2
    assert "another recipe's held-out rows" in capsys.readouterr().err
    output.write_text("[]")
    assert main(command(tasks="forgetting", limit=2)) == 2
    assert "is no result of this command" in capsys.readouterr().err


def test_forgetting_is_asked_in_plain_words_that_are_not_medical():
    rows = evaluate._everyday(SYSTEM, None, 0)
    assert len(rows) == 40
    text = " ".join(turn["content"].lower() for row in rows for turn in row["messages"][1:])
    assert not any(word in text for word in ("doctor", "health", "medic", "patient", "disease", "symptom", "pain"))


def test_the_command_line_loads_no_library():
    code = "import sys, train.evaluate; print([m for m in ('torch', 'lm_eval', 'peft', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unreadable_task_is_not_taken_for_an_answer(chat, tmp_path):
    with pytest.raises(UserError, match="reads 1024"):
        chat.nll("x", [{"messages": [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}]}])
