"""The model card of an adapter, written from facts: recipe, licences, data report and results, never from memory."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medchat import embedded
from medchat.adapters import Adapter
from medchat.prompt import SYSTEM
from train import data, report
from train.recipe import Recipe
from train.report import LOWER_IS_BETTER

DISCLAIMER = (
    "For research and education only. It is not a medical device, it gives wrong answers, and it never replaces a "
    "doctor. In an emergency call your local emergency number."
)


@dataclass(frozen=True)
class Licence:
    """A licence by its id on the Hub; `flag` says why a reader must look twice: "non-commercial" or "unclear"."""

    id: str
    text: str
    flag: str = ""


_APACHE, _MIT = Licence("apache-2.0", "Apache-2.0"), Licence("mit", "MIT")
_CC_BY = Licence("cc-by-4.0", "CC BY 4.0")
_NOT_STATED = Licence("unknown", "none stated by its publisher", "unclear")
_UNKNOWN = Licence("unknown", "not known to MedChat", "unclear")

# As the data sets' pages on the Hub state them; the first pattern that fits counts.
DATA_LICENCES = {
    "lavita/MedQuAD": _CC_BY,
    "qiaojin/PubMedQA": _MIT,
    "GBaker/MedQA-USMLE-4-options": _CC_BY,
    "openlifescienceai/medmcqa": _APACHE,
    "FreedomIntelligence/medical-o1-reasoning-SFT": _APACHE,
    "TsinghuaC3I/UltraMedical-Preference": _MIT,
    "AI4LIFE-GROUP/MedSafetyBench": _MIT,
    "tatsu-lab/alpaca": Licence("cc-by-nc-4.0", "CC BY-NC 4.0", "non-commercial"),
    "wangrongsheng/GenMedGPT-5k-en": Licence("unknown", "research only, written by ChatGPT", "non-commercial"),
    "ruslanmv/ai-medical-chatbot": Licence("unknown", "unclear: conversations copied from a web site", "unclear"),
    "lavita/ChatDoctor-*": _NOT_STATED,
    "medalpaca/medical_meadow_*": Licence("unknown", "several sources, not looked up one by one", "unclear"),
    "assets/*": Licence("apache-2.0", "Apache-2.0, part of MedChat"),
}
BASE_LICENCES = {
    "HuggingFaceTB/SmolLM2-*": _APACHE,
    "*/*Llama-3.2-*": Licence("llama3.2", "Llama 3.2 Community License; built with Llama"),
    "*/*Llama-3.1-*": Licence("llama3.1", "Llama 3.1 Community License; built with Llama"),
    "*/*[Ll]lama-3-*": Licence("llama3", "Meta Llama 3 Community License; built with Llama"),
    "huggyllama/*": Licence("unknown", "LLaMA licence of 2023, research only", "non-commercial"),
    "google/gemma-*": Licence("gemma", "Gemma Terms of Use"),
    "Qwen/Qwen2.5-*": Licence("unknown", "by size, Apache-2.0 or Qwen's own", "unclear"),
}

# The data set behind a task of `train evaluate`, for the machine-readable results.
TASK_DATA = {
    "pubmedqa": "qiaojin/PubMedQA",
    "medqa": "GBaker/MedQA-USMLE-4-options",
    "medmcqa": "openlifescienceai/medmcqa",
    "mmlu_medical": "cais/mmlu",
    "forgetting": "everyday-questions",  # ours, tasks/forgetting.jsonl
}


def licences(base: str, recipe: Recipe | None) -> list[tuple[str, Licence]]:
    """Return the licences of base and data, in the recipe's order; unknown ones are flagged, never left out."""
    found = [(base or "base", _match(base, BASE_LICENCES))]
    if recipe is None:
        return [*found, ("the training data", _UNKNOWN)]
    names = dict.fromkeys(source.dataset for source in recipe.data)
    return found + [(public_name(name), _match(name, DATA_LICENCES)) for name in names]


