"""What Cassandra's own classes answer to given heartbeats and given pairs of states, as data for our tests.

Usage: ``python -m benchmarks.peers.vectors [--write]``. Makes the input from a seed, asks the Cassandra harness, and
compares with ``tests/data/cassandra`` (or writes it). ``tests/test_cassandra_vectors.py`` holds this project to the
files, without a JVM.

Versions in the input are Cassandra's: one counter for heartbeat and values of a node. A heartbeat is ``tick * 16`` and
a value ``tick * 16 + counter`` with a counter from 1, so they are ours, too. Every view is a prefix of what its owner
said, as Cassandra's single version requires.
"""

from __future__ import annotations

import argparse
import json
import sys
from random import Random
from typing import Any, Final

from benchmarks.peers.harness import BUILD, CASSANDRA, ROOT, PeerUnavailableError
from gossiper.core.versions import version_of

DIRECTORY: Final = ROOT / "tests" / "data" / "cassandra"
SEED: Final = 1
EXAMINATIONS: Final = 40
#: The local wall clock of every examination.
WALL_SECONDS: Final = 1_700_000_000
KEYS: Final = ("DC", "RACK", "LOAD", "SCHEMA", "HOST_ID", "RELEASE_VERSION")
MICROSECOND_NS: Final = 1_000
RELATIVE_TOLERANCE: Final = 1e-12

Json = dict[str, Any]


# -------------------------------------------------------------------------------------------------------------- phi


def phi_inputs(rng: Random) -> list[Json]:
    """Lists of arrivals in nanoseconds (whole microseconds, the resolution of our windows) and times of questions."""

    def case(name: str, window_size: int, gaps_ms: list[float]) -> Json:
        arrivals, now = [], 1_000_000_000
        for gap in gaps_ms:
            now += round(gap * 1000) * MICROSECOND_NS
            arrivals.append(now)
        ask = [now + round(ms * 1000) * MICROSECOND_NS for ms in (1.0, 111.0, 1000.0, 8_000.5, 18_420.0, 60_000.0)]
        return {"name": name, "window_size": window_size, "arrivals_ns": arrivals, "ask_ns": ask}

    def jitter(count: int, mean: float, spread: float) -> list[float]:
        return [max(0.0, rng.gauss(mean, spread)) for _ in range(count)]

    outage = [*jitter(20, 1000, 50), 5_000.0, *jitter(20, 1000, 50), 60_000.0, *jitter(5, 1000, 50)]
    edge = [1000.0, 2000.0, 1999.999, 2000.001, 2000.0, 500.0]
    return [
        case("one heartbeat", 1000, [500.0]),
        case("five at 111 ms, window of four", 4, [111.0] * 5),
        case("regular", 1000, [1000.0] * 30),
        case("jitter", 1000, jitter(60, 1000, 200)),
        case("the window goes round", 200, jitter(450, 1000, 100)),
        case("outages", 1000, outage),
        case("around the greatest interval", 1000, edge),
        case("the same time twice", 10, [1000.0, 0.0, 1000.0, 0.0, 1000.0]),
        case("old rhythm forgotten", 8, [200.0] * 8 + [1500.0] * 8),
        case("random", 50, [rng.uniform(0.0, 3000.0) for _ in range(120)]),
    ]


# ------------------------------------------------------------------------------------------------------ examination


def history(rng: Random) -> list[tuple[int, str | None]]:
    """What an owner said in one generation, as (version, key) in order; key None is a heartbeat."""
    said: list[tuple[int, str | None]] = []
    tick = 0
    for _ in range(rng.randrange(3, 12)):
        tick += rng.choice((1, 1, 1, 2, 7, 300))
        said.append((version_of(tick, 0), None))
        for counter in range(1, rng.choice((1, 1, 2, 4))):
            said += [(version_of(tick, counter), key) for key in rng.sample(KEYS, rng.choice((1, 1, 2)))]
    return said


def view(endpoint: str, generation: int, said: list[tuple[int, str | None]], up_to: int) -> Json:
    """Who has heard the first ``up_to`` things that an owner said; those of one version are heard together."""
    last = said[up_to - 1][0]
    heard = [one for one in said if one[0] <= last]
    heartbeat = max(version for version, key in heard if key is None)
    values = {key: version for version, key in heard if key is not None}
    listed = [{"key": key, "version": version, "value": ""} for key, version in sorted(values.items())]
    return {"endpoint": endpoint, "generation": generation, "heartbeat": heartbeat, "values": listed}


