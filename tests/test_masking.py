"""Secrets in what is told: wherever they stand, and whatever else there is."""

from __future__ import annotations

import time
from collections import UserDict, deque, namedtuple
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracedjobs import events
from tracedjobs._core.masking import FILTERED, mask, mask_text, shown

SECRET = "HUNTER2"
Place = namedtuple("Place", ["token", "page"])  # noqa: PYI024 - as many have them


class Unreadable(UserDict[str, Any]):
    def items(self) -> Any:
        raise LookupError("as asked")


class Unshowable:
    def __repr__(self) -> str:
        raise LookupError("as asked")


@dataclass
class Login:
    password: str

    def __str__(self) -> str:
        return f"Login(user='ann', password={self.password})"


@pytest.mark.parametrize(
    "value",
    [
        [("Authorization", f"Bearer {SECRET}"), ("Accept", "*/*")],
        [["X-Api-Key", SECRET]],
        ((b"cookie", SECRET.encode()), (b"accept", b"*/*")),
        deque([{"token": SECRET}]),
        {b"token": SECRET},
        Place(SECRET, 3),
        f'{{"password":"{SECRET}"}}',
        f'[["password", "{SECRET}"]]',
        {"a": f'{{"a": "{{\\"token\\":\\"{SECRET}\\"}}"}}'},
        f'body: {{"token": {{"a": "{SECRET}"}}}}',
        f'cut short {{"a": 1, "token": "{SECRET}',
        f"of Python: {{'user': 'ann', 'token': '{SECRET}'}}",
        f'escaped: \\"token\\": \\"not {SECRET}\\"',
        f'body: {{"password":"{SECRET}"}}'.encode(),
        f"http://host/path?page=2&access_token={SECRET}&x=1#top",
        f"page=2&password={SECRET}",
        f"https://ann:{SECRET}@host/path",
        f"redis://:p@{SECRET}@host/0",
        f"host=db user=ann password={SECRET}",
        f"authorization=Bearer {SECRET}",
        f"\udcff?token={SECRET}".encode("utf-8", "surrogateescape"),
    ],
    ids=count(),
)
def test_a_secret_is_masked_wherever_it_stands(value: Any) -> None:
    assert SECRET in str(value)
    assert SECRET not in str(mask({"value": value}))
    assert FILTERED in str(mask({"value": value}))


def test_what_stands_beside_a_secret_is_told() -> None:
    assert mask(f"http://host/?page=2&token={SECRET}&x=1#top") == (
        f"http://host/?page=2&token={FILTERED}&x=1#top"
    )
    assert mask(f"https://ann:{SECRET}@host/") == f"https://ann:{FILTERED}@host/"
    assert mask([("Authorization", SECRET), ("Accept", "*/*")]) == [
        ("Authorization", FILTERED),
        ("Accept", "*/*"),
    ]
    assert mask(Place(SECRET, 3)) == {"token": FILTERED, "page": 3}


@pytest.mark.parametrize(
    "value",
    [
        "billing.tokens:refresh",
        "[INFO] it's done",
        '"2026-01-02"',
        "a = b; ann@host",
        "http://host/?page=2",
        [("Accept", "*/*")],
        [[1], [2]],
        b"\xff\xfe=",
        range(10**12),
    ],
    ids=count(),
)
def test_what_has_no_secret_is_told_as_it_is(value: object) -> None:
    assert mask({"value": value})["value"] is value


def test_what_cannot_be_looked_through_is_not_told() -> None:
    told = mask({"a": Unreadable(b=1), "c": Unshowable(), "d": [Unreadable()], "e": 5})
    assert told["a"] == "[UNREADABLE]"
    assert told["d"] == ["[UNREADABLE]"]
    assert told["e"] == 5
    assert shown(told["c"]) == "[UNREADABLE]"


def test_what_an_object_says_of_itself_is_masked() -> None:
    assert shown(Login(SECRET)) == "{'password': '[FILTERED]'}"
    assert SECRET not in shown([ValueError(f"password={SECRET}")])


def test_a_knot_and_a_deep_text_end_soon() -> None:
    knot: list[Any] = []
    knot += [knot, knot, knot]
    began = time.perf_counter()
    mask({"knot": knot})
    mask({"deep": "[" * 100_000})
    assert time.perf_counter() - began < 5
    assert mask("[" * 100_000 + '"') == FILTERED


@pytest.mark.parametrize(
    "text",
    ["token" * 200_000, '"' * 10**6, "\\" * 10**6 + '"', '{"token' * 100_000, "://a:" * 200_000],
    ids=count(),
)
def test_a_long_text_is_looked_through_once(text: str) -> None:
    began = time.perf_counter()
    mask(f"{text}'")
    assert time.perf_counter() - began < 10


@given(st.text() | st.binary())
def test_any_text_can_be_looked_through(text: str | bytes) -> None:
    assert type(mask(text)) is type(text)


@given(st.text(alphabet="token=:'\"\\{}[](),&?@/# \n", max_size=60))
def test_any_text_that_looks_like_secrets_can_be_shown_and_cut(text: str) -> None:
    assert shown(text) != "[UNREADABLE]"
    assert len(mask_text(text, limit=20)) <= 20


def test_a_part_that_was_added_is_found_in_texts() -> None:
    assert mask("iban=DE12") == "iban=DE12"
    events.filter_parameters.append("Iban")
    try:
        assert mask("iban=DE12") == f"iban={FILTERED}"
    finally:
        events.filter_parameters.remove("Iban")