def licence_of(sources: Sequence[tuple[str, Licence]]) -> str:
    """Return the id of the licence for the whole: the base's where it insists, "other" where one is flagged."""
    (_, base), *data = sources
    ids = {licence.id for _, licence in data}
    if any(licence.flag for _, licence in sources) or not ids <= {"apache-2.0", "mit", "cc-by-4.0"}:
        return "other"
    if base.id not in ("apache-2.0", "mit"):
        return base.id
    return "cc-by-4.0" if "cc-by-4.0" in ids else "apache-2.0"


def worse(results: dict[str, Any]) -> list[str]:
    """Return the metrics on which the adapter is worse than its base with the whole 95 % interval, in words."""
    found = []
    for task, metrics in results["paired"].items():
        for metric, paired in metrics.items():
            lower = metric in LOWER_IS_BETTER
            if paired["low"] > 0 if lower else paired["high"] < 0:
                found.append(
                    f"{task} {metric} {paired['difference']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}]"
                )
    return found


def model_card(
    adapter: Adapter,
    repo: str,
    base: str,
    recipe: Recipe,
    results: dict[str, Any],
    counts: dict[str, Any] | None,
    *,
    branch: str | None = None,
) -> str:
    """Return the card as Markdown with its metadata on top.

    `base` is the Hub id that the adapter records, `results` are those of `train evaluate`, `counts` the report of
    train.data on its rows, None where there is none; `branch` is the one that the adapter is pushed to, None for main.
    """
    from huggingface_hub import ModelCardData

    sources = licences(base, recipe)
    licence = licence_of(sources)
    facts = ModelCardData(
        base_model=base,
        datasets=[source.dataset for source in recipe.data if _is_hub_id(source.dataset)] or None,
        language="en",
        library_name="peft",
        license=licence,
        license_name="see-the-licences-below" if licence == "other" else None,
        license_link="#licences" if licence == "other" else None,
        model_name=repo.partition("/")[2],
        pipeline_tag="text-generation",
        tags=["lora", "medical", "education", "medchat"],
        eval_results=_scores(results),
    )
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {repo.partition('/')[2]}",
        f"**{DISCLAIMER}**",
        f"{recipe.description} A LoRA adapter of rank {adapter.rank} for `{base}`, {_method(recipe)}.",
        *_use(repo, branch, base, recipe),
        *_evaluation(results),
        *_data(sources, counts),
        *_reproduce(adapter, repo, branch, recipe, results),
        "## Limits\n\n"
        "- English only. It was measured on the tasks above and on nothing else; a good score there is no proof of "
        "safe advice.\n"
        "- A model of this kind invents facts, doses and sources. Let it read passages that a person has checked, and "
        "show them with the answer.\n"
        "- It cannot examine anybody, does not know who asks, and must not be used to diagnose, to prescribe or to "
        "decide on care.\n"
        "- Whatever bias and mistakes the training data holds, the adapter may repeat.",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(results: dict[str, Any]) -> list[Any]:
    """Return the results as the Hub reads them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name=task,
            dataset_type=TASK_DATA.get(task, "held-out"),
            dataset_name=TASK_DATA.get(task, "rows of the training data that were held out"),
            metric_type=metric,
            metric_name=f"{metric} (n={score['n']})",
            metric_value=round(score["value"], 4),
        )
        for task, metrics in results["tasks"].items()
        for metric, score in metrics.items()
    ]


def _method(recipe: Recipe) -> str:
    on = "in 4 bits (QLoRA, NF4)" if recipe.method == "qlora" else "at full precision"
    targets = recipe.lora.targets if isinstance(recipe.lora.targets, str) else ", ".join(recipe.lora.targets)
    layers = f" of the last {recipe.lora.top_layers} layers" if recipe.lora.top_layers else ""
    kept = f", {recipe.lora.strength:.0%} of the learned update kept" if recipe.lora.strength != 1 else ""
    return f"trained on the base {on}: alpha {recipe.lora.alpha} on {targets}{layers}{kept}"


def _at(repo: str, branch: str | None) -> str:
    """Return what --adapter takes for a repository's branch."""
    return f"{repo}@{branch}" if branch else repo


