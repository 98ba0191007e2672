"""What is answered in the product's own words, and what is left to the model."""

from __future__ import annotations

import pytest

from medchat.courtesy import BYE, HELLO, ITSELF, THANKS, answer


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Hello", HELLO),
        ("hi there!", HELLO),
        ("Good morning, doctor", HELLO),
        ("test", HELLO),
        ("Thanks", THANKS),
        ("Thank you, that was helpful.", THANKS),
        ("ok thank you so much for your help", THANKS),
        ("ok bye", BYE),
        ("Thanks, bye!", THANKS),
        ("Are you a doctor?", ITSELF),
        ("hello, are you a real human doctor or a robot?", ITSELF),
        ("Who are you?", ITSELF),
        ("what's your name", ITSELF),
        ("WHAT CAN YOU DO?", ITSELF),
        ("Can you diagnose me?", ITSELF),
        ("Hi, how are you?", ITSELF),
    ],
)
def test_courtesy_and_questions_about_itself(message, said):
    assert answer(message) == said


@pytest.mark.parametrize(
    "message",
    [
        "",
        "?!",
        "hello, my head hurts",
        "Thanks. And in children?",
        "thanks to the pills I sleep, can I stop them",
        "what are you supposed to do with a fever",
        "are you supposed to feel dizzy on these",
        "that was painful",
        "is it serious",
        "good evening headaches",
        "test results",
        "what is AI in medicine",
        "can you treat gout",
        "should a doctor see it? bye",
        "hola",
        "你好 thanks",
        "many 2 hello",
    ],
)
def test_what_is_left_to_the_model(message):
    assert answer(message) is None
