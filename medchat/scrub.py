"""What tells who somebody is -> a word in brackets: "Call me on [phone]". Rules only, for the nine languages below.

English, Spanish, French, German, Portuguese, Italian, Hindi, Arabic and Chinese. Identity numbers are known by their
checksums (python-stdnum) or the words before them, telephone numbers by their national plans (phonenumbers), birth
dates, addresses and names by the patterns of assets/scrub.yaml. What it does not find: names without such words, places
on their own, whoever can be told from the story, and numbers of countries that are not listed. The figures:
`python -m benchmarks.scrub`.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import phonenumbers
import yaml
from phonenumbers import PhoneNumberType
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.mx import curp
from stdnum.us import itin, ssn

PATTERNS = Path(__file__).parent.parent / "assets" / "scrub.yaml"

Span = tuple[int, int, str]  # from, to, kind

TAKEN = "\ue000"  # stands where something was found already; no text holds it, since normalised() takes it out


def patterns(kind: str) -> list[re.Pattern[str]]:
    """Return the patterns of a kind in assets/scrub.yaml; what they name "it" is found, else all that they match."""
    return _patterns()[kind]


@lru_cache
def _patterns() -> dict[str, list[re.Pattern[str]]]:
    kinds = yaml.safe_load(PATTERNS.read_text(encoding="utf-8"))
    parts = kinds.pop("parts")

    def whole(pattern: str) -> str:
        return re.sub(r"<([A-Z_]+)>", lambda part: whole(parts[part[1]]), pattern)

    return {kind: [re.compile(whole(pattern)) for pattern in these] for kind, these in kinds.items()}


def _found(kind: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield (from, to) of what the patterns of a kind find, in order and joined where it overlaps."""
    ends: dict[int, int] = {}
    for pattern in patterns(kind):
        group = "it" if "it" in pattern.groupindex else 0
        for m in pattern.finditer(text):
            start = m.start(group)
            end = start + len(m[group].rstrip(" .,;\n"))  # where the sentence goes on
            ends[start] = max(end, ends.get(start, 0))
    yield from _joined(ends.items())


def _joined(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = 0
    for a, b in sorted(found):
        if a >= end:
            if end > start:
                yield start, end
            start = a
        end = max(end, b)
    if end > start:
        yield start, end


def scrub(text: str) -> str:
    """Return a text with e-mail, links to a person, IP, card, account and identity numbers, telephone numbers, birth
    dates, postal addresses and names replaced by their kind in brackets; the module says what is missed."""
    return scrub_all([text])[0]


def scrub_all(texts: Sequence[str]) -> list[str]:
    """Return the texts of one conversation scrubbed; a name that one introduces is replaced in all of them."""
    found = [spans(text) for text in texts]
    names = {text[a:b] for text, these in zip(texts, found, strict=True) for a, b, kind in these if kind == "name"}
    known = sorted({*names, *(part for name in names for part in name.split())}, key=len, reverse=True)
    again = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)") if known else None
    scrubbed = []
    for text, these in zip(texts, found, strict=True):
        taken = [*these]
        if again:
            free = _blanked(text, these)
            taken += [(m.start(), m.end(), "name") for m in again.finditer(free) if len(m[0]) > 2 or not m[0].isascii()]
        scrubbed.append(_replaced(text, taken))
    return scrubbed


def spans(text: str) -> list[Span]:
    """Return (from, to, kind) of all that is found in a text, in the order of FINDERS; they do not overlap."""
    found: list[Span] = []
    work = normalised(text)
    for find in FINDERS:
        these = list(find(work))
        found += these
        work = _blanked(work, these)
    return found


def normalised(text: str) -> str:
    """Return a text of the same length, its digits, hyphens, spaces and full-width signs as in ASCII."""
    return "".join(_plain(c) for c in text) if not text.isascii() else text


@lru_cache(4096)
def _plain(c: str) -> str:
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if unicodedata.category(c) in ("Pd", "Zs") or c in "\u200e\u200f\u2028\u202a\u202b\u202c\u2212" or c == TAKEN:
        return "-" if unicodedata.category(c) == "Pd" or c == "\u2212" else " "
    wide = unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uff5e" and c not in "，．" else c
    return wide if len(wide) == 1 else c


def _blanked(text: str, found: Sequence[Span]) -> str:
    for start, end, _ in found:
        text = text[:start] + TAKEN * (end - start) + text[end:]
    return text


def _replaced(text: str, found: Sequence[Span]) -> str:
    for start, end, kind in sorted(found, reverse=True):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


# --- what is written the same everywhere ---

