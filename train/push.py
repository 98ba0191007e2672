"""`python -m train push ADAPTER_DIR --repo ORG/NAME`: an adapter on the Hub, with its card, and proof that it works."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medchat import adapters, embedded
from medchat.adapters import Adapter
from medchat.errors import UserError
from train import recipe as recipes
from train import report
from train.card import model_card, public_name, worse
from train.recipe import Recipe
from train.replies import in_fresh_process

RESULTS, REPORT = "results.json", "data_report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER_DIR", help="folder that `train sft` wrote")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository on the Hub; made where needed")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--branch", metavar="B", help="push to this branch, made where needed (default: main)")
    target.add_argument("--pull-request", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="what `train evaluate` wrote (default: ADAPTER_DIR/results.json)"
    )
    parser.add_argument("--base-id", metavar="ORG/NAME", help="the base's id on the Hub, where only a folder is known")
    parser.add_argument(
        "--allow-worse", action="store_true", help="publish although worse than the base; the card says so"
    )


def run(arguments: argparse.Namespace) -> None:
    """Push, and print where the adapter is once a fresh process has reproduced its replies."""
    url = push(
        arguments.adapter,
        arguments.repo,
        private=arguments.private,
        branch=arguments.branch,
        pull_request=arguments.pull_request,
        results=arguments.results,
        base_id=arguments.base_id,
        allow_worse=arguments.allow_worse,
    )
    print(f"published: {url}")


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    branch: str | None = None,
    pull_request: bool = False,
    results: Path | None = None,
    base_id: str | None = None,
    allow_worse: bool = False,
) -> str:
    """Publish an adapter folder and return the address of what was pushed.

    Before: the adapter must have been evaluated and not be worse than its base. After: a fresh process downloads the
    very commit and must give the same three greedy replies, token for token. Raises UserError, never with a token in
    it; a push that broke off goes on where it was when it is run again.
    """
    from huggingface_hub import HfApi

    adapter, recipe, scores, base = _checked(folder, results, base_id, allow_worse)
    api = HfApi()
    _check_token(api)
    _claim(api, repo, private=private, branch=branch, pull_request=pull_request)

    local_base = _local_base(recipe, base)
    quant = "4bit" if recipe.method == "qlora" else "none"
    with tempfile.TemporaryDirectory(prefix="medchat-push-") as scratch:
        staged = _staged(adapter, recipe, scores, base, repo, Path(scratch) / "adapter", branch=branch)
        _say("Three greedy replies of the adapter here ...")
        before = in_fresh_process(local_base, str(staged), quant)
        _say(f"Uploading to {repo} ...")
        commit, url = _upload(api, repo, staged, branch=branch, pull_request=pull_request)
        _say(f"The same replies from a fresh download of {commit[:8]} ...")
        after = in_fresh_process(local_base, f"{repo}@{commit}", quant, caches=Path(scratch))
    for number, (here, there) in enumerate(zip(before, after, strict=True), start=1):
        if here != there:
            raise UserError(
                f"Reply {number} of what lies at {url} is {''.join(there['tokens'])!r}, here it is "
                f"{''.join(here['tokens'])!r}.",
                "Do not announce it: push again, or delete it on the Hub.",
            )
    return url


# ---- before: what is in the folder


def _checked(
    folder: Path, results: Path | None, base_id: str | None, allow_worse: bool
) -> tuple[Adapter, Recipe, dict[str, Any], str]:
    """Return adapter, recipe, results and the base's Hub id; raises one UserError with all that is missing."""
    if not folder.is_dir():
        raise UserError(f"There is no adapter folder {folder}.", "Check the path.")
    adapter = adapters.open_adapter(str(folder))
    wrong: list[UserError] = []

    recipe = None
    if not (folder / "recipe.yaml").is_file():
        wrong.append(
            UserError(
                f"{folder} has no recipe.yaml: another tool trained it, and its card could not say how and on what.",
                "Write one as `python -m train sft` does (description, base, data, output_dir), or train it here.",
            )
        )
    else:
        try:
            recipe = recipes.load(str(folder / "recipe.yaml"))
        except UserError as error:
            wrong.append(error)
    base = ""
    try:
        base = _hub_base(adapter, recipe, base_id)
    except UserError as error:
        wrong.append(error)
    scores: dict[str, Any] = {}
    try:
        scores = _results(adapter, results or folder / RESULTS)
        names = {base, adapter.base, recipe.base if recipe else ""}
        if base and (_hub_id(scores["base"]) or scores["base"]) not in names:
            raise UserError(
                f"The adapter was measured on the base {scores['base']}, and it was trained on {base}.",
                "Evaluate it again without --base; if they are the same, type --base-id.",
            )
        if (found := worse(scores)) and not allow_worse:
            raise UserError(
                f"The adapter is worse than its base: {'; '.join(found)} (difference, 95 % interval).",
                "Train a better one, or type --allow-worse, and the card will say so.",
            )
    except UserError as error:
        wrong.append(error)

    if recipe is None or wrong:
        if len(wrong) == 1:
            raise wrong[0]
        listed = "\n  - ".join(str(error) for error in wrong)
        raise UserError(f"{folder} cannot be published yet:\n  - {listed}\n", "Mend these and push again.")
    return adapter, recipe, scores, base


