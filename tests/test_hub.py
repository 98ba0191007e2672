"""Adapters from the Hub, and pushes to it: the real client against tests/hub.py, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from medchat import adapters
from medchat.errors import UserError
from tests.hub import Hub

# The client reads its environment once, at import; hence a process. It prints the answer as its last line.
OPEN = """
import json, logging, sys
from medchat.adapters import open_hub_adapter
from medchat.errors import UserError

modules, sources, answers = json.loads(sys.argv[1]), sys.argv[2:], []
for source in sources:
    try:
        adapter = open_hub_adapter(source, modules and {name: tuple(shape) for name, shape in modules.items()})
        answers.append({"folder": str(adapter.folder), **adapter.summary()})
    except UserError as error:
        logging.exception("refused")  # a log shows the whole chain of causes
        answers.append({"what": error.what, "fix": error.fix})
print(json.dumps(answers))
"""
FILES = {path.name: path.read_bytes() for path in adapters.EMBEDDED.iterdir() if path.is_file()}
MINE = {name: FILES[name] for name in (adapters.CONFIG, adapters.WEIGHTS)}
REPO = "clinic/adapter"
WRONG = "hf_WrongTokenCanary"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path) as server:
        yield server


def open_in(
    env: dict[str, str], source: str = REPO, modules: dict[str, tuple[int, int]] | None = None, cwd: Path | None = None
) -> Any:
    """Return what open_hub_adapter() answers in that environment."""
    return json.loads(run(env, OPEN, json.dumps(modules), source, cwd=cwd).splitlines()[-1])[0]


def open_all_in(env: dict[str, str], sources: list[str]) -> Any:
    return json.loads(run(env, OPEN, "null", *sources).splitlines()[-1])


def run(env: dict[str, str], code: str, *arguments: str, cwd: Path | None = None) -> str:
    """Return what a program prints; neither that nor its log may hold a token."""
    command = [sys.executable, "-c", code, *arguments]
    env = {**env, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    for token in (Hub.token, Hub.stranger, WRONG):
        assert token not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights_requests(hub: Hub) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET") and adapters.WEIGHTS in request]


def leftovers(home: Path) -> list[str]:
    """Return what lies in the cache besides configs, by name: a part of the weights must not."""
    blobs = [path for path in home.rglob("*") if path.is_file() and "blobs" in path.parts]
    return [path.name for path in blobs if path.stat().st_size > 10_000 or path.name.endswith(".incomplete")]


def test_fetches_what_is_allowed_and_no_more(hub: Hub, tmp_path: Path) -> None:
    more = {"README.md": b"# Card", "handler.py": b"print('code')", "adapter_model.bin": b"pickle", "optimizer.pt": 9}
    commit = hub.add(REPO, FILES | more)

    adapter = open_in(hub.env(tmp_path / "home"))

    folder = Path(adapter["folder"])
    fetched = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert fetched == {name: FILES[name] for name in adapters.ALLOWED}
    assert adapter["revision"] == commit == folder.name
    assert (adapter["name"], adapter["source"], adapter["rank"]) == (REPO, REPO, 16)
    assert not [request for request in hub.requests for name in more if request.endswith(name)]


def test_cache_serves_without_the_network(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add(REPO, FILES)
    env = hub.env(tmp_path / "home")
    first = open_in(env)

    hub.requests.clear()
    assert open_in(env, f"{REPO}@{commit}") == {**first, "name": f"{REPO}@{commit}", "source": f"{REPO}@{commit}"}
    assert open_in({**env, "HF_HUB_OFFLINE": "1"}) == first
    assert hub.requests == []

    hub.fail_next("/api/models", times=9)  # silence
    assert open_in({**env, "HF_HUB_ETAG_TIMEOUT": "1"}) == first
    hub.close()
    assert open_in(env) == first


def test_follows_a_branch_and_stays_at_a_commit(hub: Hub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "home")
    old = hub.add(REPO, FILES)
    assert open_in(env)["revision"] == old
    new = hub.add(REPO, MINE)
    draft = hub.add(REPO, MINE | {"recipe.yaml": b"system: Be brief."}, revision="draft/2")

    assert open_in(env)["revision"] == new
    assert open_in(env, f"{REPO}@{old}")["revision"] == old
    assert open_in(env, f"{REPO}@draft/2")["revision"] == draft


def test_private_and_gated_repositories_open_with_the_right_token(hub: Hub, tmp_path: Path) -> None:
    # The local Hub's storage, like the real one, fails when it is sent a token.
    hub.add("clinic/private", MINE, private=True)
    hub.add("clinic/gated", MINE, gated=True)

    assert open_in(hub.env(tmp_path / "home", token=hub.token), "clinic/private")["rank"] == 16
    assert open_in(hub.env(tmp_path / "home", token=hub.token), "clinic/gated")["rank"] == 16


REFUSALS: dict[str | None, list[tuple[str, str, str]]] = {  # token -> (id, part of the sentence, part of the fix)
    None: [
        ("clinic/absent", "The Hub has no public repository 'clinic/absent'.", "if it is private, set HF_TOKEN"),
        ("clinic/private", "The Hub has no public repository 'clinic/private'.", "set HF_TOKEN to a token from"),
        ("clinic/gated", "'clinic/gated' is gated.", "/clinic/gated and set HF_TOKEN to a token from"),
        (f"{REPO}@v9", "The repository 'clinic/adapter' has no revision 'v9'.", "or leave @... out"),
        (f"{REPO}@{'0' * 40}", f"no revision '{'0' * 40}'.", "Choose a branch or commit"),
        ("clinic/full", "is a full model, not an adapter: it has no adapter_config.json.", "Type --base clinic/full"),
        ("clinic/notes", "is not an adapter: it has no adapter_config.json", "Hub id"),
        ("clinic/pickle", "only a pickle (adapter_model.bin), which could run code.", "saved as safetensors"),
        ("clinic/empty", "holds no adapter_model.safetensors.", "saved as safetensors"),
        ("clinic/big", "has 3,000 MB; one from the Hub may have 512 MB.", "give --adapter its folder"),
        ("clinic/ia3", "is of the type IA3.", "Choose a LoRA adapter."),
        ("clinic/list", "is of the type None.", "Choose a LoRA adapter."),
        ("clinic/vague", "lacks the numbers r or lora_alpha.", "Fetch or save the adapter again."),
        ("clinic/broken", "is not valid JSON.", "Fetch or save the adapter again."),
    ],
    Hub.stranger: [
        ("clinic/private", "no repository 'clinic/private' that your token may read.", "set HF_TOKEN"),
        ("clinic/gated", "your account is not on its list.", "Ask for access at"),
    ],
    WRONG: [(REPO, "The Hub does not accept your token.", "take it away if the adapter is public.")],
    f"{WRONG} twice": [(REPO, "The token in HF_TOKEN holds a blank", "Copy it again")],
}


@pytest.mark.parametrize("token", REFUSALS)
def test_refuses_before_the_weights(hub: Hub, tmp_path: Path, token: str | None) -> None:
    config = MINE[adapters.CONFIG]
    hub.add(REPO, MINE)
    hub.add("clinic/private", MINE, private=True)
    hub.add("clinic/gated", MINE, gated=True)
    hub.add("clinic/full", {"config.json": b"{}", "model.safetensors": 6_000_000_000})
    hub.add("clinic/notes", {"README.md": b"# Notes"})
    hub.add("clinic/pickle", {adapters.CONFIG: config, "adapter_model.bin": 5_000_000})
    hub.add("clinic/empty", {adapters.CONFIG: config})
    hub.add("clinic/big", {adapters.CONFIG: config, adapters.WEIGHTS: 3_000_000_000})
    hub.add("clinic/ia3", MINE | {adapters.CONFIG: b'{"peft_type": "IA3"}'})
    hub.add("clinic/list", MINE | {adapters.CONFIG: b"[]"})
    hub.add("clinic/vague", MINE | {adapters.CONFIG: b'{"peft_type": "LORA", "r": "8"}'})
    hub.add("clinic/broken", MINE | {adapters.CONFIG: b"{"})

    sources = [source for source, _, _ in REFUSALS[token]]
    answers = open_all_in(hub.env(tmp_path / "home", token=token), sources)

    for (source, what, fix), answer in zip(REFUSALS[token], answers, strict=True):
        assert what in answer["what"], source
        assert fix in answer["fix"], source
    assert weights_requests(hub) == []
    assert leftovers(tmp_path / "home") == []


def test_checks_the_base_in_the_header_of_the_weights(hub: Hub, tmp_path: Path) -> None:
    from medchat.embedded import gguf_path
    from medchat.gguf_header import read_header

    hub.add(REPO, FILES)
    env = hub.env(tmp_path / "home")
    modules = adapters.gguf_modules(read_header(gguf_path()))
    modules = {name: shape for name, shape in modules.items() if name.startswith("model.layers")}
    larger = {name: (2 * outputs, inputs) for name, (outputs, inputs) in modules.items()}

    answer = open_in(env, modules=larger)
    assert "does not fit this base: model.layers." in answer["what"]
    assert "It was trained on HuggingFaceTB/SmolLM2-135M-Instruct." in answer["what"]
    assert "--base" in answer["fix"]
    assert weights_requests(hub)
    assert all(request.endswith("bytes=0-100000") for request in weights_requests(hub))
    assert leftovers(tmp_path / "home") == []

    assert open_in(env, modules=modules)["rank"] == 16


def test_hostile_shapes_are_a_sentence() -> None:
    pair = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": (8,) for side in "AB"}
    with pytest.raises(UserError, match="has no counterpart"):
        adapters.check_fit(pair, {"model.layers.0.self_attn.q_proj": (8, 8)}, REPO, "")


def test_damaged_weights(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, MINE | {adapters.WEIGHTS: b"\x10" * 5000})

    answer = open_in(hub.env(tmp_path / "home"), modules={"model.layers.0.self_attn.q_proj": (8, 8)})
    assert answer["what"] == "The weights of 'clinic/adapter' are damaged."
    assert leftovers(tmp_path / "home") == []

    assert "is damaged or cut off" in open_in(hub.env(tmp_path / "home"))["what"]


def test_passing_troubles_are_tried_again(hub: Hub, tmp_path: Path) -> None:
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{q_proj}.lora_A.weight": np.ones((8, 200_000)), f"{q_proj}.lora_B.weight": np.ones((8, 8))}
    weights = safetensors.numpy.save(pair)
    hub.add(REPO, MINE | {adapters.WEIGHTS: weights})
    hub.fail_next("/api/models", status=500)
    hub.fail_next(f"HEAD /{REPO}/resolve", status=503)
    hub.fail_next("GET /cdn", cut_after=11 << 20)

    adapter = open_in(hub.env(tmp_path / "home"))

    assert Path(adapter["folder"], adapters.WEIGHTS).read_bytes() == weights
    first, second = weights_requests(hub)
    assert second == f"{first} bytes={10 << 20}-"  # went on from the last whole block


def test_network_lost_in_mid_download(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    env = hub.env(tmp_path / "home")
    hub.fail_next("GET /cdn", cut_after=100_000)
    hub.fail_next("GET /cdn", cut_after=0, times=6)

    answer = open_in(env)
    assert answer["what"].endswith("broke while 'clinic/adapter' was being fetched.")
    assert "start again" in answer["fix"]
    assert leftovers(tmp_path / "home") == []
    assert "is not on this machine" in open_in({**env, "HF_HUB_OFFLINE": "1"})["what"]  # half an adapter is none

    hub.requests.clear()
    assert open_in(env)["rank"] == 16
    assert not [request for request in hub.requests if request.endswith(adapters.CONFIG)]  # was complete, was kept


@pytest.mark.parametrize(
    ("status", "what", "fix"),
    [
        (None, "cannot be reached, and 'clinic/adapter' is not on this machine.", "HF_HUB_ETAG_TIMEOUT=30"),
        (500, "The Hub answers with an error (status 500).", "Try again in a few minutes."),
        (429, "takes no more requests from here", "or set HF_TOKEN"),
        (403, "Your token may not read 'clinic/adapter'.", "Give it read access"),
        (200, "is not the Hub.", "Check HF_ENDPOINT"),
    ],
)
def test_the_hub_does_not_answer_as_it_should(
    hub: Hub, tmp_path: Path, status: int | None, what: str, fix: str
) -> None:
    hub.add(REPO, MINE)
    hub.fail_next("/api/models", status=status, times=9)

    answer = open_in(hub.env(tmp_path / "home", HF_HUB_ETAG_TIMEOUT="1"))

    assert what in answer["what"]
    assert fix in answer["fix"]


def test_no_network_at_the_start(hub: Hub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "home")
    hub.close()

    assert "cannot be reached" in open_in(env)["what"]
    offline = open_in({**env, "HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE=1 forbids to fetch it." in offline["what"]
    assert "give --adapter a folder" in offline["fix"]


def test_what_is_no_id_never_leaves_the_machine(hub: Hub, tmp_path: Path) -> None:
    sources = [
        "adapter",
        "../clinic/adapter",
        "/etc/passwd",
        "clinic/adapter@",
        "clinic/adapter@../../x",
        "a/b/c",
        "a..b/c",
        "",
    ]
    for source, answer in zip(sources, open_all_in(hub.env(tmp_path / "home"), sources), strict=True):
        assert answer["fix"] == "Check the path, or give a Hub id like org/name.", source
    assert hub.requests == []


def test_a_visitors_id_never_opens_a_folder(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add(REPO, MINE)
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "adapter").symlink_to(adapters.EMBEDDED)

    assert open_in(hub.env(tmp_path / "home"), cwd=tmp_path)["revision"] == commit


PUSH = """
import sys, warnings
from huggingface_hub import CommitOperationDelete, HfApi

