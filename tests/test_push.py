"""Publishing to the local Hub: what is refused before, what lies there after, and that others get the same replies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from medchat import adapters, embedded
from medchat.errors import UserError
from medchat.files import sha256
from tests.conftest import ROOT, free_port, wait_until
from tests.hub import Hub
from train import card, recipe
from train.push import push

# The Hub's client reads its address once, at import; hence a process, one for many pushes. Its last line is the answer.
PUSH = """
import argparse, json, os, sys
from medchat.errors import UserError
from train import push

parser = argparse.ArgumentParser()
push.add_arguments(parser)
answers = []
for token, argv in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        push.run(parser.parse_args(argv))
        answers.append("")
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
WRONG, BROKEN = "hf_WrongTokenCanary", "hf_Broken TokenCanary"


def push_all(hub: Hub, home: Path, cases: list[tuple[str, list[str]]]) -> list[str]:
    """Return "" or the refusal for each (token, arguments); no token may show."""
    command = [sys.executable, "-c", PUSH, json.dumps(cases)]
    done = subprocess.run(command, env=hub.env(home), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for token in (Hub.token, Hub.stranger, Hub.reader, WRONG, BROKEN):
        assert token not in done.stdout + done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert done.stdout.count("published: ") == answers.count("")
    return answers


def results(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what `train evaluate` writes about an adapter that is a little better than its base."""

    def score(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 500}

    found = {
        "base": "embedded",
        "adapter": str(folder),
        "adapter_sha256": sha256(folder / adapters.WEIGHTS),
        "seed": 0,
        "limit": 500,
        "tasks": {"pubmedqa": {"accuracy": score(0.52)}, "nll": {"nll": score(1.9)}},
        "base_tasks": {"pubmedqa": {"accuracy": score(0.51)}, "nll": {"nll": score(2.2)}},
        "paired": {
            "pubmedqa": {"accuracy": {"difference": 0.01, "low": -0.02, "high": 0.04, "n": 500}},
            "nll": {"nll": {"difference": -0.3, "low": -0.35, "high": -0.25, "n": 500}},
        },
        "references": {"pubmedqa": {"majority": {"accuracy": 0.552}}},
        "versions": {"transformers": "5.23.0"},
        "seconds": 100,
    }
    return found | changes


WORSE = {
    "pubmedqa": {"accuracy": {"difference": -0.05, "low": -0.08, "high": -0.02, "n": 500}},
    "nll": {"nll": {"difference": 0.3, "low": 0.25, "high": 0.35, "n": 500}},
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The embedded adapter as `train sft` and `train evaluate` leave a folder, with the base as a path of here."""
    folder = tmp_path / "runs" / "adapter"
    folder.mkdir(parents=True)
    for name in (adapters.WEIGHTS, "chat_template.jinja"):
        shutil.copy(adapters.EMBEDDED / name, folder)
    config = json.loads((adapters.EMBEDDED / adapters.CONFIG).read_text())
    config["base_model_name_or_path"] = f"/home/someone/.cache/medchat/{embedded.NAME}-{embedded.SHA256[:12]}"
    (folder / adapters.CONFIG).write_text(json.dumps(config))
    made = recipe.load("embedded", ["output_dir=/home/someone/runs/adapter"])
    (folder / "recipe.yaml").write_text(made.to_yaml())
    (folder / "results.json").write_text(json.dumps(results(folder)))
    counts = {"rows in": 16407, "rows out": 2000, "train": 1800, "held out": 200}
    why = {"left": {"overlaps pubmedqa": 3}, "cleaned away": {"links": 20}}
    report = {
        "sources": [{"dataset": "/home/someone/own.csv", **counts, **why}],
        "total": {**counts, **why},
        "evaluation sets": {
            "pubmedqa": {"questions": 500, "rows removed": 3},
            "medqa": {"missing": "The mirror's copy in /home/someone/hub has no test split, only train."},
        },
        "checks": {"groups on both sides of the split": 0},
    }
    (folder / "data_report.json").write_text(json.dumps(report))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").touch()
    return folder


def test_published_and_served(trained: Path, tmp_path: Path) -> None:
    from gradio_client import Client
    from huggingface_hub import ModelCard

    with Hub(tmp_path) as hub:
        # The commit is cut in the middle, after the weights have arrived; the second time it goes through.
        hub.fail_next("POST /api/models/clinic/med/commit/main", cut_after=300)
        arguments = [str(trained), "--repo", "clinic/med"]
        cut, whole = push_all(hub, tmp_path / "home", [(hub.token, arguments)] * 2)
        assert "The connection to 127.0.0.1" in cut
        assert "Run the same command again: what arrived is kept." in cut
        assert whole == ""
        assert sum(request.startswith("PUT /lfs") for request in hub.requests) == 1

        files = hub.files("clinic/med")
        names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
        assert files.keys() == names | {"recipe.yaml", "results.json", "results.svg", "data_report.json"}
        for name, content in files.items():
            assert name == adapters.WEIGHTS or b"/home/someone" not in content, name
            assert str(tmp_path).encode() not in content, name
        assert json.loads(files[adapters.CONFIG])["base_model_name_or_path"] == embedded.ORIGINAL

        found = ModelCard(files["README.md"].decode())
        facts: Any = found.data
        assert (facts.base_model, facts.license) == (embedded.ORIGINAL, "cc-by-4.0")
        shipped = [source.dataset for source in recipe.load("embedded").data]
        assert facts.datasets == [name for name in shipped if not name.startswith("assets/")]
        assert {(one.task_name, one.metric_value) for one in facts.eval_results} == {
            ("pubmedqa", 0.52),
            ("nll", 1.9),
        }
        for sentence in [
            "never replaces a doctor",
            "python app.py --adapter clinic/med",
            "| 0.510 [0.470, 0.550] | 0.520 [0.480, 0.560] | +0.010 [-0.020, +0.040] | 0.552 |",
            "| own.csv | 16,407 | 1,800 | 200 | overlaps pubmedqa 3 |",
            "Free of the questions of: pubmedqa (500)",
            "NOT checked against medqa: it was not at hand",
            "python -m train evaluate --adapter clinic/med --tasks pubmedqa,nll --limit 500",
        ]:
            assert sentence in found.text
        for block in found.text.split("```python\n")[1:]:
            compile(block.partition("```")[0], "card", "exec")

        port = free_port()
        command = [sys.executable, "app.py", "--port", str(port), "--adapter", "clinic/med"]
        log = (tmp_path / "app.log").open("w+")
        app = subprocess.Popen(command, cwd=ROOT, env=hub.env(tmp_path / "reader"), stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            assert wait_until(lambda: _answers(url), 120)
            client = Client(url, verbose=False)
            assert client.predict(api_name="/models")["adapters"][0]["name"] == "clinic/med"
            assert client.predict("Hello, who are you?", max_tokens=20, temperature=0, api_name="/chat")
        finally:
            app.terminate()
            app.wait(10)
            log.seek(0)
            print(log.read())  # pytest shows it when the test fails
            log.close()


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def test_a_worse_adapter_as_a_pull_request_to_others(trained: Path, tmp_path: Path) -> None:
    (trained / "results.json").write_text(json.dumps(results(trained, paired=WORSE)))
    with Hub(tmp_path) as hub:
        hub.add("clinic/other", {"model.bin": b"weights of another kind"})
        arguments = [str(trained), "--repo", "clinic/other", "--pull-request"]
        refused, published = push_all(
            hub, tmp_path / "home", [(hub.stranger, arguments), (hub.stranger, [*arguments, "--allow-worse"])]
        )
        assert "worse than its base: pubmedqa accuracy -0.0500 [-0.0800, -0.0200]; nll nll +0.3000" in refused
        assert published == ""
        assert hub.files("clinic/other").keys() == {"model.bin"}
        text = hub.files("clinic/other", revision="refs/pr/1")["README.md"].decode()
        assert "**This adapter is worse than its base, and was published all the same:** pubmedqa accuracy" in text


def test_what_the_hub_refuses(trained: Path, tmp_path: Path) -> None:
    def to(repo: str, *more: str) -> list[str]:
        return [str(trained), "--repo", repo, *more]

    with Hub(tmp_path) as hub:
        hub.add("clinic/theirs", {})
        hub.add("clinic/hidden", {}, private=True)
        hub.add("clinic/model", {"config.json": b"{}", "model.safetensors": 100})
        hub.fail_next("/api/models/clinic/ill", status=503, times=99)
        cases = [
            (("", to("clinic/new")), "There is no token of the Hub. Make one with write access"),
            ((BROKEN, to("clinic/new")), "holds a blank"),
            ((WRONG, to("clinic/new")), "does not accept your token"),
            ((hub.reader, to("clinic/new")), "Your token may only read."),
            ((hub.stranger, to("clinic/new")), "may not write to clinic/new. Use one with write access to clinic"),
            ((hub.stranger, to("clinic/theirs")), "may not write to clinic/theirs"),
            ((hub.stranger, to("clinic/hidden")), "may not write to clinic/hidden"),
            ((hub.token, to("clinic/model")), "holds something else (config.json, model.safetensors)"),
            ((hub.token, to("clinic/theirs", "--private")), "exists and is public"),
            ((hub.token, to("clinic/a/b")), "is no Hub id"),
            ((hub.token, to("clinic/ill")), "answers with an error (status 503)"),
        ]
        answers = push_all(hub, tmp_path / "home", [case for case, _ in cases])
        for answer, (_, sentence) in zip(answers, cases, strict=True):
            assert sentence in answer
        assert not any("/commit/" in request or request.startswith("PUT") for request in hub.requests)


def refusal(folder: Path, **options: Any) -> str:
    """Return why a folder is refused before the Hub is asked for anything (the tests are offline)."""
    with pytest.raises(UserError) as raised:
        push(folder, "clinic/med", **options)
    return str(raised.value)


def test_what_is_refused_before_the_hub(trained: Path, tmp_path: Path) -> None:
    found = trained / "results.json"
    good = results(trained)
    for content, sentence in [
        (
            results(trained, adapter_sha256="0" * 64),
            f"is about another adapter (SHA-256 000000000000..., this one has {good['adapter_sha256'][:12]}",
        ),
        (results(trained, base="clinic/small"), "was measured on the base clinic/small, and it was trained on Hugging"),
        (results(trained, paired=WORSE), "The adapter is worse than its base: pubmedqa accuracy -0.0500"),
        (results(trained, paired={}), "compares the adapter with its base on no task, or not on all"),
        (results(trained, tasks={}), "compares the adapter with its base on no task, or not on all"),
        ({"accuracy": 1}, "is not what `train evaluate` writes"),
        ([good], "is not what `train evaluate` writes"),
    ]:
        found.write_text(json.dumps(content))
        assert sentence in refusal(trained)
    found.rename(tmp_path / "elsewhere.json")
    assert "was not evaluated" in refusal(trained)
    assert "is not what `train evaluate` writes" in refusal(trained, results=tmp_path / "elsewhere.json")
    assert "There is no adapter folder" in refusal(tmp_path / "absent")
    (tmp_path / "elsewhere.json").write_text(json.dumps(good))
    assert "HF_HUB_OFFLINE=1 forbids to push" in refusal(trained, results=tmp_path / "elsewhere.json")


def test_an_adapter_of_another_tool_is_told_all_at_once(trained: Path) -> None:
    (trained / "recipe.yaml").unlink()
    (trained / "results.json").unlink()
    config = json.loads((trained / adapters.CONFIG).read_text())
    (trained / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/home/someone/model"}))
    text = refusal(trained)
    for sentence in ["another tool trained it", "was not evaluated", "'/home/someone/model', a path of this machine"]:
        assert sentence in text
    (trained / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "records its base not at all. Type --base-id ORG/NAME" in refusal(trained)
    assert "base not at all" not in refusal(trained, base_id="clinic/base")
    assert "--base-id nowhere is no Hub id" in refusal(trained, base_id="nowhere")
    snapshot = "/home/someone/.cache/huggingface/hub/models--clinic--base/snapshots/0123"
    (trained / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": snapshot}))
    assert "records its base" not in refusal(trained)


def test_the_card_of_a_branch_names_it_in_every_command(trained: Path) -> None:
    adapter, made = adapters.open_adapter(str(trained)), recipe.load("embedded")
    found = results(trained, seed=3)
    found["tasks"]["forgetting"] = {"nll": found["tasks"]["nll"]["nll"]}
    text = card.model_card(adapter, "clinic/med", embedded.ORIGINAL, made, found, None, branch="v1")
    for sentence in [
        "python app.py --adapter clinic/med@v1",
        'hf_hub_download(repo, "chat_template.jinja", revision="v1")',
        'from_pretrained(base), repo, revision="v1")',
        "hf download clinic/med recipe.yaml --revision v1 --local-dir .",
        "evaluate --adapter clinic/med@v1 --tasks pubmedqa,nll,forgetting --limit 500 --seed 3 --output",
        "type: everyday-questions",
    ]:
        assert sentence in text
    assert text.count("rows of the training data that were held out") == 1  # nll's


def test_licences_are_flagged() -> None:
    def of(base: str, *data: str) -> tuple[str, list[str]]:
        rows = json.dumps([{"dataset": name} for name in data])
        found = card.licences(base, recipe.load("embedded", [f"data={rows}"]))
        return card.licence_of(found), [what for what, licence in found if licence.flag]

    small = embedded.ORIGINAL
    assert of(small, "openlifescienceai/medmcqa") == ("apache-2.0", [])
    assert of(small, "openlifescienceai/medmcqa", "lavita/MedQuAD") == ("cc-by-4.0", [])
    assert of("unsloth/Llama-3.2-3B-Instruct", "lavita/MedQuAD") == ("llama3.2", [])
    assert of(small, "tatsu-lab/alpaca") == ("other", ["tatsu-lab/alpaca"])
    assert of("who/knows", "lavita/ChatDoctor-iCliniq") == ("other", ["who/knows", "lavita/ChatDoctor-iCliniq"])