def _hub_base(adapter: Adapter, recipe: Recipe | None, base_id: str | None) -> str:
    """Return the Hub id of the adapter's base: given, recorded, or the one that a local path stands for."""
    if base_id is not None and not _is_hub_id(base_id):
        raise UserError(f"--base-id {base_id} is no Hub id.", "Type one like ORG/NAME.")
    for base in (base_id or "", adapter.base, recipe.base if recipe else ""):
        if found := _hub_id(base):
            return found
    known = f"only as {adapter.base!r}, a path of this machine" if adapter.base else "not at all"
    raise UserError(f"The adapter records its base {known}.", "Type --base-id ORG/NAME, the base's id on the Hub.")


def _hub_id(base: str) -> str | None:
    """Return the Hub id that a base's name or path stands for, None for a folder that only this machine knows."""
    if base == "embedded" or Path(base).name.startswith(embedded.NAME + "-"):  # the copy in the user's cache
        return embedded.ORIGINAL
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots", base):  # the Hub's own cache
        return f"{cached[1]}/{cached[2]}"
    return base.partition("@")[0] if _is_hub_id(base) else None


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name)) and not Path(name).exists()


def _results(adapter: Adapter, path: Path) -> dict[str, Any]:
    """Return what `train evaluate` measured; raises UserError unless it is about these weights."""
    command = f"python -m train evaluate --adapter {adapter.source} --tasks pubmedqa,medqa,nll --output {path}"
    if not path.is_file():
        raise UserError(f"The adapter was not evaluated: there is no {path}.", f"Type: {command}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        sha256, tasks, paired = results["adapter_sha256"], results["tasks"], results["paired"]
        complete = (
            isinstance(results["base"], str)
            and tasks
            and all(set(metrics) for metrics in tasks.values())
            and set(paired) >= set(tasks)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what `train evaluate` writes.", f"Type: {command}") from error
    if sha256 != adapter.sha256:
        raise UserError(
            f"{path} is about another adapter (SHA-256 {str(sha256)[:12]}..., this one has {adapter.sha256[:12]}...).",
            f"Type: {command}",
        )
    if not complete:
        raise UserError(f"{path} compares the adapter with its base on no task, or not on all.", f"Type: {command}")
    return results


def _local_base(recipe: Recipe, base: str) -> str:
    """Return the folder or GGUF file that replies are computed with, so that a fresh cache need not hold the base."""
    from huggingface_hub import snapshot_download

    if recipe.base == "embedded":
        return str(embedded.gguf_path())
    if Path(recipe.base).is_dir():
        return str(Path(recipe.base).resolve())
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return snapshot_download(base, revision=recipe.revision, allow_patterns=wanted)
    except Exception as error:
        raise adapters.base_problem(base, error) from error


def _staged(
    adapter: Adapter,
    recipe: Recipe,
    scores: dict[str, Any],
    base: str,
    repo: str,
    folder: Path,
    *,
    branch: str | None = None,
) -> Path:
    """Return a folder with exactly what is to be pushed: no checkpoint, and nothing that names a path of here."""
    folder.mkdir()
    for name in (adapters.WEIGHTS, "chat_template.jinja", "log.json"):
        if (adapter.folder / name).is_file():
            shutil.copyfile(adapter.folder / name, folder / name)

    def write(name: str, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

    config = json.loads((adapter.folder / adapters.CONFIG).read_text(encoding="utf-8"))
    write(adapters.CONFIG, {**config, "base_model_name_or_path": base})
    public = replace(
        recipe,
        base="embedded" if recipe.base == "embedded" else base,
        output_dir=f"runs/{Path(recipe.output_dir).name}",
        data=[replace(source, dataset=public_name(source.dataset)) for source in recipe.data],
    )
    write("recipe.yaml", public.to_yaml())
    counts = None
    if (adapter.folder / REPORT).is_file():
        counts = json.loads((adapter.folder / REPORT).read_text(encoding="utf-8"))
        for source in counts["sources"]:
            source["dataset"] = public_name(source["dataset"])
        tests = counts["evaluation sets"]
        for test in tests.values() if isinstance(tests, dict) else ():
            if "missing" in test:  # in words that may name a folder of this machine
                test["missing"] = "it was not at hand"
        write(REPORT, counts)
    results = {"references": {}, **scores, "base": base, "adapter": repo}
    write(RESULTS, results)
    write("results.svg", report.svg(results))
    write("README.md", model_card(adapter, repo, base, public, results, counts, branch=branch))
    return folder


# ---- the Hub


def _check_token(api: Any) -> None:
    """Raise UserError unless there is a token that may write, as far as the Hub tells."""
    from huggingface_hub import constants, get_token, is_offline_mode

    page = f"{constants.ENDPOINT}/settings/tokens"
    if is_offline_mode():
        raise UserError("HF_HUB_OFFLINE=1 forbids to push.", "Take it away and push again.")
    token = get_token()
    if not token:
        raise UserError(
            "There is no token of the Hub.", f"Make one with write access at {page} and set HF_TOKEN to it."
        )
    if not re.fullmatch("[!-~]+", token):  # the HTTP client's own complaint would quote it
        raise UserError("The token holds a blank or another character that no token has.", f"Copy it again from {page}")
    try:
        who = api.whoami()
    except Exception as error:
        raise _refused(error, "") from error
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError("Your token may only read.", f"Make one with write access at {page} and set HF_TOKEN to it.")


def _claim(api: Any, repo: str, *, private: bool, branch: str | None, pull_request: bool) -> None:
    """Make sure that there is a repository and that we may write to it.

    Raises UserError for one of somebody else, one that holds something else, and a public one where a private one was
    asked for.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:  # private ones of other people look like this too, and cannot be made
            api.create_repo(repo, private=private or None)
            return
        if not pull_request:
            api.auth_check(repo, write=True)
        branches = [ref.name for ref in api.list_repo_refs(repo).branches]
        files = set(api.list_repo_files(repo, revision=branch if branch in branches else "main"))
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no Hub id.", "Type --repo ORG/NAME.") from error
    except Exception as error:
        raise _refused(error, repo) from error
    if private and not info.private:
        raise UserError(f"{repo} exists and is public.", "Make it private on the Hub first, or leave --private out.")
    ours = {adapters.CONFIG, "recipe.yaml"} <= files
    if not pull_request and not ours and files - {".gitattributes", "README.md", "LICENSE"}:
        raise UserError(
            f"{repo} exists and holds something else ({', '.join(sorted(files)[:3])}).",
            "Choose another --repo, or propose the adapter with --pull-request.",
        )


def _upload(api: Any, repo: str, folder: Path, *, branch: str | None, pull_request: bool) -> tuple[str, str]:
    """Upload a folder in one commit; return the commit and its address."""
    from huggingface_hub import constants

    try:
        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Publish the adapter with its card",
            revision=branch,
            create_pr=pull_request,
        )
    except Exception as error:
        raise _refused(error, repo) from error
    if done.pr_url:
        return done.oid, done.pr_url
    return done.oid, f"{constants.ENDPOINT}/{repo}" + (f"/tree/{branch}" if branch else "")


def _refused(error: Exception, repo: str) -> UserError:
    """Return why a push failed, and the fix; never in the error's own words, which might quote the token."""
    from huggingface_hub import constants

    tokens = f"{constants.ENDPOINT}/settings/tokens"
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 401:
        return UserError("The Hub does not accept your token.", f"Set HF_TOKEN to a valid one from {tokens}")
    if status in (403, 404):
        return UserError(
            f"Your token may not write to {repo}.",
            f"Use one with write access to {repo.partition('/')[0]} ({tokens}), another --repo, or --pull-request.",
        )
    if status in (409, 412):
        return UserError(f"{repo} was changed by somebody else at the same time.", "Run the same command again.")
    if status == 429:
        return UserError("The Hub takes no more requests from here for now.", "Wait five minutes and push again.")
    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    what = f"{host} answers with an error (status {status})" if status else f"The connection to {host} broke"
    return UserError(f"{what} before the push was complete.", "Run the same command again: what arrived is kept.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
