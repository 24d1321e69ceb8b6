"""Held to Cassandra's real behaviour: what its own classes answered to given input (``benchmarks/peers/vectors.py``).

Where this library differs on purpose:

* Heartbeats travel in the digests themselves. Where only a heartbeat is newer at the sender, Cassandra requests it and
  gets it with the ACK2; here it is taken from the SYN, and nothing is requested.
* Endpoints that the digests do not name are sent at once; Cassandra waits until its own SYN names them.
* A generation more than a day ahead of the local clock is not requested. Cassandra requests it, and refuses only one
  that is more than a year ahead, and only for endpoints that it knows.
* Arrivals are kept in whole microseconds, Cassandra's in nanoseconds; the vectors use whole microseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossiper.core.digest import Examination, endpoint_state, examine, requested_states
from gossiper.core.failure_detector import PHI_FACTOR, PhiAccrualFailureDetector
from gossiper.core.messages import VersionedValue
from gossiper.core.state import ClusterState
from gossiper.core.versions import Now, tick_of, version_of
from gossiper.limits import GENERATION_AHEAD_SECONDS_MAX

DATA = Path(__file__).parent / "data" / "cassandra"
PHI: dict[str, Any] = json.loads((DATA / "phi.json").read_text())
EXAMINATION: dict[str, Any] = json.loads((DATA / "examination.json").read_text())
NOW = Now(1e6, float(EXAMINATION["wall_seconds"]))


# -------------------------------------------------------------------------------------------------------------- phi


def detector(window_size: int) -> PhiAccrualFailureDetector:
    """With Cassandra's numbers: 2 s come first, gaps above 2 s are not recorded."""
    return PhiAccrualFailureDetector(
        threshold=8.0,
        window_size=window_size,
        first_interval_seconds=2.0,
        interval_seconds_max=2.0,
        local_pause_seconds=1e9,
    )


def test_the_factor_to_decimal_logarithms_is_cassandras() -> None:
    assert pytest.approx(PHI["phi_factor"], rel=1e-15) == PHI_FACTOR


@pytest.mark.parametrize("case", PHI["cases"], ids=lambda case: case["name"])
def test_the_same_heartbeats_give_the_same_phi(case: dict[str, Any]) -> None:
    ours = detector(case["window_size"])
    rows = np.array([3], dtype=np.intp)
    for arrival in case["arrivals_ns"]:
        ours.report(rows, arrival / 1e9)
    unscaled = [float(ours.phi_unscaled(rows, at / 1e9)[0]) for at in case["ask_ns"]]
    assert unscaled == pytest.approx(case["phi_unscaled"], rel=1e-9)
    scaled = [float(ours.phi(rows, at / 1e9)[0]) for at in case["ask_ns"]]
    assert scaled == pytest.approx([phi * PHI["phi_factor"] for phi in case["phi_unscaled"]], rel=1e-9)


def test_the_heartbeats_reach_the_edges() -> None:
    """Cases in which a window wrapped, in which gaps were left out, and on both sides of the threshold."""
    cases = PHI["cases"]
    assert any(len(case["arrivals_ns"]) > case["window_size"] for case in cases)
    gaps = [np.diff(case["arrivals_ns"]) for case in cases]
    assert any((gap > 2e9).any() for gap in gaps)
    assert any((gap == 2e9).any() for gap in gaps)
    phis = np.array([phi for case in cases for phi in case["phi_unscaled"]]) * PHI["phi_factor"]
    assert (phis > 8).any()
    assert (phis < 8).any()


# ------------------------------------------------------------------------------------------------------ examination


def cluster_state(endpoint: str, view: list[dict[str, Any]]) -> ClusterState:
    """One side's view, put into the table as it stands: how it got there is not the matter here."""
    state = ClusterState(detector(1000), endpoint=endpoint)
    table = state.table
    for known in view:
        row = table.row(known["endpoint"])
        if row is None:
            row = table.add(known["endpoint"])
        values = {value["key"]: VersionedValue(value["version"], value["value"]) for value in known["values"]}
        table.generation[row] = known["generation"]
        table.interval_ms[row] = 1000
        table.heartbeat[row] = tick_of(known["heartbeat"])
        table.states_version[row] = max((value.version for value in values.values()), default=0)
        table.states[row] = values
    return state


