"""`python -m train evaluate`: an adapter and its base on the same rows, with intervals and something to compare to."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import logging
import platform
import random
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medchat import adapters
from medchat.adapters import Adapter
from medchat.errors import UserError
from medchat.prompt import SYSTEM, Message, Template
from train import recipe as recipes
from train.merge import base_of, recipe_of
from train.recipe import Recipe

if TYPE_CHECKING:
    from train.scoring import Answers, Chat

FOLDER = Path(__file__).parent / "tasks"
QUESTIONS = ("pubmedqa", "medqa", "medmcqa", "mmlu_medical")  # multiple choice, a file in tasks/ each
HELD_OUT = ("nll", "perplexity", "bleu", "rouge")  # on the rows that the recipe keeps from training
TASKS = (*QUESTIONS, *HELD_OUT, "forgetting")
LIBRARIES = ("torch", "transformers", "peft", "lm-eval", "datasets", "sacrebleu", "rouge-score")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "--base", default="", metavar="ID|PATH|embedded", help="the base (default: the one that the adapter records)"
    )
    parser.add_argument("--adapter", default="", metavar="DIR|ID|embedded", help="adapter folder or Hub id")
    parser.add_argument("--tasks", required=True, metavar="TASK,TASK", help=f"any of {', '.join(TASKS)}")
    parser.add_argument("--limit", type=int, metavar="N", help="a seeded sample of N rows of each task")
    parser.add_argument(
        "--recipe", default="", metavar="RECIPE", help="whose held-out rows (default: the one in the adapter's folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the intervals (default: %(default)s)")
    parser.add_argument("--output", required=True, type=Path, metavar="results.json", help="where the results go")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, write results.json, results.md and results.svg, and return the results.

    Base and adapter answer the same rows, in the adapter's chat format. Every answer is kept beside the results in
    results.answers.jsonl, so an interrupted run goes on where it stopped. Raises UserError with all problems at once.
    """
    tasks = _tasks(arguments)
    adapter = adapters.open_adapter(arguments.adapter) if arguments.adapter else None
    base = _base(adapter, arguments.base)
    recipe = _recipe(arguments.recipe, adapter, tasks)
    evaluation = {
        "base": base,
        "adapter": adapter.source if adapter else None,
        "adapter_sha256": adapter.sha256 if adapter else None,
        "seed": arguments.seed,
        "limit": arguments.limit,
    }
    earlier = _earlier(arguments.output, evaluation)
    rows_of = hashlib.sha256(recipe.to_yaml().encode()).hexdigest() if recipe else earlier.get("recipe_sha256")
    if earlier.get("recipe_sha256", rows_of) not in (rows_of, None):
        raise UserError(f"{arguments.output} is of another recipe's held-out rows.", "Choose another --output.")
    rows = _held_out(recipe, arguments.limit, arguments.seed) if recipe else []
    questions = _questions(tasks)
    model, tokenizer = _load(base, adapter)

    from train.scoring import Answers, Chat

    template = _template(adapter, recipe, tokenizer)
    system = SYSTEM if adapter is None or adapter.system is None else adapter.system
    answers = Answers(_beside(arguments.output, ".answers.jsonl"), evaluation)
    found: dict[str, dict[str, Any]] = {}
    try:
        for part in ("base", "adapter") if adapter else ("base",):
            if part == "adapter":
                model = _with_adapter(model, adapter)
            chat = Chat(part, model, tokenizer, template, system, answers)
            found[part] = score(chat, tasks, questions, rows, arguments.limit, arguments.seed)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {len(answers)} answers are kept. Run the same command again to go on.", file=sys.stderr)
        raise
    finally:
        answers.close()
    results = _results(evaluation, found, earlier, model, answers) | {"recipe_sha256": rows_of}
    _write(results, arguments.output)
    return results


