package org.apache.cassandra.gms;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.File;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.cassandra.config.Config;
import org.apache.cassandra.config.DatabaseDescriptor;
import org.apache.cassandra.dht.Murmur3Partitioner;
import org.apache.cassandra.dht.Range;
import org.apache.cassandra.dht.Token;
import org.apache.cassandra.io.IVersionedSerializer;
import org.apache.cassandra.io.util.DataInputBuffer;
import org.apache.cassandra.io.util.DataOutputBuffer;
import org.apache.cassandra.locator.InetAddressAndPort;
import org.apache.cassandra.net.Message;
import org.apache.cassandra.net.MessagingService;
import org.apache.cassandra.net.Verb;
import org.apache.cassandra.utils.MerkleTree;
import org.apache.cassandra.utils.MerkleTrees;

/**
 * Cassandra's own classes on a state that our simulation made.
 *
 * <p>"exchange STATE.json": bytes and CPU of GossipDigestSyn, Ack and Ack2 between two Gossipers. "vectors INPUT.json":
 * what ArrivalWindow and Gossiper.examineGossiper answer to given input. "merkle DIRECTORY": CPU of building its MerkleTree of
 * depth 15 and 18 over the rows in a directory, its bytes, and the ranges that differ after each case of differences.
 * It stands in Cassandra's package because those are visible there only. Cassandra's: all serializers, makeGossipDigest (private, called by reflection),
 * examineGossiper, getStateForVersionBiggerThan, notifyFailureDetector, applyStateLocally, ArrivalWindow. Ours: the few
 * lines that call them one after the other, as GossipDigestSynVerbHandler, -AckVerbHandler and -Ack2VerbHandler do.
 */
public final class PeerBenchmark {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();
    private static final int WIRE_VERSION = MessagingService.current_version;
    private static final long WARM_UP_SECONDS = 8;
    private static final int REPEATS = 5;
    private static final double REPEAT_SECONDS = 1.0;

    private static Method makeGossipDigest;

    public static void main(String[] arguments) throws Exception {
        DatabaseDescriptor.clientInitialization(true, Config::new);
        DatabaseDescriptor.setPartitionerUnsafe(Murmur3Partitioner.instance);
        makeGossipDigest = Gossiper.class.getDeclaredMethod("makeGossipDigest", List.class);
        makeGossipDigest.setAccessible(true);
        ObjectNode answer;
        if (arguments[0].equals("merkle")) answer = merkle(new File(arguments[1]));
        else {
            JsonNode input = JSON.readTree(new File(arguments[1]));
            answer = arguments[0].equals("exchange") ? exchange(input) : vectors(input);
        }
        System.out.println(JSON.writeValueAsString(answer));
        System.exit(0); // Cassandra's stages keep threads
    }

    // ------------------------------------------------------------------------------------------------------ exchange

    /** One side's endpoint states as plain numbers, from which fresh Cassandra objects are made for each exchange. */
    private static Map<InetAddressAndPort, EndpointState> states(JsonNode view) throws Exception {
        Map<InetAddressAndPort, EndpointState> states = new HashMap<>();
        for (JsonNode row : view) {
            Map<ApplicationState, VersionedValue> values = new EnumMap<>(ApplicationState.class);
            for (JsonNode value : row.get("values")) {
                ApplicationState key = key(value.get("key").asText());
                if (key == null) continue;
                values.put(key, VersionedValue.unsafeMakeVersionedValue(value.get("value").asText(), value.get("version").asInt()));
            }
            HeartBeatState heartbeat = new HeartBeatState(row.get("generation").asInt(), row.get("heartbeat").asInt());
            EndpointState state = new EndpointState(heartbeat, values);
            state.markAlive(); // else applying it would send an ECHO
            states.put(InetAddressAndPort.getByName(row.get("endpoint").asText()), state);
        }
        return states;
    }

    /** Our key as Cassandra's, null where it has none. */
    private static ApplicationState key(String key) {
        if (key.equals("STATUS")) return ApplicationState.STATUS_WITH_PORT;
        for (ApplicationState one : ApplicationState.values()) if (one.name().equals(key)) return one;
        return null;
    }

    /** Our versions are tick * 16 + counter; Cassandra's heartbeat shares the counter, so values get their tick. */
    private static JsonNode ticks(JsonNode view) {
        for (JsonNode row : view)
            for (JsonNode value : row.get("values"))
                ((ObjectNode) value).put("version", value.get("version").asLong() >> 4);
        return view;
    }