def _use(repo: str, branch: str | None, base: str, recipe: Recipe) -> Iterator[str]:
    command = f"python app.py --adapter {_at(repo, branch)}"
    if recipe.base != "embedded":
        command = f"python app.py --base {base} --adapter {_at(repo, branch)}"
    revision = f', revision="{branch}"' if branch else ""
    yield f"## Use\n\nIn MedChat, with triage, passages and citations around it:\n\n```bash\n{command}\n```"
    system = SYSTEM if recipe.system is None else recipe.system
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": "What are the early signs of iron deficiency?"})
    lines = [
        "from pathlib import Path",
        "",
        "from huggingface_hub import hf_hub_download",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base, repo = "{base}", "{repo}"',
        "tokenizer = AutoTokenizer.from_pretrained(base)",
        f'tokenizer.chat_template = Path(hf_hub_download(repo, "chat_template.jinja"{revision})).read_text()',
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repo{revision})",
        "messages = [",
        *(f"    {turn!r}," for turn in turns),
        "]",
        'options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}',
        "inputs = tokenizer.apply_chat_template(messages, **options)",
        'reply = model.generate(**inputs, max_new_tokens=200)[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(reply, skip_special_tokens=True))",
    ]
    snippet = "\n".join(lines)
    yield f"With PEFT alone:\n\n```python\n{snippet}\n```"
    if recipe.base == "embedded":
        yield (
            f"It was trained on the Q4_1 weights of `{embedded.FILE}`, which MedChat serves; on `{base}` itself its "
            "replies differ in wording."
        )


def _evaluation(results: dict[str, Any]) -> Iterator[str]:
    yield "## Evaluation"
    if found := worse(results):
        yield f"**This adapter is worse than its base, and was published all the same:** {'; '.join(found)}."
    yield report.markdown(results).partition("\n")[2].strip()  # without its title
    yield "Every figure with its versions: `results.json`; as a picture: `results.svg`."


def _data(sources: Sequence[tuple[str, Licence]], counts: dict[str, Any] | None) -> Iterator[str]:
    rows = ["| what | licence | |", "| --- | --- | --- |"]
    rows += [f"| {what} | {one.text} | {f'**{one.flag}**' if one.flag else ''} |" for what, one in sources]
    yield "## Licences\n\n" + "\n".join(rows)
    if flagged := [what for what, licence in sources if licence.flag]:
        yield (
            f"Because of {', '.join(flagged)}, take this adapter as **not for commercial use**, and ask the owners "
            "before you build on it."
        )
    yield "## Training data"
    if counts:
        yield data.report_markdown(counts).strip()
    else:
        yield "No count of removed duplicates and of overlap with evaluation sets was kept with this adapter."


def _reproduce(
    adapter: Adapter, repo: str, branch: str | None, recipe: Recipe, results: dict[str, Any]
) -> Iterator[str]:
    revision = f" --revision {branch}" if branch else ""
    options = "".join(f" --{name} {results[name]}" for name in ("limit", "seed") if results.get(name))
    tasks = ",".join(results["tasks"])
    commands = [
        f"hf download {repo} recipe.yaml{revision} --local-dir .",
        "python -m train sft recipe.yaml output_dir=runs/again",
        f"python -m train evaluate --adapter {_at(repo, branch)} --tasks {tasks}{options} --output results.json",
    ]
    yield "## Reproduce\n\n```bash\n" + "\n".join(commands) + "\n```"
    versions = ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    yield (
        f"Seed {recipe.seed} for training, {results.get('seed')} for evaluation. SHA-256 of the weights: "
        f"`{adapter.sha256}`." + (f" Evaluated with {versions}." if versions else "")
    )
    yield f"<details><summary>The recipe</summary>\n\n```yaml\n{recipe.to_yaml()}```\n\n</details>"


def _match(name: str, table: dict[str, Licence]) -> Licence:
    return next((licence for pattern, licence in table.items() if fnmatch.fnmatchcase(name, pattern)), _UNKNOWN)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.endswith((".jsonl", ".csv", ".parquet")) and not name.startswith("assets/")


def public_name(name: str) -> str:
    """Return a data set's name; of a file on this machine without its folders."""
    return name if _is_hub_id(name) or name.startswith("assets/") else Path(name).name
