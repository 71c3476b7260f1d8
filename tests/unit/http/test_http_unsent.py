"""The budget of unsent answers: who goes when there is no room."""

from __future__ import annotations

from edged.http.unsent import UnsentBudget


class Slow:
    def __init__(self, write_deadline: float) -> None:
        self.write_deadline = write_deadline
        self.cut = False

    def cut_write(self) -> None:
        self.cut = True


def test_those_furthest_behind_go_until_there_is_room() -> None:
    budget = UnsentBudget(100)
    third, first, second = writers = [Slow(30.0), Slow(10.0), Slow(20.0)]
    assert all(budget.hold(writer, 30) for writer in writers)
    assert budget.bytes == 90
    newcomer = Slow(40.0)
    assert budget.hold(newcomer, 60)
    assert [writer.cut for writer in (first, second, third)] == [True, True, False]
    assert budget.bytes == 90


def test_deadlines_count_as_they_are_now() -> None:
    budget = UnsentBudget(100)
    idle, busy = Slow(10.0), Slow(11.0)
    assert budget.hold(idle, 50)
    assert budget.hold(busy, 50)
    idle.write_deadline = 12.0
    assert budget.hold(Slow(13.0), 50)
    assert (idle.cut, busy.cut) == (False, True)


def test_memory_is_given_back_once() -> None:
    budget = UnsentBudget(100)
    writer = Slow(1.0)
    assert budget.hold(writer, 100)
    budget.release(writer)
    budget.release(writer)
    assert budget.bytes == 0


def test_an_answer_larger_than_the_budget_costs_nobody_else() -> None:
    budget = UnsentBudget(100)
    other = Slow(1.0)
    assert budget.hold(other, 100)
    assert not budget.hold(Slow(2.0), 101)
    assert (other.cut, budget.bytes) == (False, 100)
