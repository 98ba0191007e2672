"""`python -m benchmarks.scrub`: how much of what tells who somebody is medchat.scrub finds, and what it takes wrongly.

2,000 made sentences in ten locales, always the same, are the one half: names, addresses, e-mail, account, card and
identity numbers come from Faker, telephone numbers from each country's plan, and doses, values and dates stand around
them. An item is found only if no word or number of it is left. The other half is medical text that must stay as it is:
assets/knowledge, and MedQuAD and K-QA from DATASETS_MIRROR or the Hub. `--misses` prints all that is judged wrongly.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import phonenumbers
import yaml
from faker import Faker
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from stdnum import luhn
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.gb import nhs
from stdnum.in_ import aadhaar

from benchmarks.refusal import rows_of
from benchmarks.triage import share
from medchat.errors import UserError
from medchat.scrub import scrub, spans

KNOWLEDGE = Path(__file__).parent.parent / "assets" / "knowledge"
SEED = 7
SENTENCES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
KIND = re.compile(r"\[[a-z -]+\]")  # what stands in an item's place
EACH = 20  # sentences a locale and kind


@dataclass(frozen=True)
class Sentence:
    """A text with one `item` of a `kind` in it, which must go; all else must stay."""

    locale: str
    kind: str
    item: str
    text: str


# Locale -> Faker's, country of the telephone numbers.
LOCALES = {
    "en-US": ("en_US", "US"), "en-GB": ("en_GB", "GB"), "es": ("es_ES", "ES"), "fr": ("fr_FR", "FR"),
    "de": ("de_DE", "DE"), "pt-BR": ("pt_BR", "BR"), "hi": ("hi_IN", "IN"), "ar": ("ar_SA", "SA"),
    "zh": ("zh_CN", "CN"), "it": ("it_IT", "IT"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--misses", action="store_true", help="print every item missed and every text changed wrongly")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sentences (default: %(default)s)")
    arguments = parser.parse_args()
    found = recall(sentences(arguments.seed), misses=arguments.misses)
    print(json.dumps(found | {"medical_texts_changed": changed(misses=arguments.misses)}, indent=2))


# --- the sentences ---


def sentences(seed: int = SEED, each: int = EACH) -> list[Sentence]:
    """Return `each` sentences of every kind and locale, always the same for a seed."""
    made = []
    for locale, (faker_locale, region) in LOCALES.items():
        fake, draw = Faker(faker_locale), random.Random(f"{seed} {locale}")
        fake.seed_instance(f"{seed} {locale}")
        kinds = makers(locale, region, fake, draw)
        for kind, make in kinds.items():
            around = SENTENCES["around"][locale].get(kind, SENTENCES["around"][locale]["any"])
            for number in range(each):
                item = make()
                made.append(Sentence(locale, kind, item, around[number % len(around)].format(item)))
    return made


def makers(locale: str, region: str, fake: Any, draw: random.Random) -> dict[str, Callable[[], str]]:
    """Return a function for each kind of item."""
    account = fake
    if locale in ("en-US", "hi", "ar", "zh"):  # there are no IBAN there
        account = Faker("en_GB")
        account.seed_instance(draw.random())
    return {
        "e-mail": fake.email,
        "link": lambda: draw.choice(
            ["https://www.facebook.com/{}", "https://{}:secret@example.org/lab", "instagram.com/{}", "https://x.com/{}",
             "https://www.linkedin.com/in/{}", "https://forum.example.org/users/{}", "https://example.org/?email={}"]
        ).format(fake.user_name()),
        "ip address": lambda: draw.choice([fake.ipv4, fake.ipv6])(),
        "card number": lambda: _card(draw),
        "account number": lambda: _spaced(account.iban(), draw),
        "id": lambda: _id(locale, fake, draw),
        "birth": lambda: _date(locale, draw),
        "phone": lambda: _phone(region, draw),
        "address": lambda: _address(locale, fake, draw),
        "name": fake.name if locale == "zh" else lambda: f"{fake.first_name()} {fake.last_name()}",
    }  # fmt: skip


def _digits(draw: random.Random, count: int) -> str:
    return "".join(str(draw.randrange(10)) for _ in range(count))


def _card(draw: random.Random) -> str:
    number = draw.choice(["4", "51", "54", "2221"])
    number += _digits(draw, 15 - len(number))
    number += luhn.calc_check_digit(number)
    between = draw.choice(["", " ", "-"])
    return between.join(number[i : i + 4] for i in range(0, 16, 4))


def _spaced(number: str, draw: random.Random) -> str:
    return draw.choice([number, " ".join(number[i : i + 4] for i in range(0, len(number), 4))])


def _id(locale: str, fake: Any, draw: random.Random) -> str:
    if locale == "en-GB":
        return draw.choice([_nhs(draw), f"QQ{_digits(draw, 6)}C".replace("QQ", draw.choice(["AB", "JG", "PX"]))])
    if locale == "es":
        first = draw.choice(["", "X", "Y", "Z"])  # with a letter in front it is a foreigner's
        number = first + _digits(draw, 7 if first else 8)
        return number + (nie if first else dni).calc_check_digit(number)
    if locale == "de":
        while not idnr.is_valid(number := str(draw.randrange(1, 10)) + _digits(draw, 10)):
            pass
        return draw.choice([number, f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"])
    if locale == "pt-BR":
        return draw.choice([fake.cpf, fake.ssn])()
    if locale == "hi":
        while not aadhaar.is_valid(number := str(draw.randrange(2, 10)) + _digits(draw, 11)):
            pass
        return draw.choice([number, f"{number[:4]} {number[4:8]} {number[8:]}"])
    if locale == "ar":
        number = draw.choice("12") + _digits(draw, 8)
        return number + luhn.calc_check_digit(number)
    if locale == "fr":
        number = fake.ssn().replace(" ", "")
        return draw.choice([number, f"{number[0]} {number[1:3]} {number[3:5]} {number[5:7]} {number[7:10]} "
                                    f"{number[10:13]} {number[13:]}"])  # fmt: skip
    return fake.ssn()


def _nhs(draw: random.Random) -> str:
    while not nhs.is_valid(number := str(draw.randrange(4, 8)) + _digits(draw, 9)):
        pass
    return draw.choice([number, f"{number[:3]} {number[3:6]} {number[6:]}"])


def _date(locale: str, draw: random.Random) -> str:
    year, month, day = draw.randrange(1935, 2021), draw.randrange(1, 13), draw.randrange(1, 29)
    if locale == "zh":
        return draw.choice([f"{year}年{month}月{day}日", f"{year}-{month:02}-{day:02}", f"{year}/{month}/{day}"])
    name = SENTENCES["months"].get(locale, SENTENCES["months"]["en-US"]).split()[month - 1]
    if locale == "en-US":
        return draw.choice([f"{month}/{day}/{year}", f"{name} {day}, {year}", f"{month:02}-{day:02}-{year}"])
    of = {"es": " de ", "pt-BR": " de ", "de": ". "}.get(locale, " ")
    last = of if of == " de " else " "
    between = "." if locale == "de" else "/"
    return draw.choice(
        [f"{day:02}{between}{month:02}{between}{year}", f"{day}{of}{name}{last}{year}", f"{day}-{month}-{year}"]
    )


def _phone(region: str, draw: random.Random) -> str:
    """Return a number that can be a person's, in one of the ways in which it is written there."""
    kinds = (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE)
    example = phonenumbers.example_number_for_type(region, draw.choice(kinds[:2]))
    assert example
    length = len(phonenumbers.national_significant_number(example))
    while True:
        prefix = phonenumbers.national_significant_number(example)[: draw.choice([1, 2])]
        number = phonenumbers.parse(prefix + _digits(draw, length - len(prefix)), region)
        if phonenumbers.number_type(number) in kinds:
            break
    written = phonenumbers.format_number(
        number, draw.choice([PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.NATIONAL, PhoneNumberFormat.E164])
    )
    return draw.choice([written, written, written.replace("-", " "), written.replace(" ", "-")])


