"""Feedback: scrubbed, stored, migrated, deleted, copied to a private dataset, and what TRL's trainers make of it."""

from __future__ import annotations

import json
import sqlite3
import threading
import tracemalloc
from dataclasses import replace

import pytest

from medchat import database, feedback, votes
from medchat.errors import UserError
from medchat.feedback import Feedback, add, delete, new_conversation, rows
from medchat.votes import Vote
from tests import hub as hubs
from tests.hub import Hub
from train import __main__ as trainer
from train.feedback import export

QUESTION = {"role": "user", "content": "My name is Anna Schmidt, mail anna@example.org. Is 120/80 high?"}
ANSWER = {"role": "assistant", "content": "No, Anna Schmidt. 120/80 is normal."}
DOWN = Feedback(
    "c1", [QUESTION, ANSWER], False, ("unclear",), "No: 120/80 mmHg is fine. Call 020 7946 0958.", "a", "b", 7
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.sqlite"


def test_what_is_stored_is_scrubbed_and_unchanged_in_meaning(path):
    add(DOWN, path)
    (row,) = rows(path)
    assert row.messages[0]["content"] == "My name is [name], mail [e-mail]. Is 120/80 high?"
    assert row.messages[1]["content"] == "No, [name]. 120/80 is normal."
    assert row.better == "No: 120/80 mmHg is fine. Call [phone]."
    assert replace(row, messages=[], better="") == replace(DOWN, messages=[], better="")
    assert b"Schmidt" not in path.read_bytes()


def test_a_second_judgement_of_an_answer_takes_the_place_of_the_first(path):
    add(DOWN, path)
    add(replace(DOWN, liked=True, reasons=("clear",), better=ANSWER["content"]), path)
    (row,) = rows(path)
    assert (row.liked, row.better) == (True, "")  # the answer itself is no better answer


def test_all_that_is_wrong_is_said_at_once_and_nothing_stored(path):
    wrong = replace(DOWN, messages=[QUESTION], reasons=("clear",), better="x" * 9000)
    with pytest.raises(UserError, match=r"does not end with .*9,000 characters.*unknown reasons: clear"):
        add(wrong, path)
    assert not path.exists()


def test_deleted_by_number_with_votes_and_without_traces(path):
    add(DOWN, path)
    add(replace(DOWN, conversation="c2"), path)
    votes.add(Vote("b", "a", "base", "a", True, 1, "Question?", "mercurial", "no", conversation="c1"), path)
    assert delete("c1", path) == 2
    assert [row.conversation for row in rows(path)] == ["c2"]
    assert b"mercurial" not in path.read_bytes()
    assert delete("c1", path) == 0


def test_votes_from_before_versions_are_kept(path):
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE votes (time REAL, base TEXT, adapter_a TEXT, adapter_b TEXT, choice TEXT, "
            "blind INTEGER, seed INTEGER, question TEXT, answer_a TEXT, answer_b TEXT)"
        )
        old.execute("INSERT INTO votes VALUES (1.5, 'b', 'medchat', 'base', 'a', 1, 3, 'q', 'x', 'y')")
    old.close()
    add(DOWN, path)
    assert votes.tally(path) == {"medchat": 1}
    (vote,) = votes.rows(path)
    assert vote == Vote("b", "medchat", "base", "a", True, 3, "q", "x", "y")
    with sqlite3.connect(path) as now:
        assert now.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)
    now.close()


