// Bytes and CPU of one full push/pull of memberlist between two nodes of a simulated cluster, and of its packets.
//
// memberlist has no digests: a push/pull sends the whole state both ways, rarely (every 180 s at 1,000 nodes), and
// what changes in between travels in small packets. memberlist's: everything that is measured, by its public API
// (Create, Join with its Transport interface). Ours: the transport in memory that counts bytes, and how the state gets
// in: one push/pull written by hand in its msgpack format, as from a third node.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
)

const (
	version       = "0.7.0"
	warmUps       = 50
	repeats       = 5
	repeatSeconds = 0.5
	pushPullByte  = 6   // memberlist's message type
	metaBytesMax  = 512 // memberlist.MetaMaxSize
)

type value struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type row struct {
	Endpoint string  `json:"endpoint"`
	Values   []value `json:"values"`
}

type side struct {
	Endpoint string `json:"endpoint"`
	View     []row  `json:"view"`
}

type state struct {
	A side `json:"a"`
	B side `json:"b"`
}

// meta is what a node says of itself, in the 512 bytes that memberlist has for it: "key=value" lines.
func meta(one row) []byte {
	var text bytes.Buffer
	for _, v := range one.Values {
		fmt.Fprintf(&text, "%s=%s\n", v.Key, v.Value)
	}
	if text.Len() > metaBytesMax {
		panic(one.Endpoint + ": the values do not fit into memberlist's meta")
	}
	return text.Bytes()
}

// The two messages of a push/pull as memberlist writes them; its own types are private.
type pushPullHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

type pushNodeState struct {
	Name        string
	Addr        []byte
	Port        uint16
	Meta        []byte
	Incarnation uint32
	State       int
	Vsn         []uint8
}

// A network in memory: streams are pipes whose bytes are counted, packets are counted and dropped.
type network struct {
	mutex   sync.Mutex
	nodes   map[string]*transport
	streams [2]atomic.Int64 // bytes from the one who dialled, and to it
}

type transport struct {
	network *network
	address string
	packets chan *memberlist.Packet
	conns   chan net.Conn
}

func (n *network) transport(address string) *transport {
	one := &transport{n, address, make(chan *memberlist.Packet), make(chan net.Conn)}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.nodes[address] = one
	return one
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	address, err := net.ResolveTCPAddr("tcp", t.address)
	if err != nil {
		return nil, 0, err
	}
	return address.IP.To4(), address.Port, nil
}

func (t *transport) WriteTo([]byte, string) (time.Time, error) { return time.Now(), nil }
func (t *transport) PacketCh() <-chan *memberlist.Packet       { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn                 { return t.conns }
func (t *transport) Shutdown() error                           { return nil }

func (t *transport) DialTimeout(address string, _ time.Duration) (net.Conn, error) {
	t.network.mutex.Lock()
	other := t.network.nodes[address]
	t.network.mutex.Unlock()
	if other == nil {
		return nil, fmt.Errorf("nobody listens at %s", address)
	}
	one, two := newPipe(&t.network.streams[0], &t.network.streams[1])
	other.conns <- two
	return one, nil
}

// A buffered pipe: net.Pipe has no buffer, so that every write would cost a change of goroutine.
type conn struct {
	net.Conn // deadlines and addresses; never used for data
	in, out  *buffer
	written  *atomic.Int64
}

type buffer struct {
	mutex  sync.Mutex
	filled *sync.Cond
	data   bytes.Buffer
	closed bool
}

func newBuffer() *buffer {
	b := &buffer{}
	b.filled = sync.NewCond(&b.mutex)
	return b
}

func newPipe(there, back *atomic.Int64) (net.Conn, net.Conn) {
	plain, otherPlain := net.Pipe()
	forth, back2 := newBuffer(), newBuffer()
	return &conn{plain, back2, forth, there}, &conn{otherPlain, forth, back2, back}
}

func (c *conn) Write(data []byte) (int, error) {
	c.written.Add(int64(len(data)))
	c.out.mutex.Lock()
	defer c.out.mutex.Unlock()
	c.out.data.Write(data)
	c.out.filled.Signal()
	return len(data), nil
}

func (c *conn) Read(data []byte) (int, error) {
	c.in.mutex.Lock()
	defer c.in.mutex.Unlock()
	for c.in.data.Len() == 0 {
		if c.in.closed {
			return 0, io.EOF
		}
		c.in.filled.Wait()
	}
	return c.in.data.Read(data)
}

func (c *conn) Close() error {
	for _, b := range []*buffer{c.in, c.out} {
		b.mutex.Lock()
		b.closed = true
		b.filled.Broadcast()
		b.mutex.Unlock()
	}
	return c.Conn.Close()
}

func (c *conn) SetDeadline(time.Time) error { return nil }

// delegate gives a node its meta; there is no user state.
type delegate struct{ meta []byte }

func (d delegate) NodeMeta(int) []byte             { return d.meta }
func (d delegate) NotifyMsg([]byte)                {}
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

func name(number int) string { return fmt.Sprintf("node-%04d", number) }

func find(one side) int {
	for number, row := range one.View {
		if row.Endpoint == one.Endpoint {
			return number
		}
	}
	panic("a node knows itself")
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "memberlist:", err)
		os.Exit(1)
	}
}

