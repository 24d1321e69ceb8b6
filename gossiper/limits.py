"""Every bound of the gossiper, with its reason. Nothing is ever truncated silently at one of them.

At ``WARNING_SHARE`` of a limit a warning is logged. A message over a limit is refused whole and counted by reason.
"""

from __future__ import annotations

from typing import Final

#: gRPC's own default; a full state of 10,000 endpoints with ten short values is about 3 MB.
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
#: States put into one answer stay below this, the rest follows in the next exchange: half a message leaves room for
#: digests of 10,000 endpoints.
STATES_BYTES_MAX: Final = MESSAGE_BYTES_MAX // 2
#: Ten times the size that the project measures; bounds memory against invented endpoints.
ENDPOINTS_MAX: Final = 100_000
#: Library keys plus a generous number of the application's own; tombstones count.
STATES_PER_ENDPOINT_MAX: Final = 256
#: A name, not a document.
KEY_BYTES_MAX: Final = 256
#: Gossip carries descriptions, not data. Cassandra's 32 KiB limit was met by accident (CASSANDRA-20058).
VALUE_BYTES_MAX: Final = 16 * 1024
#: All application states of one endpoint together; must fit a message with room to spare.
ENDPOINT_STATES_BYTES_MAX: Final = 256 * 1024
#: As a DNS label; it is compared with every message.
CLUSTER_NAME_BYTES_MAX: Final = 128
#: How far a generation may lie ahead of the local wall clock. Cassandra allows a year (CASSANDRA-8113).
GENERATION_AHEAD_SECONDS_MAX: Final = 86_400
#: Shortest and longest gossip interval; below, a Python process spends itself on gossip.
INTERVAL_MS_MIN: Final = 10
INTERVAL_MS_MAX: Final = 3_600_000
#: Columns are int64 and must survive additions.
INTEGER_MAX: Final = 2**62
#: Events that wait for one slow subscriber before it starts to miss some.
EVENT_QUEUE_MAX: Final = 4_096
#: Requests that wait for one peer; gossip repeats itself, so newer replaces older.
SENDS_IN_FLIGHT_PER_PEER_MAX: Final = 2
#: Requests under way altogether: each costs about 1 ms of CPU.
SENDS_IN_FLIGHT_MAX: Final = 64
#: Warm channels; at 46 to 72 kB each this is at most 10 MB.
CHANNELS_MAX: Final = 128
#: Inbound calls served at once; the surplus is told RESOURCE_EXHAUSTED.
INBOUND_RPCS_MAX: Final = 256
#: One line per (peer, reason) in this time: a misconfigured peer repeats itself every second for ever.
LOG_INTERVAL_SECONDS: Final = 60.0
WARNING_SHARE: Final = 0.6
