"""Every bound of the repair library, with its reason. Input beyond one is refused whole, never truncated."""

from __future__ import annotations

from typing import Final

#: LMDB keys end at 511 bytes; the token in front of the key takes 8 of them.
KEY_BYTES_MAX: Final = 503
#: A row must fit a chunk with its neighbours' framing; larger values belong in pieces.
VALUE_BYTES_MAX: Final = 512 * 1024
#: Versions are unsigned 64-bit integers.
VERSION_MAX: Final = 2**64 - 1
#: Rows in one message stay below 1 MiB, a quarter of gRPC's default receive limit, so that a chunk is applied and
#: acknowledged in well under a second and little is lost with a connection.
CHUNK_BYTES_MAX: Final = 1024 * 1024 - 4 * 1024
#: Rows in one chunk: bounds the time of one write transaction where rows are tiny.
CHUNK_ROWS_MAX: Final = 4_096
#: Rows in one chunk of row digests: 32 bytes each make 512 KiB.
DIGESTS_PER_CHUNK_MAX: Final = 16_384
#: Nodes in one request: their children's hashes make an answer of 512 KiB.
NODES_PER_REQUEST_MAX: Final = 4_096
#: Tokens in one request for rows: 128 KiB; a page is the unit of a deadline.
TOKENS_PER_REQUEST_MAX: Final = 16_384
#: Rows in one push: the unit of a deadline on the other way.
ROWS_PER_PUSH_MAX: Final = 16_384
#: Differing rows held in memory at once (about 80 bytes each); the rest follows in the next pass.
DIFFERENCE_ROWS_MAX: Final = 1_000_000
#: 16**5 leaves: a tree of 25 MB, one row a leaf at a million rows.
TREE_DEPTH_MAX: Final = 5
#: As a keyspace of Cassandra, generously.
KEYSPACE_BYTES_MAX: Final = 255
#: A replica set is a handful of nodes; more is a mistake in the caller.
REPLICAS_MAX: Final = 64
#: Updates that wait for a slow listener; beyond it the repair waits too.
UPDATES_QUEUED_MAX: Final = 256
#: Changes that wait to be taken into tree and sketches before a thread of the replica is woken for them: 20 ms of
#: numpy, 200 kB of memory.
PENDING_CHANGES_MAX: Final = 4_096
#: With so many waiting, the writer that comes next takes them in itself: memory is bounded even if the thread starves.
PENDING_CHANGES_HARD_MAX: Final = 32 * PENDING_CHANGES_MAX
#: Bytes of a mark: 256 versions, or a bitmap and some numbers for each of 256 buckets, with room to spare.
MARK_BYTES_MAX: Final = 64 * 1024
#: Bytes of the name of a mark.
MARK_NAME_BYTES_MAX: Final = 64
#: Simultaneous LMDB read transactions: each worker thread and each snapshot takes a slot of 64 bytes.
LMDB_READERS_MAX: Final = 512
#: Address space that one store may grow into; LMDB maps it, but takes disk only for pages in use.
LMDB_MAP_BYTES: Final = 64 * 1024**3
#: Rows that one call of ``scan`` or ``get_many`` may ask for.
ROWS_PER_READ_MAX: Final = 100_000
#: What would be logged again and again, such as refusals of one kind, is one line in this time.
LOG_INTERVAL_SECONDS: Final = 60.0