def score(
    chat: Chat,
    tasks: Sequence[str],
    questions: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    limit: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return {task: {"metrics": {metric: Scored}, "references": {name: {metric: value}}}} of one model."""
    from train import metrics
    from train.scoring import ChatLM

    found: dict[str, Any] = {}
    if questions:
        found |= grade(ChatLM(chat), questions, chat.system, limit, seed)
    if {"nll", "perplexity"} & set(tasks):
        nats, tokens = chat.nll("held-out rows", rows)
        found["nll"] = {"metrics": metrics.nll(nats, tokens)}
        found["perplexity"] = {"metrics": metrics.perplexity(nats, tokens)}
    if {"bleu", "rouge"} & set(tasks):
        last = [max(n for n, m in enumerate(row["messages"]) if m["role"] == "assistant") for row in rows]
        replies = chat.replies("replies", [row["messages"][:n] for row, n in zip(rows, last, strict=True)])
        references = [row["messages"][n]["content"] for row, n in zip(rows, last, strict=True)]
        if "bleu" in tasks:
            found["bleu"] = {"metrics": metrics.bleu(replies, references)}
        if "rouge" in tasks:
            found["rouge"] = {"metrics": metrics.rouge(replies, references)}
    if "forgetting" in tasks:
        nats, tokens = chat.nll("everyday questions", _everyday(chat.system, limit, seed))
        found["forgetting"] = {"metrics": metrics.nll(nats, tokens)}
    return {task: found[task] for task in tasks}


def grade(lm: Any, questions: dict[str, Any], system: str, limit: int | None, seed: int) -> dict[str, Any]:
    """Return what `score` does for multiple-choice tasks; `lm` is any model of lm-eval, `questions` its task objects.

    An answer is the option of the highest log-likelihood right behind the question, in the chat format.
    """
    from lm_eval.evaluator import evaluate

    from train import metrics

    samples = {name: _sample(len(task.task_docs), limit, seed) for name, task in questions.items()} if limit else None
    graded = evaluate(
        lm,
        {"tasks": questions, "groups": {}},
        samples=samples,
        bootstrap_iters=0,
        apply_chat_template=True,
        system_instruction=system or None,
        fewshot_as_multiturn=True,
    )
    found = {}
    for name, entries in (graded or {}).get("samples", {}).items():
        gold, chosen = (list(side) for side in zip(*(entry["macro_f1"] for entry in entries), strict=True))
        majority = Counter(gold).most_common(1)[0][0]
        references = {"majority": _values(metrics.choices(gold, [majority] * len(gold)))}
        if name == "pubmedqa":  # what the data's authors say with the abstract in front of them, as the model has it
            # Some copies of the data hold the word as a list of its letters.
            people = ["".join(entry["doc"]["context"].get("reasoning_required_pred") or "") for entry in entries]
            if all(people):
                references["human"] = _values(metrics.choices(gold, [("yes", "no", "maybe").index(p) for p in people]))
        found[name] = {"metrics": metrics.choices(gold, chosen), "references": references}
    return found


def _values(scored: dict[str, Any]) -> dict[str, float]:
    return {name: float(one.value(one.rows.sum(0))) for name, one in scored.items()}


def _sample(count: int, limit: int | None, seed: int) -> list[int]:
    """Return which of `count` rows are used: all, or a seeded sample in their order."""
    return (
        list(range(count))
        if limit is None or limit >= count
        else sorted(random.Random(seed).sample(range(count), limit))
    )


def _everyday(system: str, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Return our own short dialogues on everything but medicine, which a medical adapter should not unlearn."""
    lines = (FOLDER / "forgetting.jsonl").read_text(encoding="utf-8").splitlines()
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    rows = []
    for n in _sample(len(lines), limit, seed):
        pair = json.loads(lines[n])
        turns = [{"role": "user", "content": pair["question"]}, {"role": "assistant", "content": pair["answer"]}]
        rows.append({"messages": [*first, *turns]})
    return rows


# --- before the model ---


def _tasks(arguments: argparse.Namespace) -> list[str]:
    """Return the tasks that were asked for; raises UserError with all that is wrong on the command line."""
    problems = []
    tasks = list(dict.fromkeys(name.strip() for name in arguments.tasks.split(",") if name.strip()))
    for name in tasks:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
            problems.append(
                f"there is no task {name!r}; " + (f"did you mean {near[0]!r}?" if near else ", ".join(TASKS))
            )
    if not tasks:
        problems.append(f"no task is named; there are {', '.join(TASKS)}")
    if arguments.limit is not None and arguments.limit < 1:
        problems.append(f"--limit is {arguments.limit}, and at least 1 row is needed")
    if not arguments.adapter and not arguments.base:
        problems.append("neither --adapter nor --base is given")
    if arguments.output.is_dir() or arguments.output.suffix != ".json":
        problems.append(f"--output {arguments.output} is not the name of a .json file")
    needed = {"lm_eval": TASKS, "sacrebleu": ("bleu",), "rouge_score": ("rouge",)}
    if missing := [name for name, uses in needed.items() if set(uses) & set(tasks) and find_spec(name) is None]:
        problems.append(f"{' and '.join(missing)} not installed; type: pip install -r train/requirements.txt")
    if problems:
        raise UserError(
            "This cannot be evaluated:\n  - " + "\n  - ".join(problems) + "\n", "Mend that and run it again."
        )
    return tasks


def _base(adapter: Adapter | None, chosen: str) -> str:
    """Return the base to load, at the commit that the adapter was trained on where its recipe names one."""
    if adapter is None:
        return chosen
    base, recipe = base_of(adapter, chosen), recipe_of(adapter.folder)
    return f"{base}@{recipe.revision}" if recipe and recipe.revision and recipe.base == base else base


def _recipe(name: str, adapter: Adapter | None, tasks: Sequence[str]) -> Recipe | None:
    """Return the recipe whose held-out rows are asked for, None where no task needs them."""
    wanted = [task for task in tasks if task in HELD_OUT]
    if not wanted:
        return None
    found = recipes.load(name) if name else recipe_of(adapter.folder) if adapter else None
    if found is None:
        whose = f"the adapter {adapter.source!r} brings none" if adapter else "a base has none"
        raise UserError(
            f"{', '.join(wanted)} need the held-out rows of a recipe, and {whose}.",
            f"Name one with --recipe: {', '.join(recipes.names())}, or a path.",
        )
    return found


def _held_out(recipe: Recipe, limit: int | None, seed: int) -> list[dict[str, Any]]:
    from train import data

    held_out = data.load(recipe).held_out
    if not len(held_out):
        raise UserError("This recipe holds no rows back from training.", "Name another with --recipe.")
    return [held_out[n] for n in _sample(len(held_out), limit, seed)]


def _questions(tasks: Sequence[str]) -> dict[str, Any]:
    """Return lm-eval's task objects, with their rows; raises UserError for data that is missing."""
    names = [name for name in tasks if name in QUESTIONS]
    if not names:
        return {}
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    problems, found = [], {}
    for name in names:
        try:
            found |= manager.load([name])["tasks"]
        except UserError as error:
            problems.append(error)
    if len(problems) > 1:
        raise UserError("Data is missing:\n  - " + "\n  - ".join(map(str, problems)) + "\n", "Mend that first.")
    if problems:
        raise problems[0]
    return found


def _earlier(output: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the tasks of an earlier run with the same output; raises UserError when it evaluated something else."""
    answers, found = _beside(output, ".answers.jsonl"), {}
    for path in (output, answers):
        if not path.is_file() or not path.stat().st_size:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text if path == output else text.splitlines()[0])
            was = {key: values[key] for key in evaluation}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path} is no result of this command.", "Choose another --output.") from error
        # The same adapter may be named by its folder today and by its id tomorrow.
        other = [key for key in evaluation if was[key] != evaluation[key] and key != "adapter"]
        if other:
            now = ", ".join(f"{key.replace('_', ' ')} {was[key]} instead of {evaluation[key]}" for key in other)
            raise UserError(f"{path} is of another evaluation: {now}.", "Choose another --output, or delete it.")
        found = values if path == output else found
    return found


def _beside(output: Path, suffix: str) -> Path:
    return output.with_suffix(suffix)


# --- the model ---


def _load(base: str, adapter: Adapter | None) -> tuple[Any, Any]:
    """Return model and tokenizer of a base, after checking that the adapter fits it.

    fp32 on a CPU; on a GPU 4 bits (NF4), as the app serves it, but for the embedded base, whose weights come from 4
    bits already. Raises UserError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medchat.engines import transformers as engine

    where, options = engine.base_location(base)
    if adapter:
        adapters.open_adapter(str(adapter.folder), engine.planned_modules(base, where, options))
    cuda = torch.cuda.is_available()
    how: dict[str, Any] = {"dtype": torch.float32}
    if cuda and base != "embedded":
        dtype = engine.compute_dtype("cuda")
        how = {"dtype": dtype, **engine.nf4_options("4bit", "cuda", dtype)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = AutoModelForCausalLM.from_pretrained(
            where, device_map={"": "cuda" if cuda else "cpu"}, use_safetensors=True, **how, **options
        )
    except Exception as error:
        raise engine.base_not_loaded(base, error) from error
    return model.eval(), tokenizer


def _with_adapter(model: Any, adapter: Adapter | None) -> Any:
    """Return the model with the adapter in it: merged in fp32, where that changes nothing but the speed."""
    import torch
    from peft import PeftModel

    assert adapter is not None
    wrapped = PeftModel.from_pretrained(model, str(adapter.folder)).eval()
    if model.dtype == torch.float32 and not getattr(model, "is_quantized", False):
        return wrapped.merge_and_unload()
    return wrapped.get_base_model()


def _template(adapter: Adapter | None, recipe: Recipe | None, tokenizer: Any) -> Template:
    """Return the chat format: the adapter's own, else the recipe's, else the base's."""
    from train.sft import base_template

    trained = recipe_of(adapter.folder) if adapter else None
    if trained and trained.template:  # its end of a turn need not be the base's end token
        return base_template(trained, tokenizer)
    if adapter and adapter.template:
        return Template(adapter.template, tokenizer.bos_token or "", tokenizer.eos_token or "")
    if recipe:
        return base_template(recipe, tokenizer)
    if not isinstance(tokenizer.chat_template, str):
        raise UserError("Neither base nor adapter brings a chat template.", "Choose an instruct model as --base.")
    return Template(tokenizer.chat_template, tokenizer.bos_token or "", tokenizer.eos_token or "")


# --- the results ---


def _results(
    evaluation: dict[str, Any], found: dict[str, dict[str, Any]], earlier: dict[str, Any], model: Any, answers: Answers
) -> dict[str, Any]:
    """Return what results.json holds: the adapter's scores in `tasks`, its base's in `base_tasks`, both in `paired`.

    Without an adapter `tasks` are the base's. Tasks of an earlier run with the same output stay.
    """
    from train.metrics import measure

    parts: dict[str, dict[str, Any]] = {
        name: dict(earlier.get(name, {})) for name in ("tasks", "base_tasks", "paired", "references")
    }
    mine = "adapter" if "adapter" in found else "base"
    for task, entry in found[mine].items():
        for name in parts:
            parts[name].pop(task, None)
        for metric, scored in entry["metrics"].items():
            base = found["base"][task]["metrics"][metric] if mine == "adapter" else None
            measured = measure(scored, evaluation["seed"], base)
            parts["tasks"].setdefault(task, {})[metric] = measured["score"]
            if base:
                parts["base_tasks"].setdefault(task, {})[metric] = measured["base"]
                parts["paired"].setdefault(task, {})[metric] = measured["difference"]
        if "references" in entry:
            parts["references"][task] = entry["references"]
    versions = {name: metadata.version(name) for name in LIBRARIES if find_spec(name.replace("-", "_"))}
    precision = "nf4" if getattr(model, "is_quantized", False) else str(model.dtype).removeprefix("torch.")
    machine = {"python": platform.python_version(), "device": model.device.type, "precision": precision}
    return {**evaluation, **parts, "versions": versions | machine, "seconds": round(answers.seconds, 1)}


def _write(results: dict[str, Any], output: Path) -> None:
    from train import report

    table = report.markdown(results)
    _beside(output, ".md").write_text(table, encoding="utf-8")
    _beside(output, ".svg").write_text(report.svg(results), encoding="utf-8")
    partial = output.with_suffix(".json.partial")
    partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
    partial.replace(output)
    print(table)
    print(f"Written to {output}, .md and .svg, in {results['seconds']:.0f} s.", file=sys.stderr)
