"""The page's words in eight languages (assets/languages), and which of them a visitor reads. No gradio in here.

What the browser draws it also translates, with Gradio's I18n: `shown` marks the place. What the server writes comes
from `text`, in the language `of` the request.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

LANGUAGES = ("en", "es", "fr", "de", "pt", "hi", "ar", "zh")
MARKS = {"de": ".,", "es": ".,", "pt": ".,", "fr": "\u202f,"}  # of thousands and of decimals; the others write ",."
ENDS = {"hi": "।", "zh": "。"}  # of a sentence; the others have "."
FOLDER = Path(__file__).parent.parent.parent / "assets" / "languages"


@lru_cache(maxsize=1)
def words() -> dict[str, dict[str, dict[str, str]]]:
    """Return {language: {group: {name: text}}}; the groups are told apart by who shows them (en.json has them all)."""
    return {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in LANGUAGES}


def of(request: gr.Request | None) -> str:
    """Return the language that a visitor's browser asks for first, English where that is none of ours."""
    asked = (request.headers.get("accept-language") or "") if request else ""
    name = asked.split(",")[0].split(";")[0].strip().partition("-")[0].lower()
    return name if name in LANGUAGES else "en"


def text(language: str, name: str, /, **values: Any) -> str:
    """Return a text in a language; `values` fill its {placeholders}.

    `name` is "group.name", or a name alone of what the server writes or else of the page.
    """
    groups = words()[language]
    group, dot, key = name.partition(".")
    found = groups[group][key] if dot else groups["server"].get(name) or groups["page"][name]
    return found.format(**values)


def shown(name: str) -> str:
    """Return what Gradio's page replaces by the text in the browser's language; one of these to a string.

    `name` is "group.name", or a name alone of the page.
    """
    key = name if "." in name else f"page.{name}"
    return "__i18n__" + json.dumps({"__type__": "translation_metadata", "key": f"medchat.{key}"})


def number(language: str, value: float, decimals: int = 0) -> str:
    """Return a figure as a language writes it."""
    return figure(language, f"{value:,.{decimals}f}")


def percent(language: str, share: float) -> str:
    """Return a share from 0 to 1 as a language writes it; some put a space, which never breaks, before the sign."""
    space = {"de": "\u00a0", "es": "\u00a0", "fr": "\u202f"}.get(language, "")
    return f"{number(language, share * 100)}{space}%"


def figure(language: str, written: str) -> str:
    """Return a figure that is written as in English the way a language writes it."""
    return written.translate(str.maketrans(",.", MARKS.get(language, ",.")))


def heading(language: str, english: str) -> str:
    """Return the heading of a passage in a language; headings of other knowledge than the built-in stay English."""
    return words()[language]["headings"].get(english, english.capitalize())


def told(language: str, error: Exception) -> str:
    """Return what an error says in a language; errors that assets/languages does not know stay English."""
    said = str(error).strip()
    for name, english in words()["en"]["errors"].items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(english))
        if found := re.fullmatch(pattern, said, re.DOTALL):
            figures = {
                key: figure(language, value) if re.fullmatch(r"\d{1,3}(,\d{3})+", value) else value
                for key, value in found.groupdict().items()
            }
            return words()[language]["errors"][name].format(**figures)
    return said


def translations(**composed: str) -> dict[str, dict[str, Any]]:
    """Return what gr.I18n takes; `composed` are pieces of HTML around {names} of the page's words, to be `shown`.

    Gradio's page takes a browser's tag for its language (pt-BR for pt), but of Chinese ones only zh-CN and zh-TW: where
    another comes first, what the browser draws is English.
    """
    out: dict[str, dict[str, Any]] = {}
    for language, groups in words().items():
        page = groups["page"] | {name: html.format(**groups["page"]) for name, html in composed.items()}
        ours: dict[str, Any] = {
            "medchat": {"page": page, "examples": groups["examples"], "feedback": groups["feedback"]}
        }
        for name, word in groups["gradio"].items():  # Gradio's own words that it has in English only
            group, _, key = name.partition(".")
            ours.setdefault(group, {})[key] = word
        out[language] = ours
    return out


def script() -> str:
    """Return the JavaScript that hands page.js its words."""
    by_language = {language: groups["script"] | groups["gradio"] for language, groups in words().items()}
    return f"window.medchatWords = {json.dumps(by_language, ensure_ascii=False)};".replace("</", "<\\/")
