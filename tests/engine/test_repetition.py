import numpy as np

from kvguard.engine.repetition import RepeatCounter


def test_a_full_row_makes_no_room_for_others_and_a_row_may_be_another_s() -> None:
    counter = RepeatCounter(2, window=2, capacity=4)
    for token in (1, 2, 1, 2):
        counter.update(np.array([token]), np.array([0]))
    assert counter._tokens.shape[1] == 4
    counter.update(np.array([1]), np.array([1]))
    assert counter._tokens.shape[1] == 4  # row 0 is full, and takes nothing
    assert counter.update(np.array([1]), np.array([0])).tolist() == [1]  # (2, 1) stood before
    assert counter._tokens.shape[1] == 8
    counter.open(0)
    counter.open(5)
    for row in (0, 5):
        found = [int(counter.update(np.array([token]), np.array([row]))[0]) for token in (1, 2, 1, 2, 1)]
        assert found == [0, 0, 0, 1, 1]


def test_a_repetition_begins_with_the_second_occurrence_of_its_first_window() -> None:
    counter, found = RepeatCounter(1, window=3, capacity=4), [RepeatCounter(1, window=3).repeats_from(0)]
    for token in (7, 1, 2, 3, 1, 2, 3, 1, 9, 1, 2, 3):
        counter.update(np.array([token]), np.array([0]))
        found.append(counter.repeats_from(0))
    assert found == [0, 1, 2, 3, 4, 5, 6, 4, 4, 9, 10, 11, 9]