api, repo = HfApi(), "clinic/new"
assert api.whoami()["name"] == "owner"
api.create_repo(repo, private=True)
api.create_repo(repo, exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=sys.argv[1], commit_message="Add the adapter")
assert api.upload_folder(repo_id=repo, folder_path=sys.argv[1]).oid == first.oid  # nothing has changed
api.create_branch(repo, branch="v2")
api.upload_file(repo_id=repo, path_in_repo="README.md", path_or_fileobj=b"---\\nlicense: mit\\n---\\n", revision="v2")
pull = api.create_commit(repo, [CommitOperationDelete("recipe.yaml")], commit_message="Remove it", create_pr=True)
assert pull.pr_revision == "refs/pr/1", pull
refs = api.list_repo_refs(repo, include_pull_requests=True)
assert {branch.name for branch in refs.branches} == {"main", "v2"} and len(refs.pull_requests) == 1
assert api.get_paths_info(repo, ["recipe.yaml"])[0].size > 0
api.create_repo("clinic/questions", repo_type="dataset")
api.upload_file(repo_id="clinic/questions", repo_type="dataset", path_in_repo="data/a.jsonl", path_or_fileobj=b"{}")
assert [f.path for f in api.list_repo_tree("clinic/questions", repo_type="dataset")] == ["data"]
assert api.dataset_info("clinic/questions").siblings[0].rfilename == "data/a.jsonl"
assert open(api.hf_hub_download("clinic/questions", "data/a.jsonl", repo_type="dataset")).read() == "{}"
"""


def test_pushes_come_back(hub: Hub, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "home", token=hub.token)
    run(env, PUSH, str(adapters.EMBEDDED))

    assert hub.files("clinic/new") == FILES
    assert hub.files("clinic/new", revision="v2").keys() == FILES.keys() | {"README.md"}
    assert hub.files("clinic/new", revision="refs/pr/1").keys() == FILES.keys() - {"recipe.yaml"}
    assert hub.files("clinic/questions", kind="dataset") == {"data/a.jsonl": b"{}"}
    adapter = open_in(env, "clinic/new@v2")
    assert Path(adapter["folder"], adapters.WEIGHTS).read_bytes() == FILES[adapters.WEIGHTS]


def test_strangers_may_not_push(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, MINE)
    code = """
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
for push in (
    lambda: HfApi().create_repo("clinic/new"),
    lambda: HfApi().upload_file(repo_id="clinic/adapter", path_in_repo="x.txt", path_or_fileobj=b"x"),
    lambda: HfApi().create_branch("clinic/adapter", branch="mine"),
):
    try:
        push()
    except HfHubHTTPError as error:
        print(error.response.status_code)
"""
    assert run(hub.env(tmp_path / "home", token=hub.stranger), code).split() == ["403"] * 3
    assert hub.files(REPO) == MINE


def test_curated_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [entry["id"] for entry in adapters.curated()]
    assert "youzarsif/Doctor_Llama-3.2-3B-Instruct" in ids
    assert len(ids) == len(set(ids))
    assert all(adapters._hub_id(name) == (name, None) for name in ids)

    wrong = tmp_path / "adapters.yaml"
    wrong.write_text(
        "- {id: a/b, tittle: T, base: c/d, about: A, license: MIT, non_commercial: maybe, unverified: ''}\n"
    )
    monkeypatch.setattr(adapters, "CURATED", wrong)
    with pytest.raises(UserError) as caught:
        adapters.curated()
    assert "entry 1 has 'tittle', meant may be 'title'" in caught.value.what
    assert "entry 1 needs 'title' as text" in caught.value.what
    assert "entry 1 needs 'non_commercial' as true or false" in caught.value.what