_EMAIL = re.compile(
    r"(?<![A-Za-z\d_.+%-])[A-Za-z\d_.+%-]{1,64} ?(?:@|\(at\)|\[at\]) ?[A-Za-z\d-]+"
    r"(?: ?(?:\.|\(dot\)|\[dot\]) ?[A-Za-z\d-]+)*(?:\.| ?[([]dot[)\]] ?)[A-Za-z]{2,}"
)
_LINK = re.compile(
    r"(?:\b(?:https?|ftp)://|\bwww\.|\b(?=[\w.-]{1,80}\.\w{2,9}/))[^\s<>\"'，。）)\]" + TAKEN + "]+", re.I
)
_HOSTS = (
    r"(?:facebook|fb|instagram|twitter|x|linkedin|tiktok|snapchat|github|gitlab|youtube|reddit|pinterest|vk|weibo|t"
    r"|wa|m\.me|threads|bsky|mastodon|patientslikeme|flickr|tumblr|strava|douyin|zhihu|xing)\."
)
_PERSONAL = re.compile(
    rf"://[^/\s]+@|^(?:https?://)?(?:[\w-]+\.)*{_HOSTS}\w+(?:\.\w+)?/[\w@~%.+-]"
    r"|/(?:users?|u|profiles?|members?|people|usuarios?|utilisateurs?|benutzer|patients?|accounts?|in)/[^/]+|/[@~][\w.]"
    r"|[?&#](?:user(?:name|_?id)?|u|uid|email|e-?mail|name|patient(?:_?id)?|token|session|account|member|phone)=",
    re.I,
)
_IPV4 = re.compile(r"(?<![A-Za-z\d.])(?<!EC )(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z\d]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z\d:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![A-Za-z\d:])", re.I)
_CARD = re.compile(r"(?<![A-Za-z\d.-])(?:3\d|4\d|5[0-8]|6\d|2[2-7])\d{2}(?:[ -]?\d){8,15}(?![A-Za-z\d-])")
_IBAN = re.compile(r"(?<![A-Za-z\d])[A-Z]{2}\d{2}(?: ?[A-Z\d]){11,30}", re.I)


def _emails(text: str) -> Iterator[Span]:
    for m in _EMAIL.finditer(text):
        yield m.start(), m.end(), "e-mail"


def _links(text: str) -> Iterator[Span]:
    for m in _LINK.finditer(text):
        if _PERSONAL.search(m[0]):
            yield m.start(), m.end() - (m[0][-1] in ".,;:!?"), "link"


def _addresses_of_machines(text: str) -> Iterator[Span]:
    for m in [*_IPV4.finditer(text), *_IPV6.finditer(text)]:
        try:
            if len(m[0]) > 6:
                ipaddress.ip_address(m[0])
                yield m.start(), m.end(), "ip address"
        except ValueError:
            pass


def _cards(text: str) -> Iterator[Span]:
    for m in _CARD.finditer(text):
        if luhn.is_valid(re.sub("[ -]", "", m[0])):
            yield m.start(), m.end(), "card number"


def _accounts(text: str) -> Iterator[Span]:
    for m in _IBAN.finditer(text):
        number = m[0]
        while len(number) > 14 and not iban.is_valid(number):  # a word may follow
            number = number[:-1].rstrip()
        if iban.is_valid(number):
            yield m.start(), m.start() + len(number), "account number"


# --- identity numbers ---


def _structured(number: str) -> bool:
    return True


def _luhn(number: str) -> bool:
    return luhn.is_valid(number.replace("-", "").replace(" ", ""))


