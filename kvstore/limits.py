"""Every bound of the key-value store, with its reason. Nothing is ever truncated silently at one of them."""

from __future__ import annotations

from typing import Final

#: LMDB takes 511 bytes in its usual build, 8 of them hold the token; this leaves room for a later prefix.
KEY_BYTES_MAX: Final = 480
#: What repair moves as one row (antientropy.limits); larger things belong into an object store.
VALUE_BYTES_MAX: Final = 512 * 1024
#: One call of a client: keeps the work of one call to a few tens of milliseconds on each replica.
MUTATIONS_PER_CALL_MAX: Final = 1_000
#: Keys and values of one call together: a few values of the greatest size, and half a gRPC message.
MUTATIONS_BYTES_MAX: Final = 2 * 1024 * 1024
#: gRPC's own default; a full batch with its framing stays below.
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
#: Keys of one ReadRows call: the coordinator asks for what one client asked for.
KEYS_PER_READ_MAX: Final = 256
#: Rows of one page of a scan, and their bytes: a page is read in one go while others wait for the thread.
PAGE_ROWS_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 512 * 1024
#: Rows taken from the store at once while a page is filled: with values of the greatest size 64 MiB.
SCAN_SLICE_ROWS: Final = 128
#: Rows that one page passes over because their prefix does not fit: bounds the time of a call that finds nothing.
PAGE_EXAMINED_MAX: Final = 20_000
#: Rows and bytes that wait for the next commit; more is refused at once instead of being answered too late.
WRITE_QUEUE_ROWS_MAX: Final = 50_000
WRITE_QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
#: One transaction: long enough to share the fsync, short enough that a write waits for at most one other.
COMMIT_ROWS_MAX: Final = 5_000
COMMIT_BYTES_MAX: Final = 16 * 1024 * 1024
#: Calls to one replica that are not answered yet. A replica that hangs holds their rows until the deadline.
REPLICA_CALLS_IN_FLIGHT_MAX: Final = 256
REPLICA_BYTES_IN_FLIGHT_MAX: Final = 32 * 1024 * 1024
#: Calls of clients served at once; the surplus is told RESOURCE_EXHAUSTED.
CLIENT_RPCS_MAX: Final = 512
#: An operator's tools, not a crowd.
ADMIN_RPCS_MAX: Final = 32
#: How far a version may lie ahead of the wall clock here. Synchronised clocks differ by milliseconds; a version from
#: the far future would hide every later write of its key.
CLOCK_DRIFT_SECONDS_MAX: Final = 5.0
#: Local reads run in threads, so that a page fault does not stop gossip; two are enough for two disks' worth of seeks.
READ_THREADS: Final = 2
#: Room on disk for rows; LMDB reserves address space, not disk, so it may be generous.
MAP_BYTES_DEFAULT: Final = 16 * 1024**3
#: Below, LMDB has no room for its own tables.
MAP_BYTES_MIN: Final = 1024 * 1024
#: An address space of 47 bits is shared with everything else.
MAP_BYTES_MAX: Final = 16 * 1024**4
#: More copies than any deployment has asked for; with more the numbers are probably swapped.
REPLICATION_FACTOR_MAX: Final = 99
#: Nodes that ``kvstore cluster`` starts on one machine: 45 MB of memory each.
LOCAL_NODES_MAX: Final = 20
#: LOAD is published with the first words of a node, then when it has moved by more than this share of what was said...
LOAD_CHANGE_RATIO: Final = 0.1
#: ... but not before so many gossip intervals: while rows are loaded it moves all the time, and every value is sent to
#: every node ...
LOAD_GAP_INTERVALS: Final = 10
#: ... and at Cassandra's rate when it moved by less.
LOAD_INTERVAL_SECONDS: Final = 60.0
#: Gossip intervals without a failed write before a node whose disk was full says that it serves again.
HEALTH_HOLD_INTERVALS: Final = 10
#: How often a node looks at its load, which costs two numbers of the store.
LOAD_LOOK_SECONDS: Final = 1.0
#: Tokens of one node: Cassandra's old default. They cut the token line for the schedule of repairs, nothing else.
TOKENS_PER_NODE_MAX: Final = 256
#: Every range once an hour: equal replicas cost a round trip and 100 bytes; what a node has missed, it soon has.
REPAIR_PERIOD_SECONDS: Final = 3_600.0
#: More often than this, the time of a repair itself is what counts.
REPAIR_PERIOD_SECONDS_MIN: Final = 1.0
#: 256 parts of the token line in this time: more often, the scrub does nothing but ask for the clock.
SCRUB_PERIOD_SECONDS_MIN: Final = 10.0
#: Half of a network of 1 Gbit/s.
REPAIR_BYTES_PER_SECOND: Final = 64.0 * 1024 * 1024
#: Half a core: with two cores, requests keep three quarters of the machine while a repair runs.
REPAIR_CPU_SHARE: Final = 0.5
#: Cassandra's ten days.
GC_GRACE_SECONDS: Final = 864_000.0
#: Clocks of nodes differ, and so do the moments at which they look.
GC_GRACE_SECONDS_MIN: Final = 60.0
#: How often a node writes down that it lives, for the check at its next start: a file of 20 bytes.
SIGN_OF_LIFE_SECONDS: Final = 60.0
#: Commits whose time is remembered, and for how long, so that repair gives way when writes begin to wait.
LATENCIES_MAX: Final = 64
LATENCY_WINDOW_SECONDS: Final = 5.0
