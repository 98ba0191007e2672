"""What tells who somebody is goes, what is medical stays: by hand, on made sentences of ten locales, on our texts."""

from __future__ import annotations

import json

import pytest

from medchat.scrub import normalised, scrub, scrub_all
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Mail jane.doe+x@nhs.net, or jane (at) example (dot) org.", "Mail [e-mail], or [e-mail]."),
        ("See https://ann:pw@example.org/a, or facebook.com/ann.lee.", "See [link], or [link]."),
        ("From 192.168.3.17 and 2001:db8::ff00:42:8329", "From [ip address] and [ip address]"),
        ("Card 4111 1111 1111 1111, IBAN GB82 WEST 1234 5698 7654 32.", "Card [card number], IBAN [account number]."),
        ("My SSN is 123-45-6789. CPF 529.982.247-25", "My SSN is [id number]. CPF [id number]"),
        ("DNI 12345678Z, NIE X1234567L; NHS 943 476 5919", "DNI [id number], NIE [id number]; NHS [id number]"),
        ("Patient number: AB-123456", "Patient number: [id number]"),
        ("आधार 2345 6789 0124 और ٠٥٠١٢٣٤٥٦٧", "आधार [id number] और [phone]"),
        ("Ring 020 7946 0958 or +49 30 901820 or (212) 555-2368.", "Ring [phone] or [phone] or [phone]."),
        ("我叫王小明，电话13812345678，1985年3月12日出生。", "我叫[name]，电话[phone]，[date of birth]出生。"),
        ("Né le 3 mai 1961, 12 rue de la Paix, 75002 Paris", "Né le [date of birth], [address]"),
        ("Ich wohne in der Hauptstraße 5a, 10115 Berlin.", "Ich wohne in der [address]."),
        ("I live at 221B Baker Street, London NW1 6XE and cough.", "I live at [address] and cough."),
        ("my name is john, born 03/04/1990", "my name is [name], born [date of birth]"),
        ("Dear Dr Patel, I cough. Kind regards, Ann Lee", "Dear Dr [name], I cough. Kind regards, [name]"),
    ],
)
def test_it_goes(text, scrubbed):
    assert scrub(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "BP 120/80, 0.5 mg at 12:30:45, HbA1c 48 mmol/mol (6.5 %), platelets 150 000 - 400 000 per µl.",
        "ICD-10 E11.9 and J45.909, PMID 31234567, doi 10.1056/NEJMoa2034577, NCT04368728, CAS 50-78-2, EC 3.4.21.4.",
        "The rash began on 12 March 2021, again on 03/04/2022 and 2022-05-06; last period 1 May.",
        "Babies born before 37 weeks. Born in 1985. He was born with a heart defect in 3 of 100,000.",
        "Call 911, 999, 112, 116 123 or the Poison Help line at 1-800-222-1222.",
        "Read https://www.nhs.uk/conditions/asthma/ or medlineplus.gov/anemia.html.",
        "Ringer 500 ml via IV 5 times; a 20 minute walk down the road; vitamin B12 and B6 5 mg; Omega-3 1000 mg.",
        "My name is not important. I'm called back. Dear doctor, dear all, hello there!",
        "Parkinson's disease, Crohn's disease, Dr. and Mrs. mean nothing alone.",
        "CD4 250, TSH 2.45, ferritin 12-300, 5-HT2A, COVID-19, SpO2 96-98 %, 1,25-dihydroxyvitamin D 30 pg/ml.",
    ],
)
def test_it_stays(text):
    assert scrub(text) == text


def test_a_name_told_once_goes_from_the_whole_conversation():
    said = ["My name is Anna Schmidt.", "Hello Anna, rest helps.", "Thanks! ANNA is my band, Schmidt my dog."]
    assert scrub_all(said) == [
        "My name is [name].",
        "Hello [name], rest helps.",
        "Thanks! ANNA is my band, [name] my dog.",
    ]


def test_the_rest_of_a_text_stays_as_it_was_written():
    odd = "\ue000 “Ｗｉｄｅ” ½ – Ⅳ \u200f٣٫٥ ملغ… 体温３８．５℃ é\u0301"
    assert scrub(odd) == odd
    assert len(normalised(odd)) == len(odd)


def test_made_sentences_of_ten_locales():
    pytest.importorskip("faker")
    from benchmarks.scrub import LOCALES, recall, sentences

    made = sentences(seed=11, each=4)
    assert made == sentences(seed=11, each=4)
    found = recall(made)["found"]
    assert found["structured"]["value"] >= 0.95
    assert found["structured"]["of"] == 4 * 9 * len(LOCALES)
    assert min(share["value"] for key, share in found.items() if key.startswith("structured")) >= 0.85  # of 36
    assert found["names"]["value"] >= 0.5  # those that words like "my name is" lead to


def test_passages_of_our_own_stay():
    for path in (ROOT / "assets" / "knowledge").glob("[de]*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for text in json.loads(line).values():
                if isinstance(text, str):
                    assert scrub(text) == text