def examination_input(rng: Random, number: int) -> Json:
    """Two views of a few endpoints; a's own is the first, b's the second, and each knows itself best."""
    sides: dict[str, list[Json]] = {"a": [], "b": []}
    names = [f"10.0.{number}.{host}:7000" for host in range(1, rng.randrange(4, 12))]
    for at, name in enumerate(names):
        said = history(rng)
        generation = WALL_SECONDS - rng.randrange(100_000, 10_000_000)
        lengths = [rng.randrange(1, len(said) + 1) for _ in "ab"]
        generations = [generation, generation]
        kind = rng.choice(("as drawn", "as drawn", "as drawn", "equal", "restarted", "unknown"))
        if kind == "equal":
            lengths[1] = lengths[0]
        if at < 2:
            lengths = [len(said) if at == side else length for side, length in enumerate(lengths)]
        elif kind == "restarted":
            generations[rng.randrange(2)] += rng.randrange(1, 1000)
        elif kind == "unknown":
            lengths[rng.randrange(2)] = 0
        if number == 0 and at == 2:  # here on purpose we differ: nobody can have begun two days ahead of the clock
            generations, lengths = [WALL_SECONDS + 2 * 86_400, generation], [len(said), len(said)]
        for side, length, began in zip("ab", lengths, generations, strict=True):
            if length:
                sides[side].append(view(name, began, said, length))
    return {"a_endpoint": names[0], "b_endpoint": names[1], **sides}


def inputs() -> Json:
    """Everything that Cassandra is asked."""
    rng = Random(SEED)
    return {
        "phi": phi_inputs(rng),
        "examination": [examination_input(rng, number) for number in range(EXAMINATIONS)],
    }


# ---------------------------------------------------------------------------------------------------------- command


def ask_cassandra(asked: Json) -> dict[str, Json]:
    """The files' contents by name: each case with Cassandra's answer beside it.

    Raises:
        PeerUnavailableError: the harness does not run.
    """
    question = BUILD / "vectors.json"
    question.write_text(json.dumps(asked))
    answer = CASSANDRA.answer("vectors", str(question))
    phi = [{**case, "phi_unscaled": given} for case, given in zip(asked["phi"], answer["phi"], strict=True)]
    examination = [
        {**case, "cassandra": given} for case, given in zip(asked["examination"], answer["examination"], strict=True)
    ]
    head = {"cassandra": answer["version"], "seed": SEED}
    return {
        "phi": {**head, "phi_factor": answer["phi_factor"], "cases": phi},
        "examination": {**head, "wall_seconds": WALL_SECONDS, "cases": examination},
    }


def differences(contents: dict[str, Json]) -> list[str]:
    """Names of files that do not say what Cassandra says now; its version alone is no difference."""
    differing = []
    for name, content in contents.items():
        path = DIRECTORY / f"{name}.json"
        if not path.exists() or not _same(
            {**json.loads(path.read_text()), "cassandra": ""}, {**content, "cassandra": ""}
        ):
            differing.append(path.name)
    return differing


def _same(one: Any, other: Any) -> bool:
    """Equal, with floats as near as another processor may have them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= RELATIVE_TOLERANCE * max(abs(one), abs(other))
    return bool(one == other)


def write(contents: dict[str, Json]) -> None:
    """Write the files, one case per line."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        cases = ",\n".join(json.dumps(case, separators=(",", ":")) for case in content["cases"])
        head = json.dumps({key: value for key, value in content.items() if key != "cases"}, separators=(",", ":"))
        (DIRECTORY / f"{name}.json").write_text(f'{head[:-1]},"cases":[\n{cases}\n]}}\n')


def main() -> int:
    """Entry point; the exit status is 1 when the files differ from what Cassandra says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    options = parser.parse_args()
    try:
        CASSANDRA.make()
        contents = ask_cassandra(inputs())
    except PeerUnavailableError as error:
        print(f"cassandra: skipped, {error}")
        return 0
    if options.write:
        write(contents)
        return 0
    differing = differences(contents)
    print(f"vectors differ: {', '.join(differing)}" if differing else "vectors: as committed")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
