"""A few seconds of what `scripts/fuzz` does for as long as it is asked to."""

from __future__ import annotations

import pytest
from fuzzing import FuzzFailure, execute, fuzz, input_of, replay_line
from targets import Target, targets

from protocol.errors import RemoteProtocolError

SECONDS = 3.0


def test_decoders_refuse_and_do_no_worse() -> None:
    everything = targets()
    tallies = fuzz(everything, seed=1, seconds=SECONDS)
    assert min(tally.executions for tally in tallies.values()) >= 50
    assert all(tally.executions > tally.accepted for tally in tallies.values())


def test_what_is_good_is_accepted() -> None:
    """A target that refused everything would test nothing."""
    for target in targets():
        outcomes = []
        for data in target.corpus:
            try:
                target.run(data)
                outcomes.append(True)
            except RemoteProtocolError:
                outcomes.append(False)
        assert any(outcomes), target.name


def test_inputs_follow_from_their_number() -> None:
    one, two = targets()[1], targets()[1]
    inputs = [input_of(one, 3, number) for number in range(50)]
    assert inputs == [input_of(two, 3, number) for number in range(50)]
    assert len(set(inputs)) > 40


def test_a_failure_says_how_to_see_it_again() -> None:
    def breaks(data: bytes) -> None:
        raise KeyError(data[:1])

    target = Target("broken", [b"seed"], breaks)
    with pytest.raises(FuzzFailure) as caught:
        execute(target, 7, 12)
    assert replay_line(target, 7, 12) in str(caught.value)
    assert "KeyError" in str(caught.value)
