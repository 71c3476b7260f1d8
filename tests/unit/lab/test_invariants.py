"""Each invariant holds on a good run, finds the run that is broken in its way, and says where."""

from __future__ import annotations

from typing import Any

import histories as made
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.lab import history as h
from edged.lab.chaos.invariants import INVARIANTS
from edged.lab.chaos.judging import judge

GOOD = made.good()
ORDER = ("1", "2")


def replaced(row: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(row, **changes)


def asking(*rows: h.Request, of: h.History = GOOD) -> h.History:
    return replaced(of, requests=(*of.requests, *rows))


def running(*rows: h.Sample, of: h.History = GOOD) -> h.History:
    return replaced(of, samples=(*of.samples, *rows))


def found(history: h.History, name: str) -> list[tuple[str, str]]:
    """Subject and detail; nothing else may be found by the other invariants."""
    verdict = judge(history)
    assert {row.invariant for row in verdict.findings} <= {name}, verdict.findings
    assert verdict.verdict == ("invalid" if verdict.findings else "valid")
    return [(row.subject, row.detail) for row in verdict.findings]


def test_a_good_run_is_valid() -> None:
    verdict = judge(GOOD)
    assert (verdict.verdict, verdict.unproven) == ("valid", ())
    assert [row.invariant for row in verdict.judged] == [each.name for each in INVARIANTS]
    assert len({each.name for each in INVARIANTS}) == len(INVARIANTS)


# ---------------------------------------------------------------- forms
def flipping(count: int, *, every_s: float = 5.0, **changes: Any) -> list[h.Decided]:
    forms = ("module", "snapshot")
    return [
        made.decided(at * every_s, forms[at % 2], forms[(at + 1) % 2], **changes)
        for at in range(count)
    ]


def test_a_form_that_flaps() -> None:
    ((subject, detail),) = found(made.with_rows(GOOD, *flipping(5)), "no-form-flaps")
    assert subject == "f"
    assert detail == (
        "n2 went back to a form it had left 2 times in 10 s without a reason, the last time from"
        " module to snapshot"
    )


@pytest.mark.parametrize(
    "rows",
    [
        flipping(2),
        flipping(6, every_s=61.0),
        flipping(6, input="bandwidth", input_before=100.0, input_after=108.0),
        flipping(6, input="rate", input_before=0.0, input_after=1.0),
        flipping(6, trigger="failed"),
        [made.decided(float(at), "forward", "module") for at in range(6)],
        [made.decided(1.0, "forward", "module"), made.decided(2.0, "module", "artifact")],
        [row for name in made.NAMES for row in flipping(2, node=name)],
    ],
    ids=["once", "slowly", "input", "demand", "failed", "versions", "onward", "nodes"],
)
def test_changes_that_have_a_reason(rows: list[h.Decided]) -> None:
    assert found(made.with_rows(GOOD, *rows), "no-form-flaps") == []


def test_what_an_input_did_not_move_enough_for_is_no_reason() -> None:
    rows = flipping(5, input="bandwidth", input_before=100.0, input_after=106.0)
    assert found(made.with_rows(GOOD, *rows), "no-form-flaps")


def test_a_run_in_which_nobody_said_what_it_chose() -> None:
    verdict = judge(made.without(GOOD, h.Explained))
    assert verdict.unproven == ("no node told which forms it has chosen",)


def test_a_verdict_says_what_was_chosen() -> None:
    assert judge(GOOD).plans == {"f": dict.fromkeys(made.NAMES, "artifact")}


# ---------------------------------------------------------------- acknowledged deploys
@pytest.mark.parametrize(
    "look",
    [
        {"functions": {}, "versions": {}},
        {"versions": {"f": (made.VERSIONS["1"],)}, "functions": {"f": "a3" * 32}},
    ],
)
def test_an_acknowledged_deploy_that_is_gone(look: dict[str, Any]) -> None:
    broken = made.with_rows(made.without(GOOD, h.Catalog), made.catalog("n2", **look))
    rows = found(broken, "acknowledged-survive")
    assert rows
    assert rows[-1][0] == "f"
    assert "version 2 (a2a2a2a2a2a2), acknowledged by n1 at 12.50 s" in rows[-1][1]
    assert rows[-1][1].endswith("is not in the catalog of n2")


def test_an_acknowledged_deploy_that_gave_way() -> None:
    old = made.catalog("n3", functions={"f": made.VERSIONS["1"]})
    broken = made.with_rows(made.without(GOOD, h.Catalog), old)
    ((_, detail),) = found(broken, "acknowledged-survive")
    assert detail.endswith("has given way to an older one on n3")


def test_deploys_at_the_same_time_may_win_either_way() -> None:
    rows = tuple(
        made.deploy("1", 11.8, t_s=12.3) if isinstance(row, h.Deploy) and row.label == "1" else row
        for row in made.without(GOOD, h.Catalog).rows
    )
    old = made.catalog("n3", functions={"f": made.VERSIONS["1"]})
    # Answers of version 1 were not there before it was deployed: only the catalog is looked at.
    assert found(replaced(GOOD, rows=(*rows, old)), "acknowledged-survive") == []


def test_deploys_before_the_load_have_no_time_but_an_order() -> None:
    first, second = (made.deploy(label, 0.0, t_s=0.0) for label in ORDER)
    rows = tuple(row for row in GOOD.rows if not isinstance(row, h.Deploy | h.Catalog))
    for now, wrong in (("2", 0), ("1", 1)):
        look = made.catalog("n1", functions={"f": made.VERSIONS[now]})
        history = replaced(GOOD, rows=(*rows, first, second, look))
        assert len(found(history, "acknowledged-survive")) == wrong


def test_acknowledged_by_too_few_while_nothing_was_broken() -> None:
    alone = made.deploy("2", 12.0, holders=("n1",))
    rows = tuple(alone if row == made.deploy("2", 12.0) else row for row in GOOD.rows)
    ((_, detail),) = found(replaced(GOOD, rows=rows), "acknowledged-survive")
    assert "when n1 had it: 3 nodes had to" in detail
    moved = made.deploy("2", 22.0, holders=("n1", "n2"))
    rows = tuple(moved if row == made.deploy("2", 12.0) else row for row in GOOD.rows)
    assert found(replaced(GOOD, rows=rows), "acknowledged-survive") == [], "n3 was down then"


# ---------------------------------------------------------------- answers
def test_another_versions_bytes() -> None:
    wrong = made.request("n2", "2", 25.0, body_digest=made.RIGHT["1"], answered_by="n1")
    ((subject, detail),) = found(asking(wrong, wrong), "answers-right")
    assert subject == "f"
    assert detail == (
        "n1 answered 2 requests as version a2a2a2a2a2a2, another body than that version's;"
        " the first was sent to n2"
    )


@pytest.mark.parametrize(
    ("version", "words"),
    [("f" * 12, "which nobody has deployed"), (None, "without saying of which version")],
)
def test_a_version_that_nobody_deployed(version: str | None, words: str) -> None:
    wrong = made.request("n2", "2", 25.0, version=version)
    ((_, detail),) = found(asking(wrong), "answers-right")
    assert words in detail


def test_what_a_poisoned_builder_answers_for_itself_and_for_others() -> None:
    poison = [
        made.fault(state, 20.0, id="2", action="poison", targets=("n2",))
        for state in ("begun", "proven", "ended")
    ]
    history = made.with_rows(GOOD, *poison)
    own = made.request("n2", "2", 25.0, body_digest="00" * 32)
    assert found(asking(own, of=history), "answers-right") == []
    passed_on = replaced(own, node="n1", answered_by="n2")
    assert len(found(asking(passed_on, of=history), "answers-right")) == 1


def test_what_was_not_acknowledged_may_be_served() -> None:
    body = "b3" * 32
    function = GOOD.run.functions[0]
    third = h.Version(label="3", module="c3" * 32, body_digest=body)
    versions = replaced(function, versions=(*function.versions, third))
    silent = replaced(
        made.deploy("2", 13.0), label="3", version=None, acknowledged_s=None, error="503"
    )
    history = made.with_rows(made.with_run(GOOD, functions=(versions,)), silent)
    good = made.request("n2", "2", 25.0, version="f" * 12, body_digest=body)
    assert found(asking(good, of=history), "answers-right") == []
    wrong = replaced(good, body_digest="00" * 32)
    assert len(found(asking(wrong, of=history), "answers-right")) == 1


def test_an_answer_that_failed_or_was_cut_has_no_bytes_to_judge() -> None:
    cut = made.request("n2", "2", 15.0, body_digest=None, error="reset")
    assert found(asking(cut), "answers-right") == []


# ---------------------------------------------------------------- older versions
def test_an_older_version_after_a_newer() -> None:
    ((subject, detail),) = found(
        asking(made.request("n2", "1", 25.0), made.request("n2", "1", 26.0)), "no-older-version"
    )
    assert subject == "f"
    assert detail.startswith("n2 answered version 1, which it was asked for at 25.00 s, after")


def test_what_was_asked_before_the_newer_answer_was_complete() -> None:
    late = made.request("n2", "1", 12.4, done_s=20.0, t_s=20.0)
    assert found(asking(late), "no-older-version") == []


@given(order=st.lists(st.tuples(st.sampled_from(made.NAMES), st.sampled_from(ORDER)), max_size=12))
def test_older_is_what_a_list_of_answers_says(order: list[tuple[str, str]]) -> None:
    """One after the other: wrong iff some node says 1 after it has said 2."""
    rows = tuple(made.request(node, label, 20.0 + at) for at, (node, label) in enumerate(order))
    seen: set[str] = set()
    wrong: set[str] = set()
    for node, label in order:
        if label == "2":
            seen.add(node)
        elif node in seen:
            wrong.add(node)
    verdict = judge(replaced(GOOD, requests=rows))
    told = [row.detail[:2] for row in verdict.findings if row.invariant == "no-older-version"]
    assert sorted(told) == sorted(wrong)


def test_with_clocks_that_were_moved_a_deploy_must_have_been_heard_of() -> None:
    skew = [
        made.fault(state, 11.0 + at, id="2", action="clock-skew", targets=("n1",))
        for at, state in enumerate(("begun", "proven", "ended"))
    ]
    broken = asking(made.request("n2", "1", 25.0), of=made.with_rows(GOOD, *skew))
    assert len(found(broken, "no-older-version")) == 1, "11 s between the deploys"
    near = made.deploy("1", 8.0)
    rows = tuple(near if row == made.deploy("1", 0.0) else row for row in broken.rows)
    assert found(replaced(broken, rows=rows), "no-older-version") == [], "3.5 s"


# ---------------------------------------------------------------- convergence
@pytest.mark.parametrize(
    ("name", "what", "bound_s"),
    [
        ("membership-converges", "membership", 5.0),
        ("catalog-converges", "catalog", 5.0),
        ("replicas-restored", "replicas", 10.0),
    ],
)
def test_what_converges_too_late_or_not(name: str, what: h.Convergence, bound_s: float) -> None:
    late = made.converged(what, seconds=bound_s + 0.1, waited_s=bound_s + 0.1)
    ((subject, detail),) = found(made.with_rows(GOOD, late), name)
    assert (subject, detail[:10]) == ("after 1", "only after")
    never = made.converged(what, seconds=None, waited_s=bound_s + 0.1, detail="n2 is wrong")
    ((_, detail),) = found(made.with_rows(GOOD, never), name)
    assert detail.endswith("n2 is wrong")
    overtaken = made.converged(what, seconds=None, waited_s=bound_s - 1)
    assert found(made.with_rows(GOOD, overtaken), name) == []


# ---------------------------------------------------------------- native code
@pytest.mark.parametrize(
    ("accept", "own", "builders", "allowed"),
    [
        ("none", True, (), True),
        ("none", False, ("n1", "n2"), False),
        ("signed", False, ("n1",), True),
        ("signed", False, (), False),
        ("signed", False, ("stranger",), False),
        ("quorum=2", False, ("n1", "n2"), True),
        ("quorum=2", False, ("n1", "n1"), False),
        ("quorum=2", True, (), True),
    ],
)
def test_code_and_policy(accept: str, own: bool, builders: tuple[str, ...], allowed: bool) -> None:
    nodes = tuple(
        replaced(node, accept=accept if node.name == "n3" else "signed") for node in made.NODES
    )
    code = made.artifact("1", own=own, builders=builders)
    looks = tuple(
        replaced(row, artifacts=(code,) if row.node == "n3" and row.artifacts else row.artifacts)
        for row in GOOD.samples
    )
    broken = replaced(made.with_run(GOOD, nodes=nodes), samples=looks)
    rows = found(broken, "code-allowed")
    assert [subject for subject, _ in rows] == ([] if allowed else ["n3"])
    if not allowed:
        assert rows[0][1].endswith(f"its policy is {accept}")


def test_only_builders_words_count() -> None:
    nodes = tuple(
        replaced(node, roles=("serve",)) if node.name == "n2" else node for node in made.NODES
    )
    rows = found(made.with_run(GOOD, nodes=nodes), "code-allowed")
    assert [subject for subject, _ in rows] == list(made.NAMES), "they run what only n2 vouches for"


def test_two_codes_of_one_module() -> None:
    poisoned = made.artifact("2", digest="dd" * 32, own=False, builders=("n2",))
    ((subject, detail),) = found(
        running(made.sample("n1", 39.5, artifacts=(poisoned,))), "code-same"
    )
    assert subject == "module c2c2c2c2c2c2"
    assert "dddddddddddd on n1, by the word of n2" in detail
    poison = [
        made.fault(state, 5.0, id="2", action="poison", targets=("n1",))
        for state in ("begun", "proven", "ended")
    ]
    alone = running(
        made.sample("n1", 39.5, artifacts=(poisoned,)), of=made.with_rows(GOOD, *poison)
    )
    assert found(alone, "code-same") == [], "what the liar runs itself"
    other_key = replaced(poisoned, key="p" * 64)
    assert found(running(made.sample("n1", 39.5, artifacts=(other_key,))), "code-same") == []


# ---------------------------------------------------------------- budgets, processes, what is left
def test_a_phase_over_its_budget() -> None:
    failed = made.request("n1", "1", 5.0, status=503, error="http-503")
    ((subject, detail),) = found(asking(failed), "error-budget")
    assert subject == "warm-up"
    assert detail == "1 of 101 requests failed, and 0.00% may: 1 http-503 at n1"
    within = made.request("n1", "1", 15.0, status=503, error="http-503")
    assert found(asking(within), "error-budget") == []


def test_a_process_that_ends_by_itself() -> None:
    dead = h.Sample(t_s=39.5, node="n1", state="dead")
    ((subject, detail),) = found(running(dead), "nobody-crashes")
    assert subject == "n1"
    assert "process 101 ran at 39.0 s, and the node is dead at 39.5 s" in detail
    another = made.sample("n2", 39.5, pid=999)
    ((subject, detail),) = found(running(another), "nobody-crashes")
    assert (subject, detail.partition("the node ")[2][:14]) == ("n2", "is process 999")


@pytest.mark.parametrize(
    ("field", "step", "words"),
    [
        ("rss_bytes", 5_000_000, "memory"),
        ("fds", 12, "open descriptors"),
        ("threads", 2, "threads"),
    ],
)
def test_a_node_that_grows(field: str, step: int, words: str) -> None:
    looks = tuple(
        replaced(row, **{field: getattr(row, field) + step * int(row.t_s)})
        if row.node == "n2"
        else row
        for row in GOOD.samples
    )
    ((subject, detail),) = found(replaced(GOOD, samples=looks), "no-growth")
    assert (subject, detail[: len(words)]) == ("n2", words)


def test_a_burst_is_no_growth() -> None:
    looks = tuple(
        replaced(row, rss_bytes=500_000_000) if row.node == "n2" and 22 < row.t_s < 27 else row
        for row in GOOD.samples
    )
    assert found(replaced(GOOD, samples=looks), "no-growth") == []


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"processes": ("pid 7",)}, "processes"),
        ({"files": ("x",)}, "files"),
        ({"fds_after": 10}, "descriptors of the runner"),
    ],
)
def test_what_is_left_behind(change: dict[str, Any], subject: str) -> None:
    left = replaced(h.Left(t_s=42.0, fds_before=9, fds_after=9), **change)
    ((told, _),) = found(made.with_rows(made.without(GOOD, h.Left), left), "nothing-left")
    assert told == subject


# ---------------------------------------------------------------- too little seen
@pytest.mark.parametrize(
    ("history", "words"),
    [
        (made.without(GOOD, h.Catalog), "no node's catalog was read at the end"),
        (made.without(GOOD, h.Converged), "membership: not once was there time enough"),
        (replaced(GOOD, samples=()), "no node told which code it runs"),
        (replaced(GOOD, samples=GOOD.samples[:9]), "no node ran for long enough to see it grow"),
        (
            replaced(GOOD, requests=GOOD.requests[:50]),
            "nobody asked anything in phase faults, which has a budget",
        ),
        (
            replaced(
                GOOD,
                requests=tuple(replaced(row, body_digest=None) for row in GOOD.requests),
            ),
            "no answer's right bytes are known",
        ),
    ],
)
def test_too_little_evidence_is_unknown(history: h.History, words: str) -> None:
    verdict = judge(history)
    assert verdict.verdict == "unknown", verdict.findings
    assert any(words in text for text in verdict.unproven), verdict.unproven