def test_many_open_a_new_database_at_once(path):
    threads = [threading.Thread(target=add, args=(replace(DOWN, conversation=str(i)), path)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row.conversation for row in rows(path)} == set(map(str, range(8)))


def test_a_database_that_cannot_be_written_is_told(path, monkeypatch):
    add(DOWN, path)
    monkeypatch.setattr(database, "WAIT", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"nothing was stored\. Another program is writing"):
        add(DOWN, path)
    other.close()
    add(DOWN, path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="Please tell whoever runs this page"):
        add(DOWN, path)
    (path.parent / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        delete("c1", path.parent / "file" / "votes.sqlite")


def test_a_database_of_a_newer_version_stays_as_it_is(path):
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(UserError, match="could not be written"):
        add(DOWN, path)
    with pytest.raises(sqlite3.Error, match="newer MedChat"):
        votes.tally(path)


# --- the dataset on the Hub ---


def squash(hub, request, kinds, repo, branch):
    """The Hub's super-squash: one commit takes the place of all."""
    request.body()
    entry, sha = hub._find(request, "dataset", repo, branch, write=True)
    entry.commits = {sha: entry.commits[sha]}
    return {}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    route = ("POST", hubs._API + r"/super-squash/([^/]+)", squash)
    monkeypatch.setattr(hubs, "_ROUTES", [*hubs._ROUTES, route])
    with Hub(tmp_path) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("MEDCHAT_CACHE", str(tmp_path / "cache"))
        yield hub


def test_the_dataset_gets_a_scrubbed_copy_and_loses_it_on_request(hub, path):
    dataset = feedback.open_dataset("owner/said")
    assert dataset
    for number in ("c1", "c2"):
        add(replace(DOWN, conversation=number), path, dataset)
    dataset.commit()
    files = hub.files("owner/said", kind="dataset")
    assert sorted(name.split("/")[1] for name in files) == ["c1", "c2"]
    row = feedback.from_json(json.loads(next(iter(files.values()))))
    assert row in list(rows(path))
    assert delete("c1", path, dataset) == 1
    assert [name.split("/")[1] for name in hub.files("owner/said", kind="dataset")] == ["c2"]
    assert len(hub._repos["dataset", "owner/said"].commits) == 1  # the history that held it is gone
    hub.fail_next("GET /api/datasets/owner/said/tree", status=403)
    with pytest.raises(UserError, match="ask whoever runs this page to delete conversation c2"):
        delete("c2", path, dataset)


@pytest.mark.parametrize(
    ("repo", "private", "token", "why"),
    [
        ("owner/said", True, "reader", "HF_TOKEN has no right to write it"),
        ("owner/open", False, "token", "it is public"),
        ("no id at all", True, "token", "that is no id of the form ORG/NAME"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_told_in_one_sentence(hub, monkeypatch, caplog, repo, private, token, why):
    if "/" in repo:
        hub.add(repo, {}, kind="dataset", private=private)
    monkeypatch.setenv("HF_TOKEN", getattr(hub, token))
    assert feedback.open_dataset(repo) is None
    (record,) = caplog.records
    assert f"Feedback stays on this machine: the dataset {repo} is not used, since {why}" in record.getMessage()


# --- for TRL ---


def test_the_command_writes_what_trl_trains_on(path, tmp_path, tiny, capsys):
    add(DOWN, path)
    add(replace(DOWN, conversation="c2", liked=True, reasons=("kind",), better=""), path)
    votes.add(Vote("b", "a", "base", "b", True, 1, "What helps?", "Nothing.", "Rest helps."), path)
    votes.add(Vote("b", "a", "base", "both bad", True, 1, "What helps?", "Nothing.", "Magic."), path)
    votes.add(Vote("b", "a", "base", "a", True, 1), path)
    out = tmp_path / "out"
    assert trainer.main(["feedback", "--database", str(path), "--output", str(out)]) == 0
    told = capsys.readouterr().out
    for part in (
        "1 better answers, 1 votes",
        "1 thumbs down, 1 thumbs up, 2 votes for both bad",
        "1 votes whose texts",
    ):
        assert part in told
    preferences = [json.loads(line) for line in (out / "preferences.jsonl").open(encoding="utf-8")]
    assert preferences[1] == {
        "prompt": [{"role": "user", "content": "What helps?"}],
        "chosen": [{"role": "assistant", "content": "Rest helps."}],
        "rejected": [{"role": "assistant", "content": "Nothing."}],
    }
    assert trainer.main(["feedback", "--database", str(path), "--output", str(out)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    for kind, name in (("DPO", "preferences"), ("KTO", "unpaired")):
        assert _trained(kind, out / f"{name}.jsonl", tiny / "base", tmp_path / kind) > 0


def _trained(kind, file, base, folder):
    """Return the loss of one step of TRL's trainer of this kind on a file."""
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": [], "max_length": 128}
    config = getattr(trl, f"{kind}Config")(output_dir=str(folder), gradient_checkpointing=False, bf16=False, **settings)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    made = getattr(trl, f"{kind}Trainer")(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    assert len(made.train_dataset) == len(rows)  # none was refused
    return made.train().training_loss


def test_rows_stream_through_little_memory(path, tmp_path):
    messages = json.dumps([{"role": "user", "content": "q " * 100}, {"role": "assistant", "content": "a " * 200}])
    with database.opened(path) as db:
        db.executemany(
            "INSERT INTO feedback VALUES (?, 0, 'c', ?, 1, '[]', 'better', 'a', 'b', 1)",
            ((str(i), messages) for i in range(5_000)),
        )
    tracemalloc.start()
    counts = export(rows(path), tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts["preferences.jsonl"]["better answers"] == counts["unpaired.jsonl"]["thumbs up"] == 5_000
    assert peak < 1e6  # bytes; the texts are 3 MB


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--database", "/nowhere/votes.sqlite"], "no database at"), (["--database", "README.md"], "could not be read")],
)
def test_the_command_refuses_with_a_sentence(tmp_path, capsys, arguments, complaint):
    assert trainer.main(["feedback", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_the_command_deletes_and_says_when_nothing_is_there(path, tmp_path, capsys):
    add(replace(DOWN, conversation=(number := new_conversation())), path)
    assert trainer.main(["feedback", "--database", str(path), "--delete", number]) == 0
    assert "deleted here: 1" in capsys.readouterr().out
    assert trainer.main(["feedback", "--database", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "no feedback to learn from" in capsys.readouterr().err
