"""From what nodes saw to lines that are the same in every run: names for addresses and host ids, no times, no numbers.

Of the events each observer saw only the order *per endpoint* is kept, because that order is promised; how events of
different endpoints interleave is not, and differs from run to run on real machines. Changes of values are left out for
the same reason (two changes may be seen as one); the last values are in the view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gossiper.events import Liveness
from gossiper.scenario.member import Observation

#: How the liveness of an endpoint is written.
LIVENESS_WORD: Final = {
    Liveness.ALIVE.value: "UP",
    Liveness.DOWN.value: "DOWN",
    Liveness.UNKNOWN.value: "UNKNOWN",
    Liveness.SUSPECT.value: "SUSPECT",
}


class Names:
    """Which node has which endpoints and host ids; a second one of a node is ``c'``, a third one ``c''``."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._addresses: dict[str, int] = dict.fromkeys(nodes, 0)
        self._label: dict[str, str] = {}
        self._host_label: dict[str, str] = {}
        for node in nodes:
            self._label[self.endpoint(node, 0)] = node

    def endpoint(self, node: str, address: int) -> str:
        """An address of a node: made, so that it is the same one in every run."""
        return f"10.0.{address}.{self._nodes.index(node) + 1}:7000"

    def new_endpoint(self, node: str) -> str:
        """An address that the node never had."""
        self._addresses[node] += 1
        endpoint = self.endpoint(node, self._addresses[node])
        self._label[endpoint] = node + "'" * self._addresses[node]
        return endpoint

    def add_host_id(self, host_id: str, node: str, files: int) -> None:
        """The identity of a node's data directory, the ``files``-th (from 0) one that it has."""
        self._host_label[host_id] = node + "'" * files

    def of_endpoint(self, endpoint: str) -> str:
        """The label of an endpoint."""
        return self._label.get(endpoint, endpoint)

    def of_host_id(self, host_id: str | None) -> str:
        """The label of a host id."""
        return "nobody" if host_id is None else self._host_label.get(host_id, host_id)

    def in_text(self, text: str) -> str:
        """``text`` with labels in the place of endpoints and host ids."""
        for known in (self._label, self._host_label):
            for one in sorted(known, key=len, reverse=True):
                text = text.replace(one, known[one])
        return text


def event_word(event: Mapping[str, Any], names: Names) -> str | None:
    """An event about another endpoint; None for one that is left out."""
    match event["event"]:
        case "changed":
            return None
        case "dead" | "forgotten":
            return f"{event['event']} ({event['reason']})"
        case "removed":
            return f"removed by {names.of_host_id(event['removed_by'])}"
        case "replaced":
            before = event["endpoint_before"]
            if before == event["endpoint"]:
                return f"replaced host {names.of_host_id(event['host_id_before'])}"
            return f"replaced {names.of_endpoint(before)}"
        case word:
            return str(word)


def seen_words(endpoint: str, seen: Mapping[str, Any] | None, names: Names) -> str:
    """The last view of an endpoint."""
    if seen is None:
        return "gone"
    words = [LIVENESS_WORD[seen["liveness"]], seen["status"] or "no status"]
    host = names.of_host_id(seen["host_id"])
    if host != names.of_endpoint(endpoint).rstrip("'"):
        words.append(f"host={host}")
    if not seen["serving"]:
        words.append("failing")
    words += [f"{key}={value}" for key, value in sorted(seen["states"].items())]
    return " ".join(words)


def transcript(observations: Mapping[str, Observation], own: Mapping[str, str], names: Names) -> tuple[str, ...]:
    """What the observers saw of each other endpoint, one line for all that saw the same.

    Args:
        observations: by the name of the observer.
        own: the endpoint of each observer.
        names: labels.
    """
    endpoints: set[str] = set()
    for one in observations.values():
        endpoints |= one.view.keys() | {event["endpoint"] for event in one.events if event["endpoint"]}
    lines: list[str] = []
    for endpoint in sorted(endpoints, key=names.of_endpoint):
        groups: dict[str, list[str]] = {}
        for observer in sorted(observations):
            if own[observer] == endpoint:
                continue
            one = observations[observer]
            words = [event_word(event, names) for event in one.events if event["endpoint"] == endpoint]
            history = ", ".join(word for word in words if word is not None)
            if not history and endpoint not in one.view:
                continue
            view = seen_words(endpoint, one.view.get(endpoint), names)
            groups.setdefault(f"{history or 'nothing'}; {view}", []).append(observer)
        label = names.of_endpoint(endpoint)
        lines += [f"{', '.join(observers)} saw {label}: {what}" for what, observers in groups.items()]
    for observer in sorted(observations):
        failure = observations[observer].failure
        if failure is not None:
            lines.append(f"{observer} stopped by itself")
    return tuple(lines)
