"""The table that says what each error means outside, and the document a client gets."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

import pytest

from edged.errors import (
    ERRORS,
    BlobNotFound,
    CompileFailed,
    EdgedError,
    GuestTrap,
    MethodNotAllowed,
    ModuleRejected,
    NoHolder,
    info_of,
    problem_of,
)

CLIENT_CLOSED_REQUEST = 499  # nginx's, for the log only: nobody is left to read it


def test_codes_are_unique_and_stable_labels() -> None:
    codes = [info.code for info in ERRORS.values()]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and code.replace("-", "").isalpha() for code in codes)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_rows_are_http(error: type[EdgedError]) -> None:
    info = ERRORS[error]
    assert info.status == CLIENT_CLOSED_REQUEST or HTTPStatus(info.status) >= 400
    if info.retryable:
        assert info.status in {429, 502, 503, 507}, "retrying must be able to help"


def test_a_class_without_a_row_takes_its_parents() -> None:
    class Peculiar(GuestTrap):
        """A trap of a kind the table does not know."""

    assert info_of(Peculiar("x")) is ERRORS[GuestTrap]
    assert problem_of(Peculiar("x"))["type"] == "urn:edged:error:trap"


def test_problem_document() -> None:
    problem = problem_of(NoHolder("no reachable peer holds it", digest="ab" * 32))
    assert problem == {
        "type": "urn:edged:error:no-holder",
        "title": "No holder reachable",
        "status": 503,
        "detail": "no reachable peer holds it",
        "digest": "ab" * 32,
    }
    assert json.loads(json.dumps(problem)) == problem


def test_private_stays_private() -> None:
    secret = "wasm backtrace: 0: <unknown>!run"
    error = GuestTrap("the function trapped: unreachable", stderr=b"secret", private=secret)
    assert error.private == secret
    assert error.stderr == b"secret"
    shown = json.dumps(problem_of(error)) + str(error)
    assert "backtrace" not in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("error", "member", "value"),
    [
        (ModuleRejected("bad-magic", "not wasm"), "reason", "bad-magic"),
        (CompileFailed("timeout", "took too long"), "reason", "timeout"),
        (MethodNotAllowed("GET only", allow=["GET"]), "allow", ["GET"]),
        (BlobNotFound("gone", digest="cd"), "digest", "cd"),
    ],
)
def test_extras_become_members(error: EdgedError, member: str, value: object) -> None:
    assert problem_of(error)[member] == value


def test_titles_are_short_phrases_of_their_own() -> None:
    titles = [info.title for info in ERRORS.values()]
    assert len(set(titles)) == len(titles)
    for title in titles:
        assert re.fullmatch(r"[A-Z][A-Za-z' ]{3,39}", title), title