class Case:
    """Both sides of one case, what our examination says, and what Cassandra's said."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.a = cluster_state(case["a_endpoint"], case["a"])
        self.b = cluster_state(case["b_endpoint"], case["b"])
        self.named = {known["endpoint"] for known in case["a"]}
        limit = NOW.wall + GENERATION_AHEAD_SECONDS_MAX
        self.too_far_ahead = {known["endpoint"] for known in case["a"] if known["generation"] > limit}
        self.ours: Examination = examine(self.b, self.a.table.digests(), NOW)
        self.requests: dict[str, list[int]] = case["cassandra"]["requests"]
        self.sends: dict[str, dict[str, Any]] = case["cassandra"]["sends"]
        self.answers: dict[str, dict[str, Any]] = case["cassandra"]["answers"]
        table = self.b.table
        self.requested = {
            endpoint: (int(generation), max(version_of(int(heartbeat), 0), int(states_version)))
            for endpoint, generation, heartbeat, states_version in zip(
                self.ours.requests.endpoints,
                self.ours.requests.generations,
                self.ours.requests.heartbeats,
                self.ours.requests.states_versions,
                strict=True,
            )
        }
        self.taken = {
            table.endpoint(int(row)): int(heartbeat)
            for row, heartbeat in zip(self.ours.take_rows, self.ours.take_heartbeats, strict=True)
        }


@pytest.fixture(params=EXAMINATION["cases"], ids=lambda case: case["b_endpoint"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_requests_what_cassandra_requests(case: Case) -> None:
    """Ours or taken from the digest itself; for the same generation and from the same version on."""
    assert case.requested.keys() | case.taken.keys() == case.requests.keys() - case.too_far_ahead
    for endpoint, request in case.requested.items():
        assert list(request) == case.requests[endpoint], endpoint
    assert case.ours.refused_generations == len(case.too_far_ahead)


def test_takes_from_the_digest_what_cassandra_gets_with_the_ack2(case: Case) -> None:
    for endpoint, heartbeat in case.taken.items():
        assert version_of(heartbeat, 0) == case.answers[endpoint]["heartbeat"], endpoint
    for endpoint in case.taken.keys() - case.requested.keys():
        assert case.answers[endpoint]["values"] == {}, endpoint


def test_answers_requests_as_cassandra_does(case: Case) -> None:
    table = case.a.table
    for row, from_version in requested_states(case.a, case.ours.requests):
        state = endpoint_state(case.a, row, from_version)
        theirs = case.answers[table.endpoint(row)]
        assert {key: value.version for key, value in state.values} == theirs["values"]
        assert (state.generation, version_of(state.heartbeat, 0)) == (theirs["generation"], theirs["heartbeat"])


def test_sends_what_cassandra_sends(case: Case) -> None:
    """Besides endpoints that the digests do not name, which only we send."""
    table = case.b.table
    sent = {table.endpoint(row): (row, from_version) for row, from_version in case.ours.send_states}
    volunteered = sent.keys() - case.named
    assert volunteered == {table.endpoint(int(row)) for row in table.rows()} - case.named
    heartbeats = {table.endpoint(int(row)): int(row) for row in case.ours.send_heartbeats}
    assert not heartbeats.keys() & sent.keys()
    assert heartbeats.keys() | (sent.keys() - volunteered) == case.sends.keys()
    for endpoint, row in heartbeats.items():
        assert case.sends[endpoint]["values"] == {}
        assert case.sends[endpoint]["heartbeat"] == version_of(int(table.heartbeat[row]), 0)
    for endpoint in sent.keys() - volunteered:
        state = endpoint_state(case.b, *sent[endpoint])
        assert {key: value.version for key, value in state.values} == case.sends[endpoint]["values"]
        assert state.generation == case.sends[endpoint]["generation"]
        assert version_of(state.heartbeat, 0) == case.sends[endpoint]["heartbeat"]


def test_the_cases_hold_every_line_of_the_table() -> None:
    """No line of Cassandra's table is there by name only."""
    cases = [Case(one) for one in EXAMINATION["cases"]]
    assert sum(len(case.taken.keys() - case.requested.keys()) for case in cases) > 5
    assert sum(version == 0 for case in cases for _, version in case.requested.values()) > 5
    assert sum(version > 0 for case in cases for _, version in case.requested.values()) > 20
    assert sum(len(case.ours.send_heartbeats) for case in cases) > 5
    whole = [from_version for case in cases for _, from_version in case.ours.send_states]
    assert sum(one == 0 for one in whole) > 5
    assert sum(one > 0 for one in whole) > 20
    assert sum(len(case.too_far_ahead) for case in cases) == 1