# Shape and test. Where a number has no check digit, its shape must be one that nothing else has.
_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(rf"(?<![A-Za-z\d.,/-]){shape}(?![A-Za-z\d/-]|[.,]\d)", re.I), test)
    for shape, test in (
        (r"\d{3}[- ]\d{2}[- ]\d{4}", lambda n: ssn.is_valid(n.replace(" ", "-")) or itin.is_valid(n)),
        (r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", _structured),  # UK national insurance
        (r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs.is_valid),
        (r"\d{1,2}\.?\d{3}\.?\d{3}[ -]?[A-Z]", dni.is_valid),
        (r"[XYZ][ -]?\d{7}[ -]?[A-Z]", nie.is_valid),
        (r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d", curp.is_valid),
        (r"[1-4] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", nir.is_valid),
        (r"\d{2} ?\d{3} ?\d{3} ?\d{3}", idnr.is_valid),
        (r"[A-Z]\d{9}", lambda n: _luhn(f"{ord(n[0].upper()) - 64:02}{n[1:]}")),  # German health insurance
        (r"756\.?\d{4}\.?\d{4}\.?\d{2}", ahv.is_valid),
        (r"\d{3}\.?\d{3}\.?\d{3}[- ]?\d{2}", cpf.is_valid),
        (r"\d{4}[ -]?\d{4}[ -]?\d{4}", aadhaar.is_valid),
        (r"[A-Z]{5}\d{4}[A-Z]", pan.is_valid),
        (r"[A-Z]{6}[\dLMNP-V]{2}[A-EHLMPRST][\dLMNP-V]{2}[A-Z][\dLMNP-V]{3}[A-Z]", codicefiscale.is_valid),
        (r"\d{6}(?:19|20)\d{9}[\dX]", lambda n: ric.calc_check_digit(n) == n[-1].upper()),  # of any district
        (r"[12]\d{9}", _luhn),  # Saudi Arabia
        (r"784-?(?:19|20)\d{2}-?\d{7}-?\d", _structured),  # Emirates
        (r"[23]\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{7}", _structured),  # Egypt: a birth date stands in it
        (r"\d{3}[ -]\d{3}[ -]\d{3}", sin.is_valid),
    )
)
# What stands before a number that is none of a person's.
_PUBLIC = re.compile(
    r"(?:isbn|issn|pmid|pmcid|pmc|doi|nct|isrctn|eudract|cas|gtin|ean|omim|orpha|snomed|loinc|umls|lot|batch|pubmed|grant"
    r"|trial)(?:[ -]?(?:id|no\.?|number|code|registry))?[\s:#-]*$|\+\d{1,3}[ -]?\(?$",
    re.I,
)


def _identity_numbers(text: str) -> Iterator[Span]:
    found = list(_found("identity", text))
    for shape, valid in _NUMBERS:
        found += [m.span() for m in shape.finditer(text) if valid(m[0]) and not _PUBLIC.search(text[: m.start()])]
    for a, b in _joined(found):
        yield a, b, "id number"


# --- telephone numbers ---

_REGIONS = ("US", "GB", "ES", "FR", "DE", "BR", "IN", "SA", "AE", "EG", "CN", "IT", "MX", "IE", "AU", "NZ", "PT")
_WITHOUT_ZERO = {"US", "ES", "BR", "IN", "CN", "IT", "MX", "PT"}  # where a number starts with any digit
_DIGITS = re.compile(
    r"(?<![A-Za-z\d,/.+-])(?<!\d[: ])(?:\+ ?|00)?\(?\d(?:[ ().\-/]{0,2}\d){6,16}(?! ?[%\d])(?![A-Za-z/]|[.,:]\d)"
    r"(?: ?(?:x|ext\.?|extension|int\.?|ramal|poste|durchwahl|转) ?\d{1,6})?",
    re.I,
)
_DATED = re.compile(r"(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d{2}|(?:19|20)\d{2}[./-]\d{1,2}[./-]\d{1,2})(?!\d)")
_COUNT = re.compile(r"\d{1,3}([ .])\d{3}(?:\1\d{3})*|\d+ ?- ?\d+")
_NOBODYS = {PhoneNumberType.TOLL_FREE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.UAN}


def _phones(text: str) -> Iterator[Span]:
    for m in _DIGITS.finditer(text):
        before = text[max(0, m.start() - 40) : m.start()]
        if _is_phone(m[0], called=any(cue.search(before) for cue in patterns("call"))) and not _PUBLIC.search(before):
            yield m.start(), m.end(), "phone"


def _is_phone(number: str, *, called: bool) -> bool:
    """Whether digits are somebody's telephone number; a helpline that costs nothing stays."""
    count = sum(c.isdigit() for c in re.split("[a-z转]", number, flags=re.I)[0])
    abroad = number.startswith(("+", "00"))
    if _DATED.match(number) or not 7 <= count <= 16:
        return False
    plans = {region: _parsed(number, region) for region in (_REGIONS[:1] if abroad else _REGIONS)}
    valid = {region: plan for region, plan in plans.items() if plan and phonenumbers.is_valid_number(plan)}
    free = [region for region, plan in valid.items() if phonenumbers.number_type(plan) in _NOBODYS]
    if "US" in free or (free and len(free) == len(valid)):
        return False
    if number[0] == "+" or called:
        return True
    counted = _COUNT.fullmatch(number) and (number[0] not in "06789" or number.endswith("000"))
    national = number.lstrip("(").startswith("0") or any(region in _WITHOUT_ZERO for region in valid)
    return count >= 9 and not counted and bool(valid) and national


def _parsed(number: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None


# --- what only the words around it tell ---


def _births(text: str) -> Iterator[Span]:
    for a, b in _found("birth", text):
        yield a, b, "date of birth"


def _postal_addresses(text: str) -> Iterator[Span]:
    for a, b in _found("address", text):
        yield a, b, "address"


def _names(text: str) -> Iterator[Span]:
    for a, b in _found("name", text):
        yield a, b, "name"


FINDERS: tuple[Callable[[str], Iterator[Span]], ...] = (
    _links, _emails, _addresses_of_machines, _accounts, _cards, _identity_numbers, _births, _postal_addresses, _phones,
    _names,
)  # fmt: skip
