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
#: Ended sessions that the journal keeps: a year of one repair a day and some hundreds by hand; about 1 kB each.
HISTORY_SESSIONS_MAX: Final = 1_000
#: Bytes of the text that says why a session ended: one line for people.
DETAIL_CHARACTERS_MAX: Final = 2_000
#: Differing rows that one unit of a repair holds (about 100 bytes each here, and as much on each peer): 6 MB, and what
#: is lost by a kill. 10,000 differences are found in one go.
UNIT_ROWS_MAX: Final = 65_536
#: Bytes of rows that one unit moves before it is verified and recorded: seconds of a fast network.
UNIT_BYTES_MAX: Final = 256 * 1024 * 1024
#: Parts that a unit is cut into at once: one for each bucket of the token line.
UNIT_PARTS_MAX: Final = 256
#: Ranges repaired at once by one repair: each holds a snapshot on every replica.
JOBS_MAX: Final = 4
#: Tombstones removed in one transaction: milliseconds, so that foreground writes hardly notice.
PURGE_ROWS_PER_SLICE_MAX: Final = 2_000
#: Keys that a preview shows for each direction.
PREVIEW_KEYS_MAX: Final = 10
#: A version so far ahead of the own clock is not of a write under way, but of a wrong clock.
CLOCK_AHEAD_SECONDS_MAX: Final = 60.0
#: Sessions that have closed and whose last answer is remembered, a few hundred bytes each: messages of theirs that come
#: late or again are told from those of a session that was lost.
FINISHED_SESSIONS_MAX: Final = 1_024
#: Sessions open at once, with and without snapshots: leases of disjoint ranges of all keyspaces.
SERVED_SESSIONS_MAX: Final = 256
#: Streams of rows of one session whose chunks are remembered for a repetition.
STREAMS_PER_SESSION_MAX: Final = 64
#: Chunks of one stream of rows, about 200 bytes remembered of each: 16 GiB of rows.
CHUNKS_PER_STREAM_MAX: Final = 16_384
#: All rows are read again within a week, as in Riak.
SCRUB_PERIOD_SECONDS: Final = 7 * 24 * 3600.0
#: How far the seed epoch of a peer may be ahead: each step is one rotation by the scrub, so more is a broken peer.
EPOCH_STEP_MAX: Final = 1_000
#: Ranges of a keyspace with metrics of their own: 256 for each of a few racks; beyond, only the sums are exposed.
METRIC_RANGES_MAX: Final = 1_024
#: Symbols in one request: at 22 bytes each an answer of 900 kB, below a quarter of gRPC's default receive limit.
SYMBOLS_PER_REQUEST_MAX: Final = 40_960
#: Symbols of one sketch: enough for 12,000 differing rows of one bucket; beyond that the tree is descended.
SYMBOLS_PER_SKETCH_MAX: Final = 16_384
#: Nodes whose children's hashes are sent at once (64 kB): if all differ, the answer has 16 times that, 1 MiB.
HASH_NODES_PER_REQUEST_MAX: Final = 1_024
#: Rows listed in one answer: with digests 1 MiB. Rows of one token stay together; twice as many are refused.
ROWS_LISTED_PER_ANSWER_MAX: Final = 32_768
#: Requests of one search for differences. A million rows listed take some dozens; a peer that leads on for ever ends.
LOCATE_REQUESTS_MAX: Final = 4_096
