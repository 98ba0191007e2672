"""Texts as they were scraped -> texts worth learning: plain, without greetings, signatures, site names and templates.

Every function counts in `removed` what it took out, by kind, for the data report. The patterns know English only.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator

import ftfy

_TAGS = (
    "a|abbr|article|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|font|h[1-6]|head|hr|html|i|iframe|img|input|li"
    "|link|meta|nav|ol|p|pre|q|s|section|small|span|strong|sub|sup|svg|table|tbody|td|th|thead|title|tr|tt|u|ul"
)
_HIDDEN = re.compile(r"<!--.*?-->|<(script|style|ref)\b[^<>]*>.*?</\1\s*>|<ref\b[^<>]*/>", re.I | re.S)
_BLOCK = re.compile(r"</?(?:br|dd|div|dl|dt|h[1-6]|hr|li|ol|p|pre|table|tr|ul)(?:\s[^<>]*)?/?>", re.I)
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.I)  # known ones: "p <0.05" and "<think>" stay
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\ufeff\ufffd]")
_FTFY = ftfy.TextFixerConfig(unescape_html=False)  # entities are counted as markup, below

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
# Marks of a wiki page that was not rendered: what bears one is about the wiki, or broken.
WIKI = re.compile(r"__[A-Z]{4,}__|</?(?:nowiki|ref|gallery)\b|\[\[|\{\{|'''|={2,}[^=\n]+={2,}")


def plain(text: str, removed: Counter) -> str:
    """Return a text with its unicode mended and its markup, control characters and spare white space taken out."""
    text = _readable(text, removed)
    if "\n" not in text:
        return " ".join(text.split())
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _readable(text: str, removed: Counter) -> str:
    if not text.isascii():
        mended = ftfy.fix_text(text, _FTFY)
        removed["broken unicode"] += "\ufffd" in mended or ftfy.is_bad(text)
        text = mended
    if "&" in text and (unescaped := html.unescape(text)) != text:
        removed["markup"] += 1
        text = unescaped
    if "<" in text:
        text, hidden = _HIDDEN.subn(" ", text)
        text, blocks = _BLOCK.subn("\n", text)
        text, tags = _TAG.subn("", text)
        removed["markup"] += hidden + blocks + tags
    if text.isprintable() and "\ufffd" not in text:
        return text
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " "))


def cut(text: str, max_chars: int | None) -> str:
    """Return the text up to the last sentence end before `max_chars` characters, "" when no sentence fits."""
    if max_chars is None or len(text) <= max_chars:
        return text
    ends = [match.start() for match in SENTENCE_END.finditer(text, 0, max_chars + 2) if match.start() <= max_chars]
    return text[: ends[-1]] if ends else ""


# --- what web forums of doctors put around an answer ---

# "Chat Doctor" was put in place of other sites' names by a search that also hit words: "lactic acid dehy ChatDoctor."
_SITES = (
    "chat doctor",
    "chatdoctor",
    "healthcaremagic",
    "healthcare magic",
    "health care magic",
    "icliniq",
    "healthtap",
)
_SITE = re.compile("|".join(_SITES), re.I)
_NAME = r"(?:\s+(?:there|dear|doctor|doc|dr\.?|sir|madam|ma'?am|friend|user|patient|mrs?\.?|ms\.?|all))*"
_GREETING = re.compile(
    rf"\W*(?:(?:hi|hello|hey|hiya|greetings|namaste|respected|good\s+(?:morning|afternoon|evening|day))\b{_NAME}"
    rf"(?:\s+[A-Z][a-z]+(?=\s*[,.!:-]))?|dear\b{_NAME}(?:\s+[A-Z][a-z]+)?(?=\s*[,.!:-]))[\s,.!:;-]*",
    re.I,
)
_SIGNATURE = re.compile(
    r"(?:(?<=[.!?,\n])|^)[\s,.-]*(?:"
    r"(?:(?:with|best|kind|kindest|warm|warmest|many|thanks|and|&)\s+)*(?:regards|wishes)\b(?!\s+to\b)[^!?\n]{0,70}"
    r"|(?:yours\s+)?(?:sincerely|truly|faithfully)\b[^!?\n]{0,70}"
    r"|thank(?:s|\s+you)(?:\s+(?:again|a\s+lot|very\s+much|so\s+much|doctor|doc))?"
    r"|(?:dr|prof)\b\.?\s*(?:[A-Z][\w'-]*[\s,.]*){1,6}"
    r"|cheers|take\s+care"
    r")[\s.!,-]*$",
    re.I,
)
# What only a forum says, anywhere in a sentence (plain strings: many times faster to find than patterns) ...
_MARKS = (
    "http:", "https:", "www.", "-->", "attachment removed", "feel free", "hesitate to", "hesitate in", "revert back",
    "revert with", "happy to help", "happy to answer", "happy to assist", "glad to help", "glad to answer",
    "this answer", "my answer", "direct question to me", "click here", "click on", "premium question",
    "online consultation",
)  # fmt: skip
# ... and as a whole sentence.
_FORUM = re.compile(
    r"\W*(?:"
    r"(?:warm )?welcome (?:to|back)\b"
    r"|(?:many )?thank(?:s| you|ing you)\b.{0,60}\b(?:quer(?:y|ies)|question|ask|post|writ|consult|contact|choos|trust"
    r"|provid|shar|using|understanding|patien|rating|reply|response)"
    r"|(?:i|we)?(?:'ve| have| had)? ?(?:\w+ly )?(?:gone|went|go|read|been|reviewed|seen|noted|understand|understood"
    r"|appreciate|can understand|do understand)\b(?: through)?(?: all)?(?: of)?(?: your| the| you)? ?(?:\w+ ){0,3}"
    r"(?:quer(?:y|ies)|question|concerns?|history|details|message|problem|worry|situation)s?"
    r"(?: (?:and|carefully|thoroughly|well|in detail|with diligence|here)\b.{0,50})?\W*$"
    r"|(?:so )?(?:i|we)?\s*(?:do |really |sincerely )?(?:hope|trust)(?:fully)?\b.{0,70}\b(?:help|answer|clear|useful"
    r"|satisf|guide|understand|inform|benefi|resolv|query|best)"
    r"|(?:please |kindly |do |you can |you may )*(?:let me know|get back|write back|write to|ask me|come back|reach)\b"
    r".{0,60}\b(?:further|any|more|other|again|doubts?|quer(?:y|ies)|questions?|us|me)\b"
    r"|(?:if you|in case you|should you|for any|for further|for more|any (?:further|other|more))\b.{0,50}"
    r"\b(?:quer(?:y|ies)|doubts?|clarifications?|questions?|assistance)\b.{0,60}$"
    r"|(?:please )?(?:take care|(?:i )?wish(?:ing)? you\b|get well|all the best|best (?:wishes|of luck|regards)"
    r"|good luck|have a (?:nice|good|great|healthy|lovely)|stay (?:healthy|well|safe)|god bless|keep well)\b.{0,50}$"
    r")",
    re.I,
)
_PATIENT = re.compile(r"\s+Patient\s*:.*", re.S)  # a talk that goes on: GenMedGPT
_END = re.compile(r"(?<=[.!?])\s+|(?<=[a-z]{3}[.!?])(?=[A-Z])|\n+")


def forum_answer(text: str, removed: Counter) -> str:
    """Return a forum doctor's answer as plain sentences, without greeting, thanks, signature, links and site names.

    A sentence that names the site is dropped whole, since the name may stand for part of a word.
    """
    text = plain(text, removed)
    if "Patient" in text:
        text, talks = _PATIENT.subn("", text)
        removed["patient's lines in the answer"] += talks
    text = _without(_SIGNATURE, text, "signatures", removed)
    lower = text.lower()
    sites, marks = ([part for part in parts if part in lower] for parts in (_SITES, _MARKS))
    kept: list[str] = []
    for sentence in _END.split(text):
        if not kept:
            sentence = _without(_GREETING, sentence, "greetings", removed, at_start=True)
        lower = sentence.lower()
        if any(map(lower.__contains__, sites)):
            removed["site names"] += 1
        elif any(map(lower.__contains__, marks)) or _FORUM.match(sentence):
            removed["forum phrases"] += 1
        elif sentence.strip(" .,!-:"):
            kept.append(sentence.strip())
    text = _without(_SIGNATURE, " ".join(kept), "signatures", removed)
    return text[:1].upper() + text[1:]


def forum_question(text: str, removed: Counter) -> str:
    """Return a patient's question without the greeting, the thanks at its end and the site's name."""
    text = plain(text, removed)
    text = _without(_GREETING, text, "greetings", removed, at_start=True)
    text = _without(_SIGNATURE, text, "signatures", removed)
    if any(map(text.lower().__contains__, (*_SITES, "attachment removed"))):
        text, names = _SITE.subn("", text)
        removed["site names"] += names
        text = re.sub(r"\(attachment removed[^)]*\)\.?", "", text, flags=re.I)
    return " ".join((text[:1].upper() + text[1:]).split())


def _without(pattern: re.Pattern[str], text: str, kind: str, removed: Counter, *, at_start: bool = False) -> str:
    """Take `pattern` off one end of the text as often as it stands there."""
    while found := pattern.match(text) if at_start else pattern.search(text, max(0, len(text) - 120)):
        if not found.group().strip():
            break
        removed[kind] += 1
        text = text[found.end() :] if at_start else text[: found.start()].rstrip()
    return text.strip()


# --- MedQuAD: pages of American health institutes, cut into questions and answers ---

# Sentences that speak of a web page or a printed leaflet, which a chat cannot show.
_PAGE = re.compile(
    r"https?:|www\.|click|this (?:page|site|web|summary|booklet|fact sheet)|these resources|for more information"
    r"|see the (?!doctor|dentist|nurse)|video|\(see|watch |NIDDK|NHLBI|MedlinePlus|NIHSeniorHealth|\bNCI\b|\bPDQ\b"
    r"|clinical trial",
    re.IGNORECASE,
)
# GARD's tables of signs, whose rows ("Abnormality of the nails 90%") a model repeats without end; nothing follows them.
_TABLE = re.compile(r"The Human Phenotype Ontology\b.*", re.S)
_TEMPLATE = re.compile(
    r"^(?:[^.]*\b(?:frequency|prevalence|incidence)\b[^.]*\b(?:unknown|not known|unclear"
    r"|not been (?:determined|established))\b[^.]*|These resources address\b.*|[^.]*\bGeneReviews\b[^.]*)[.:]?$",
    re.I | re.S,
)
_PRONUNCIATION = re.compile(r"\s*\((?=[^)]*[A-Z]{2})(?=[^)]*-)[A-Za-z\- ,;]+\)")  # "(HI-po-TEN-shun)"
_REFERENCE = re.compile(r"\s*\[\d+(?:[,\s-]+\d+)*\]")
_CAPITAL = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def medquad_question(text: str) -> str:
    """Return a MedQuAD question as a person would type it: "What is (are) Cataract ?" -> "What is Cataract?"."""
    text = " ".join(text.replace("(are) ", "").replace("(s)", "").split())
    text = re.sub(r"\s*\?[\s?]*$", "?", text)
    text = re.sub(r"^Do you have information about (.*)$", r"What should I know about \1?", text)
    return text[:1].upper() + text[1:]


def medquad_answer(text: str, removed: Counter, max_chars: int | None = None) -> str:
    """Return an answer as plain sentences, lists joined, without tables, pronunciations and talk of web pages.

    Returns "" for an answer that is a template (a bare "frequency unknown"), or when no whole sentence fits into
    `max_chars` characters.
    """
    text = _readable(text, removed).removeprefix("Summary : ")
    text, tables = _TABLE.subn("", text)
    removed["sign tables"] += tables
    text = _REFERENCE.sub("", _PRONUNCIATION.sub("", text))
    kept: list[str] = []
    length = -1
    for sentence in (s for block in _joined_lists(text) for s in _CAPITAL.split(block)):
        sentence = " ".join(sentence.split())
        heading = sentence.endswith("?") and not kept  # "What are the signs and symptoms of X?"
        if heading or not sentence.endswith((".", "!", "?")) or sentence in kept:
            continue
        if _PAGE.search(sentence):
            removed["page talk"] += 1
            continue
        length += 1 + len(sentence)
        if max_chars is not None and length > max_chars:
            break
        kept.append(sentence)
    answer = " ".join(kept)
    if answer and _TEMPLATE.match(answer):
        removed["template answers"] += 1
        return ""
    return answer


def _joined_lists(text: str) -> Iterator[str]:
    """Yield paragraphs; the lines after a colon are joined with semicolons into one sentence.

    The lines of one list look alike: a line with another mark or end than the first is prose that follows the list.
    """
    lines = [line.strip() for line in re.split(r"\n|\s{2,}(?=- )|\s{3,}", text) if line.strip()]
    items: list[str] = []
    lead, style = "", (False, False)
    for line in lines:
        bare = line.removeprefix("-").strip()
        look = (line.startswith("-"), bare.endswith((".", "!", "?")))
        item = look[0] or len(bare) < 100
        if lead and item and not bare.endswith(":") and (not items or look == style or (look[0] and style[0])):
            items.append(bare.rstrip(".;,"))
            style = style if items[1:] else look
            continue
        if lead and items:
            yield f"{lead} {'; '.join(items)}."
        lead, items = ("", [])
        if bare.endswith(":"):
            lead = bare
        else:
            yield bare
    if lead and items:
        yield f"{lead} {'; '.join(items)}."