    private static void reset(Gossiper gossiper, Map<InetAddressAndPort, EndpointState> states) {
        gossiper.endpointStateMap.clear();
        states.forEach((endpoint, state) -> {
            EndpointState copy = new EndpointState(state);
            copy.markAlive();
            gossiper.endpointStateMap.put(endpoint, copy);
        });
    }

    private static <T> byte[] encode(IVersionedSerializer<T> serializer, T message) throws Exception {
        try (DataOutputBuffer out = new DataOutputBuffer((int) serializer.serializedSize(message, WIRE_VERSION))) {
            serializer.serialize(message, out, WIRE_VERSION);
            return out.toByteArray();
        }
    }

    private static <T> T decode(IVersionedSerializer<T> serializer, byte[] data) throws Exception {
        try (DataInputBuffer in = new DataInputBuffer(data)) {
            return serializer.deserialize(in, WIRE_VERSION);
        }
    }

    /** CPU nanoseconds and bytes of the three legs of one exchange; messages are kept for a look at their framing. */
    private static final class Legs {
        final long[] nanoseconds = new long[3];
        final byte[][] data = new byte[3][];
        Object[] messages = new Object[3];
    }

    private static Legs once(Gossiper a, Gossiper b, String cluster) throws Exception {
        Legs legs = new Legs();
        long[] at = new long[4];
        at[0] = THREADS.getCurrentThreadCpuTime();
        List<GossipDigest> digests = new ArrayList<>();
        makeGossipDigest.invoke(a, digests);
        GossipDigestSyn syn = new GossipDigestSyn(cluster, DatabaseDescriptor.getPartitionerName(), digests);
        legs.data[0] = encode(GossipDigestSyn.serializer, syn);
        GossipDigestSyn synIn = decode(GossipDigestSyn.serializer, legs.data[0]);
        List<GossipDigest> requests = new ArrayList<>();
        Map<InetAddressAndPort, EndpointState> newer = new HashMap<>();
        b.examineGossiper(synIn.getGossipDigests(), requests, newer);
        at[1] = THREADS.getCurrentThreadCpuTime();
        GossipDigestAck ack = new GossipDigestAck(requests, newer);
        legs.data[1] = encode(GossipDigestAck.serializer, ack);
        GossipDigestAck ackIn = decode(GossipDigestAck.serializer, legs.data[1]);
        if (!ackIn.getEndpointStateMap().isEmpty()) {
            a.notifyFailureDetector(ackIn.getEndpointStateMap());
            a.applyStateLocally(ackIn.getEndpointStateMap());
        }
        Map<InetAddressAndPort, EndpointState> requested = new HashMap<>();
        for (GossipDigest digest : ackIn.getGossipDigestList()) {
            EndpointState state = a.getStateForVersionBiggerThan(digest.getEndpoint(), digest.getMaxVersion());
            if (state != null) requested.put(digest.getEndpoint(), state);
        }
        at[2] = THREADS.getCurrentThreadCpuTime();
        GossipDigestAck2 ack2 = new GossipDigestAck2(requested);
        legs.data[2] = encode(GossipDigestAck2.serializer, ack2);
        GossipDigestAck2 ack2In = decode(GossipDigestAck2.serializer, legs.data[2]);
        b.notifyFailureDetector(ack2In.epStateMap);
        b.applyStateLocally(ack2In.epStateMap);
        at[3] = THREADS.getCurrentThreadCpuTime();
        for (int leg = 0; leg < 3; leg++) legs.nanoseconds[leg] = at[leg + 1] - at[leg];
        legs.messages = new Object[] {syn, ack, ack2};
        return legs;
    }

    private static void check(Gossiper a, Gossiper b) {
        a.endpointStateMap.forEach((endpoint, state) -> {
            int other = b.endpointStateMap.get(endpoint).getHeartBeatState().getHeartBeatVersion();
            if (other != state.getHeartBeatState().getHeartBeatVersion())
                throw new IllegalStateException(endpoint + " still differs after the exchange");
        });
    }