// create starts a node that does nothing by itself: no probes, no gossip, no push/pull of its own.
func create(net *network, one side, compressed bool) *memberlist.Memberlist {
	number := find(one)
	config := memberlist.DefaultLANConfig()
	config.Name = name(number)
	config.Transport = net.transport(one.Endpoint)
	config.Delegate = delegate{meta(one.View[number])}
	config.ProbeInterval, config.GossipInterval, config.PushPullInterval = 0, 0, 0
	config.EnableCompression = compressed
	config.LogOutput = io.Discard
	list, err := memberlist.Create(config)
	check(err)
	return list
}

// install lets a node learn all endpoints from one hand-written push/pull.
func install(net *network, one side, list *memberlist.Memberlist) {
	var frame bytes.Buffer
	frame.WriteByte(pushPullByte)
	encoder := codec.NewEncoder(&frame, &codec.MsgpackHandle{})
	check(encoder.Encode(&pushPullHeader{Nodes: len(one.View), Join: false}))
	for number, row := range one.View {
		address, err := (&transport{address: row.Endpoint}).resolve()
		check(err)
		check(encoder.Encode(&pushNodeState{
			Name: name(number), Addr: address.IP.To4(), Port: uint16(address.Port), Meta: meta(row),
			Incarnation: 1, Vsn: []uint8{1, 5, 2, 0, 0, 0},
		}))
	}
	stranger := net.transport("127.0.0.1:1")
	conn, err := stranger.DialTimeout(one.Endpoint, time.Second)
	check(err)
	_, err = conn.Write(frame.Bytes())
	check(err)
	_, err = io.Copy(io.Discard, conn) // it answers, merges, then closes
	check(err)
	if list.NumMembers() != len(one.View) {
		check(fmt.Errorf("knows %d of %d endpoints", list.NumMembers(), len(one.View)))
	}
}

func (t *transport) resolve() (*net.TCPAddr, error) { return net.ResolveTCPAddr("tcp", t.address) }

// cpu is the microseconds of CPU that this process has used, all goroutines, garbage collection included.
func cpu() float64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	micros := func(t syscall.Timeval) float64 { return float64(t.Sec)*1e6 + float64(t.Usec) }
	return micros(usage.Utime) + micros(usage.Stime)
}

func median(values []float64) float64 {
	sorted := append([]float64(nil), values...)
	sort.Float64s(sorted)
	return sorted[len(sorted)/2]
}

func rounded(v float64) float64 { return math.Round(v*10) / 10 }

// measure times whole push/pulls from a to b, begun by Join, as both sides see them.
func measure(input state, compressed bool) map[string]any {
	net := &network{nodes: map[string]*transport{}}
	a, b := create(net, input.A, compressed), create(net, input.B, compressed)
	install(net, input.A, a)
	install(net, input.B, b)
	target := name(find(input.B)) + "/" + input.B.Endpoint
	join := func() {
		if _, err := a.Join([]string{target}); err != nil {
			check(err)
		}
	}
	began := cpu()
	for range warmUps {
		join()
	}
	one := (cpu() - began) / warmUps
	exchanges := int(math.Min(5000, math.Max(20, repeatSeconds*1e6/one)))
	net.streams[0].Store(0)
	net.streams[1].Store(0)
	join()
	sizes := []int64{net.streams[0].Load(), net.streams[1].Load()}
	var totals []float64
	for range repeats {
		began := cpu()
		for range exchanges {
			join()
		}
		totals = append(totals, rounded((cpu()-began)/float64(exchanges)))
	}
	total := median(totals)
	return map[string]any{
		// The two directions run at the same time in one process, so only their sum can be measured.
		"messages": map[string]any{
			"push": map[string]any{"bytes": sizes[0], "cpu_microseconds": rounded(total / 2)},
			"pull": map[string]any{"bytes": sizes[1], "cpu_microseconds": rounded(total / 2)},
		},
		"total_bytes":              sizes[0] + sizes[1],
		"total_cpu_microseconds":   total,
		"repeats_cpu_microseconds": totals,
		"exchanges_per_repeat":     exchanges,
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	if len(os.Args) != 2 {
		check(fmt.Errorf("usage: memberlist-peer STATE.json"))
	}
	data, err := os.ReadFile(os.Args[1])
	check(err)
	var input state
	check(json.Unmarshal(data, &input))
	answer := measure(input, false)
	answer["peer"] = "memberlist"
	answer["version"] = version
	answer["endpoints"] = len(input.A.View)
	answer["repeats"] = repeats
	answer["warm_up"] = map[string]any{"exchanges": warmUps}
	answer["variants"] = map[string]any{"compressed": measure(input, true)}
	answer["notes"] = []string{
		"a full push/pull, which memberlist does rarely (with " + runtime.Version() + "); it has no digest exchange",
		"values are the node's meta; heartbeats do not exist in it; CPU of the process, half of it for each direction",
	}
	text, err := json.Marshal(answer)
	check(err)
	fmt.Println(string(text))
}
