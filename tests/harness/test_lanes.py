"""Sharing cases out: every case goes to one lane, and a workload's cases stay together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.harness.case import Case
from dynbench.harness.lanes import (
    Lane,
    WorkQueue,
    duration_s,
    homes_of,
    predicted_duration_s,
    side_by_side,
)


def case(provider: str, size: int) -> Case:
    return Case("s", provider, "forward", "cuda", "float32", "event", {"seq_len": size})


def lanes(count: int) -> list[Lane]:
    return [Lane(f"GPU {i}", card=f"card {i}") for i in range(count)]


def seconds(one: Case) -> float:
    return float(one.workload["seq_len"])


some_cases = st.lists(
    st.builds(case, st.sampled_from("abcd"), st.integers(1, 6)), unique_by=lambda c: c.case_id
)


@given(
    cases=some_cases,
    count=st.integers(1, 4),
    longest_first=st.booleans(),
    homes=st.dictionaries(st.integers(1, 6), st.integers(0, 5)),
    data=st.data(),
)
def test_every_case_is_taken_once_and_workloads_stay_together(
    cases, count, longest_first, homes, data
):
    known = {case("a", size).workload_id: f"card {card}" for size, card in homes.items()}
    running = lanes(count)
    queue = WorkQueue(cases, running, seconds, longest_first=longest_first, homes=known)
    measured: list[tuple[str, Case]] = []
    while running:  # the lanes come in any order, and all but the last may fail at any time
        lane = data.draw(st.sampled_from(running))
        group = queue.take(lane)
        failed = group and len(running) > 1 and data.draw(st.booleans())
        kept = data.draw(st.integers(0, len(group))) if failed else len(group)
        measured += [(lane.name, one) for one in group[:kept]]
        if failed:
            queue.give_back(group[kept:], lane)
        if failed or not group:
            running.remove(lane)
    taken = Counter(one.case_id for _, one in measured)
    assert taken == Counter(one.case_id for one in cases)


@given(cases=some_cases, count=st.integers(2, 4), data=st.data())
def test_a_workload_is_measured_in_one_lane(cases, count, data):
    running = lanes(count)
    queue = WorkQueue(cases, running, seconds)
    places: dict[str, set[str]] = {}
    while running:
        lane = data.draw(st.sampled_from(running))
        group = queue.take(lane)
        for one in group:
            places.setdefault(one.workload_id, set()).add(lane.name)
        if not group:
            running.remove(lane)
    assert set(places) == {one.workload_id for one in cases}
    assert all(len(names) == 1 for names in places.values())


def test_one_lane_keeps_the_order():
    cases = [case("a", 1), case("a", 3), case("b", 1), case("b", 2)]
    queue = WorkQueue(cases, [Lane()], seconds)
    assert queue.take(Lane()) == cases
    assert queue.take(Lane()) == []


@pytest.mark.parametrize(("longest_first", "sizes"), [(True, [3, 2, 1]), (False, [2, 1, 3])])
def test_the_longest_comes_first_unless_a_budget_may_cut_it_off(longest_first, sizes):
    two = lanes(2)
    queue = WorkQueue(
        [case("a", 2), case("a", 1), case("a", 3)], two, seconds, longest_first=longest_first
    )
    assert [queue.take(two[0])[0].workload["seq_len"] for _ in sizes] == sizes


def test_cases_whose_times_are_not_compared_are_shared_out_one_by_one():
    two = lanes(2)
    cases = [case("a", 2), case("b", 2), case("c", 2), case("a", 3)]
    queue = WorkQueue(cases, two, seconds, together=False)
    assert [queue.take(two[i % 2]) for i in range(5)] == [
        [cases[3]],
        [cases[0]],
        [cases[1]],
        [cases[2]],
        [],
    ]
    assert predicted_duration_s(cases, seconds, 2) == 6
    assert predicted_duration_s(cases, seconds, 2, together=False) == 5


def test_jobs_of_a_lane_share_its_device_and_the_threads():
    (gpu,) = lanes(1)
    assert side_by_side(gpu, 1, 8) == [gpu]
    jobs = side_by_side(replace(gpu, environment={"A": "1"}, columns={"gpu_index": 0}), 3, 8)
    assert [job.name for job in jobs] == ["GPU 0 job 1", "GPU 0 job 2", "GPU 0 job 3"]
    for job in jobs:
        assert job.environment == {"A": "1", "OMP_NUM_THREADS": "2"}
        assert (job.card, job.columns) == (gpu.card, {"gpu_index": 0})
    assert [job.name for job in side_by_side(Lane(), 2, 1)] == ["job 1", "job 2"]
    assert side_by_side(Lane(), 2, 1)[0].environment == {"OMP_NUM_THREADS": "1"}


def test_a_workload_goes_on_where_it_began():
    two = lanes(2)
    cases = [case("a", size) for size in (1, 2, 3)]
    rows = [
        {"workload_id": cases[2].workload_id, "gpu_uuid_hash": "card 1"},
        {"workload_id": cases[0].workload_id, "gpu_uuid_hash": "a card that is gone"},
        {"workload_id": cases[1].workload_id, "gpu_uuid_hash": None},
    ]
    queue = WorkQueue(cases, two, seconds, homes=homes_of(rows))
    assert queue.take(two[0]) == [cases[1]]
    assert queue.take(two[1]) == [cases[2]]
    assert queue.take(two[0]) == [cases[0]]
    assert queue.take(two[0]) == []


def test_what_a_failed_lane_had_at_home_goes_to_the_others():
    two = lanes(2)
    cases = [case("a", 1), case("a", 2)]
    homes = {one.workload_id: "card 1" for one in cases}
    queue = WorkQueue(cases, two, seconds, homes=homes)
    assert queue.take(two[0]) == []
    queue.give_back(queue.take(two[1]), two[1])
    assert queue.take(two[0]) == [cases[1]]
    assert queue.take(two[0]) == [cases[0]]


def test_durations_of_groups_side_by_side():
    assert duration_s([], 2) == 0
    assert duration_s([1.0, 2.0, 3.0], 1) == 6
    assert duration_s([1.0, 2.0, 3.0], 2) == 3
    assert duration_s([1.0, 2.0, 3.0], 8) == 3
    cases = [case("a", 2), case("b", 2), case("a", 3)]
    assert predicted_duration_s(cases, seconds, 1) == 7
    assert predicted_duration_s(cases, seconds, 2) == 4