    private static ObjectNode exchange(JsonNode input) throws Exception {
        Map<InetAddressAndPort, EndpointState> viewA = states(ticks(input.get("a").get("view")));
        Map<InetAddressAndPort, EndpointState> viewB = states(ticks(input.get("b").get("view")));
        String cluster = input.get("cluster_name").asText();
        Gossiper a = new Gossiper(false);
        Gossiper b = new Gossiper(false);

        long warmUps = 0;
        long until = System.nanoTime() + WARM_UP_SECONDS * 1_000_000_000L;
        long warmUpBegan = THREADS.getCurrentThreadCpuTime();
        Legs last = null;
        long first = 0;
        while (System.nanoTime() < until) {
            reset(a, viewA);
            reset(b, viewB);
            last = once(a, b, cluster);
            if (warmUps++ == 0) first = Arrays.stream(last.nanoseconds).sum();
        }
        check(a, b);
        long warmUpCpu = THREADS.getCurrentThreadCpuTime() - warmUpBegan;

        double[][] perRepeat = new double[REPEATS][3];
        long exchanges = Math.max(20, (long) (warmUps * REPEAT_SECONDS / WARM_UP_SECONDS));
        for (double[] sums : perRepeat) {
            for (long i = 0; i < exchanges; i++) {
                reset(a, viewA);
                reset(b, viewB);
                last = once(a, b, cluster);
                for (int leg = 0; leg < 3; leg++) sums[leg] += last.nanoseconds[leg] / 1e3 / exchanges;
            }
        }
        check(a, b);

        ObjectNode messages = JSON.createObjectNode();
        ObjectNode answer = JSON.createObjectNode();
        String[] names = {"syn", "ack", "ack2"};
        Verb[] verbs = {Verb.GOSSIP_DIGEST_SYN, Verb.GOSSIP_DIGEST_ACK, Verb.GOSSIP_DIGEST_ACK2};
        long total = 0;
        for (int leg = 0; leg < 3; leg++) {
            int one = leg;
            double median = median(Arrays.stream(perRepeat).mapToDouble(sums -> sums[one]).toArray());
            ObjectNode message = messages.putObject(names[leg]);
            message.put("bytes", last.data[leg].length);
            message.put("message_bytes", Message.out(verbs[leg], last.messages[leg]).serializedSize(WIRE_VERSION));
            message.put("cpu_microseconds", round(median));
            total += last.data[leg].length;
        }
        answer.put("peer", "cassandra");
        answer.put("version", version());
        answer.put("endpoints", viewA.size());
        answer.set("messages", messages);
        answer.put("total_bytes", total);
        double[] totals = Arrays.stream(perRepeat).mapToDouble(sums -> Arrays.stream(sums).sum()).toArray();
        answer.put("total_cpu_microseconds", round(median(totals)));
        ArrayNode repeats = answer.putArray("repeats_cpu_microseconds");
        for (double one : totals) repeats.add(round(one));
        answer.put("repeats", REPEATS);
        answer.put("exchanges_per_repeat", exchanges);
        ObjectNode warmUp = answer.putObject("warm_up");
        warmUp.put("exchanges", warmUps);
        warmUp.put("cpu_seconds", round(warmUpCpu / 1e9));
        warmUp.put("first_exchange_cpu_microseconds", round(first / 1e3));
        answer.putArray("notes")
                .add("bytes: payload of Cassandra's serializers, messaging version " + WIRE_VERSION + "; message_bytes: with the message header, without the frame")
                .add("CPU of the one thread; the JIT compiler and the garbage collector have their own")
                .add("Java " + System.getProperty("java.version"));
        return answer;
    }