def _address(locale: str, fake: Any, draw: random.Random) -> str:
    if made := SENTENCES["streets"].get(locale):
        parts = (
            draw.randrange(1, 400),
            draw.choice(made["towns"]),
            draw.randrange(110000, 855000),
            draw.randrange(1, 30),
        )
        return draw.choice(made["shapes"]).format(*parts)
    whole = re.sub(r" +", " ", fake.address()).replace(" \n", "\n")
    return whole.replace("\n", draw.choice([", ", "\n"]))


# --- the measures ---


def recall(made: list[Sentence], *, misses: bool = False) -> dict[str, Any]:
    """Return the share of items found by kind and by locale, names apart, and the share of the other words kept."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    kept = others = 0
    for sentence in made:
        scrubbed = KIND.sub(" ", scrub(sentence.text))
        rest = sentence.text.replace(sentence.item, " ")
        around = set(_words(rest))
        left = [word for word in _words(sentence.item) if word in scrubbed and word not in rest]
        group = "names" if sentence.kind == "name" else "structured"
        for key in (group, f"{group} {sentence.locale}", f"kind {sentence.kind}"):
            total[key] += 1
            right[key] += not left
        others += len(around)
        kept += len(around & set(_words(scrubbed)))
        if misses and left:
            print(f"{sentence.locale} {sentence.kind} missed {left}: {sentence.text!r} -> {scrubbed!r}")
    return {"sentences": len(made), "found": {key: share(right[key], total[key]) for key in sorted(total)}} | {
        "other_words_kept": share(kept, others)
    }


def _words(text: str) -> list[str]:
    """Return the words and numbers of a text that could tell something: from two characters on."""
    return re.findall(r"\d{2,}|[^\W\d_]{2,}", text)


def changed(*, misses: bool = False) -> dict[str, Any]:
    """Return the share of medical texts in which anything is replaced."""
    passages = []
    for path in sorted(KNOWLEDGE.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            passages += [value for value in json.loads(line).values() if isinstance(value, str) and " " in value]
    texts = {"our passages": passages}
    try:
        medquad = rows_of("lavita/MedQuAD")
        texts["MedQuAD questions"] = sorted({row["question"] for row in medquad if row["question"]})
        texts["MedQuAD answers"] = [row["answer"] for row in medquad if row["answer"]][::8]
        for column in ("question", "answer"):
            texts[f"K-QA {column}s"] = [row[column] for row in rows_of("Itaykhealth/K-QA", split="test")]
    except UserError as error:
        print(error)
    result = {}
    for name, these in texts.items():
        wrong = [text for text in these if scrub(text) != text]
        result[name] = share(len(wrong), len(these))
        if misses:
            for text in wrong:
                for start, end, kind in spans(text):
                    around = f"{text[max(0, start - 40) : start]}<{text[start:end]}>{text[end : end + 20]}"
                    print(f"{name} {kind}: {around!r}")
    return result


if __name__ == "__main__":
    main()