    private static double median(double[] values) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[sorted.length / 2];
    }

    private static double round(double value) {
        return Math.round(value * 10) / 10.0;
    }

    private static String version() {
        String jar = Gossiper.class.getProtectionDomain().getCodeSource().getLocation().getPath();
        return jar.replaceAll(".*cassandra-all-(.*)\\.jar", "$1");
    }

    // ------------------------------------------------------------------------------------------------------- vectors

    /** Cassandra's answers, in the order of the cases of the input. */
    private static ObjectNode vectors(JsonNode input) throws Exception {
        ObjectNode answer = JSON.createObjectNode();
        answer.put("version", version());
        Field factor = FailureDetector.class.getDeclaredField("PHI_FACTOR"); // to decimal logarithms
        factor.setAccessible(true);
        answer.put("phi_factor", factor.getDouble(FailureDetector.instance));
        ArrayNode phi = answer.putArray("phi");
        for (JsonNode one : input.get("phi")) phi.add(phi(one));
        ArrayNode examination = answer.putArray("examination");
        for (JsonNode one : input.get("examination")) examination.add(examination(one));
        return answer;
    }

    /** Raw phi (times since the last arrival over the mean) at each of the times asked for; arrivals in nanoseconds. */
    private static ArrayNode phi(JsonNode one) throws Exception {
        InetAddressAndPort endpoint = InetAddressAndPort.getByName("10.0.0.1:7000");
        ArrivalWindow window = new ArrivalWindow(one.get("window_size").asInt());
        for (JsonNode arrival : one.get("arrivals_ns")) window.add(arrival.asLong(), endpoint);
        ArrayNode answers = JSON.createArrayNode();
        for (JsonNode time : one.get("ask_ns")) answers.add(window.phi(time.asLong()));
        return answers;
    }

    /** What b requests of a, sends to it, and what a then answers to the requests. */
    private static ObjectNode examination(JsonNode one) throws Exception {
        Gossiper a = new Gossiper(false);
        Gossiper b = new Gossiper(false);
        a.endpointStateMap.putAll(states(one.get("a")));
        b.endpointStateMap.putAll(states(one.get("b")));
        List<GossipDigest> digests = new ArrayList<>();
        makeGossipDigest.invoke(a, digests);
        List<GossipDigest> requests = new ArrayList<>();
        Map<InetAddressAndPort, EndpointState> sends = new HashMap<>();
        b.examineGossiper(digests, requests, sends);
        ObjectNode answer = JSON.createObjectNode();
        ObjectNode asked = answer.putObject("requests");
        Map<InetAddressAndPort, EndpointState> answers = new HashMap<>();
        for (GossipDigest request : requests) {
            asked.putArray(name(request.getEndpoint())).add(request.getGeneration()).add(request.getMaxVersion());
            EndpointState state = a.getStateForVersionBiggerThan(request.getEndpoint(), request.getMaxVersion());
            if (state != null) answers.put(request.getEndpoint(), state);
        }
        answer.set("sends", states(sends));
        answer.set("answers", states(answers));
        return answer;
    }

    private static ObjectNode states(Map<InetAddressAndPort, EndpointState> states) {
        ObjectNode all = JSON.createObjectNode();
        states.forEach((endpoint, state) -> {
            ObjectNode one = all.putObject(name(endpoint));
            one.put("generation", state.getHeartBeatState().getGeneration());
            one.put("heartbeat", state.getHeartBeatState().getHeartBeatVersion());
            ObjectNode values = one.putObject("values");
            state.states().forEach(entry -> values.put(entry.getKey().name(), entry.getValue().version));
        });
        return all;
    }

    private static String name(InetAddressAndPort endpoint) {
        return endpoint.getHostAddress(true);
    }

    // -------------------------------------------------------------------------------------------------------- merkle

    /** Rows of one replica in token order. A token of ours is unsigned; with its first bit turned it is in the same order. */
    private static final class Rows {
        final long[] tokens;
        final byte[][] digests;

        Rows(long[] tokens, byte[][] digests) {
            this.tokens = tokens;
            this.digests = digests;
        }

        /** Of 32 bytes for each row: token, version, digest. */
        static Rows read(ByteBuffer data, int count) {
            Rows rows = new Rows(new long[count], new byte[count][32]);
            for (int row = 0; row < count; row++) {
                rows.tokens[row] = data.getLong() ^ Long.MIN_VALUE;
                data.getLong();
                data.get(rows.digests[row], 0, 16);
                System.arraycopy(rows.digests[row], 0, rows.digests[row], 16, 16); // a hash of Cassandra has 32 bytes
            }
            return rows;
        }

        /** These rows, with others put over them. */
        Rows with(Rows others) {
            TreeMap<Long, byte[]> fresh = new TreeMap<>();
            for (int row = 0; row < others.tokens.length; row++) fresh.put(others.tokens[row], others.digests[row]);
            long replaced = fresh.keySet().stream().filter(token -> Arrays.binarySearch(tokens, token) >= 0).count();
            Rows merged = new Rows(new long[tokens.length + fresh.size() - (int) replaced], null);
            byte[][] hashes = new byte[merged.tokens.length][];
            int at = 0;
            for (int row = 0; row < tokens.length; row++) {
                while (!fresh.isEmpty() && fresh.firstKey() < tokens[row]) {
                    merged.tokens[at] = fresh.firstKey();
                    hashes[at++] = fresh.pollFirstEntry().getValue();
                }
                byte[] put = fresh.remove(tokens[row]);
                merged.tokens[at] = tokens[row];
                hashes[at++] = put == null ? digests[row] : put;
            }
            while (!fresh.isEmpty()) {
                merged.tokens[at] = fresh.firstKey();
                hashes[at++] = fresh.pollFirstEntry().getValue();
            }
            return new Rows(merged.tokens, hashes);
        }

        /** How many rows have tokens in (left, right]; the ring's least token on the right is its end. */
        long within(Range<Token> range) {
            long left = (long) range.left.getTokenValue(), right = (long) range.right.getTokenValue();
            long to = range.right.isMinimum() ? tokens.length : after(right);
            return to - after(left);
        }

        private int after(long token) {
            int found = Arrays.binarySearch(tokens, token);
            return found >= 0 ? found + 1 : -found - 1;
        }

        /** The tree writes into the hashes that it is given. */
        MerkleTrees tree(int depth) {
            return PeerBenchmark.tree(tokens, Arrays.stream(digests).map(byte[]::clone).toArray(byte[][]::new), depth);
        }
    }

    /** Trees over the whole ring, filled in token order with digests that are there already, as Validator does. */
    private static ObjectNode merkle(File directory) throws Exception {
        JsonNode input = JSON.readTree(new File(directory, "cases.json"));
        int rows = input.get("rows").asInt();
        Rows base = Rows.read(ByteBuffer.wrap(Files.readAllBytes(new File(directory, "rows.bin").toPath())), rows);
        ObjectNode answer = JSON.createObjectNode();
        answer.put("peer", "cassandra").put("version", version()).put("rows", rows);
        ArrayNode trees = answer.putArray("trees");
        for (int depth : new int[] {15, 18}) {
            ObjectNode entry = trees.addObject().put("depth", depth);
            double[] milliseconds = new double[REPEATS];
            for (int repeat = -2; repeat < REPEATS; repeat++) { // two to warm up
                byte[][] fresh = Arrays.stream(base.digests).map(byte[]::clone).toArray(byte[][]::new);
                long began = THREADS.getCurrentThreadCpuTime();
                MerkleTrees tree = tree(base.tokens, fresh, depth);
                double spent = (THREADS.getCurrentThreadCpuTime() - began) / 1e6;
                if (repeat >= 0) milliseconds[repeat] = spent;
                // Its count visits the first leaf of a whole ring twice, so it may be a little more.
                if (tree.rowCount() < rows) throw new IllegalStateException("rows are missing in the tree");
                entry.put("serialized_bytes", serializedBytes(tree));
                tree.release();
            }
            entry.put("build_cpu_milliseconds", round(median(milliseconds)));
            ArrayNode found = entry.putArray("cases");
            for (JsonNode one : input.get("cases")) found.add(difference(directory, base, one, depth));
        }
        return answer;
    }

    private static ObjectNode difference(File directory, Rows base, JsonNode one, int depth) throws Exception {
        ByteBuffer puts = ByteBuffer.wrap(Files.readAllBytes(new File(directory, one.get("file").asText()).toPath()));
        Rows left = base.with(Rows.read(puts, one.get("first").asInt()));
        Rows right = base.with(Rows.read(puts, one.get("second").asInt()));
        MerkleTrees ours = left.tree(depth), theirs = right.tree(depth);
        long began = THREADS.getCurrentThreadCpuTime();
        List<Range<Token>> ranges = MerkleTrees.difference(ours, theirs);
        double spent = (THREADS.getCurrentThreadCpuTime() - began) / 1e6;
        long streamed = 0;
        for (Range<Token> range : ranges) streamed += left.within(range) + right.within(range); // both ways
        ObjectNode entry = JSON.createObjectNode();
        entry.put("differences", one.get("differences").asInt()).put("kind", one.get("kind").asText());
        entry.put("serialized_bytes", serializedBytes(theirs)).put("ranges", ranges.size());
        entry.put("rows_streamed", streamed).put("difference_cpu_milliseconds", round(spent));
        ours.release();
        theirs.release();
        return entry;
    }

    private static int serializedBytes(MerkleTrees trees) throws Exception {
        try (DataOutputBuffer out = new DataOutputBuffer()) {
            MerkleTrees.serializer.serialize(trees, out, WIRE_VERSION);
            return out.getLength();
        }
    }

    private static MerkleTrees tree(long[] tokens, byte[][] digests, int depth) {
        Murmur3Partitioner partitioner = Murmur3Partitioner.instance;
        Range<Token> ring = new Range<>(partitioner.getMinimumToken(), partitioner.getMinimumToken());
        MerkleTrees trees = new MerkleTrees(partitioner);
        trees.addMerkleTree(1 << depth, (byte) 127, ring);
        trees.init();
        var ranges = trees.rangeIterator();
        MerkleTree.TreeRange range = ranges.next();
        for (int row = 0; row < tokens.length; row++) {
            Token token = new Murmur3Partitioner.LongToken(tokens[row]);
            while (!range.contains(token)) range = ranges.next();
            range.addHash(new MerkleTree.RowHash(token, digests[row], 100));
        }
        trees.hash(ring);
        return trees;
    }
}
