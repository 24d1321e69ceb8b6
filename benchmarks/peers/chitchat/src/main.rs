//! Bytes and CPU of one whole chitchat exchange (Syn, SynAck, Ack) between two nodes of a simulated cluster.
//!
//! chitchat's: everything that is measured. Its message handling is private, so two real servers (`spawn_chitchat`) run
//! on one thread, over its own `UdpSocket` on loopback, wrapped by [`Meter`], which notes the thread's CPU time whenever
//! a message is handed over. Ours: the wrapper, and how the state gets in: keys and values by the public
//! `reset_node_state_if_update`; heartbeats, for which there is nothing public, by a SYN (format V0) written by hand.
//!
//! What sending and receiving datagrams of the same sizes costs is measured apart and subtracted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpSocket};
use chitchat::{
    ChitchatConfig, ChitchatEnvelope, ChitchatHandle, ChitchatId, DeletionStatus,
    FailureDetectorConfig, ProtocolVersion, Serializable, VersionedValue, spawn_chitchat,
};
use serde::Deserialize;
use serde_json::json;

const WARM_UPS: usize = 50;
const REPEATS: usize = 5;
/// Exchanges of one repeat take about this long.
const REPEAT_SECONDS: f64 = 0.5;
/// Heartbeats grow by so much from one exchange to the next, so that the views differ as before.
const STEP: u64 = 1_000;
const MESSAGES: [&str; 3] = ["syn", "syn_ack", "ack"];

#[derive(Deserialize)]
struct State {
    cluster_name: String,
    a: Side,
    b: Side,
}

#[derive(Deserialize)]
struct Side {
    endpoint: String,
    view: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    endpoint: String,
    generation: u64,
    heartbeat: u64,
    states_version: u64,
    values: Vec<Value>,
}

#[derive(Deserialize)]
struct Value {
    key: String,
    version: u64,
    value: String,
}

/// CPU nanoseconds of this thread, on which both nodes run.
fn cpu_nanoseconds() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What passed the sockets: bytes of each message, and CPU time when its processing began and ended.
#[derive(Default)]
struct Record {
    bytes: Vec<usize>,
    /// When the answer to a message was ready to be sent, or the wait for the next message began.
    processed: Vec<u64>,
}

#[derive(Clone, Default)]
struct Meter(Arc<Mutex<Record>>, Arc<tokio::sync::Notify>);

struct MeteredSocket {
    inner: UdpSocket,
    meter: Meter,
    /// A message was taken and nothing was sent since.
    silent: bool,
}

#[async_trait]
impl Transport for Meter {
    async fn open(&self, listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let inner = UdpSocket::open(listen_addr).await?;
        Ok(Box::new(MeteredSocket {
            inner,
            meter: self.clone(),
            silent: false,
        }))
    }
}

#[async_trait]
impl Socket for MeteredSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        self.inner.local_addr()
    }

    async fn send(
        &mut self,
        to: SocketAddr,
        envelope: ChitchatEnvelope,
    ) -> anyhow::Result<SendOutcome> {
        anyhow::ensure!(
            to.ip().is_loopback(),
            "{to} is an address of the simulation"
        );
        self.meter
            .0
            .lock()
            .unwrap()
            .processed
            .push(cpu_nanoseconds());
        self.silent = false;
        let outcome = self.inner.send(to, envelope).await?;
        self.meter
            .0
            .lock()
            .unwrap()
            .bytes
            .push(outcome.num_bytes_sent);
        Ok(outcome)
    }

    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        if std::mem::take(&mut self.silent) {
            self.meter
                .0
                .lock()
                .unwrap()
                .processed
                .push(cpu_nanoseconds());
            self.meter.1.notify_one();
        }
        let outcome = self.inner.recv().await?;
        self.silent = true;
        Ok(outcome)
    }
}

/// Identities as in chitchat's own users: a short name, epoch seconds, the gossip address.
fn identities(state: &State, addresses: [SocketAddr; 2]) -> Vec<ChitchatId> {
    let name = |number: usize| format!("node-{number:04}");
    let address = |endpoint: &String| {
        if *endpoint == state.a.endpoint {
            addresses[0]
        } else if *endpoint == state.b.endpoint {
            addresses[1]
        } else {
            endpoint.parse().expect("an endpoint is address:port")
        }
    };
    let rows = state.a.view.iter().enumerate();
    rows.map(|(number, row)| ChitchatId::new(name(number), row.generation, address(&row.endpoint)))
        .collect()
}

async fn start(
    state: &State,
    side: &Side,
    ids: &[ChitchatId],
    meter: &Meter,
    version: ProtocolVersion,
) -> anyhow::Result<ChitchatHandle> {
    let own = side
        .view
        .iter()
        .position(|row| row.endpoint == side.endpoint);
    let own = own.expect("a node knows itself");
    let row = &side.view[own];
    let initial = row.values.iter().map(|v| (v.key.clone(), v.value.clone()));
    let config = ChitchatConfig {
        chitchat_id: ids[own].clone(),
        cluster_id: state.cluster_name.clone(),
        gossip_interval: Duration::from_secs(86_400), // only when we say so
        listen_addr: ids[own].gossip_advertise_addr,
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: Duration::from_secs(86_400),
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: version,
    };
    let handle = spawn_chitchat(config, initial.collect(), meter).await?;
    // Its first round comes at once: let it pass while the node knows nobody.
    tokio::time::sleep(Duration::from_millis(20)).await;
    handle
        .with_chitchat(|chitchat| {
            // Both sides know the same values; its own version counter is set to what the others know of it.
            chitchat
                .self_node_state()
                .set_max_version(row.states_version);
            for (number, row) in side.view.iter().enumerate().filter(|(n, _)| *n != own) {
                let values = row.values.iter().map(|v| {
                    let value = VersionedValue {
                        value: v.value.clone(),
                        version: v.version,
                        status: DeletionStatus::Set,
                    };
                    (v.key.clone(), value)
                });
                chitchat.reset_node_state_if_update(&ids[number], values, row.states_version, 0);
            }
        })
        .await;
    Ok(handle)
}

/// A SYN (V0) with these heartbeats, as chitchat writes it; versions are those that everybody knows.
fn syn(cluster: &str, side: &Side, ids: &[ChitchatId], more: u64) -> Vec<u8> {
    let mut buffer = Vec::new();
    45_139u16.serialize(&mut buffer); // magic number
    0u8.serialize(&mut buffer); // V0
    0u8.serialize(&mut buffer); // Syn
    (side.view.len() as u16).serialize(&mut buffer);
    for (row, id) in side.view.iter().zip(ids) {
        id.serialize(&mut buffer);
        (row.heartbeat + more).serialize(&mut buffer);
        0u64.serialize(&mut buffer); // last_gc_version
        row.states_version.serialize(&mut buffer);
    }
    cluster.to_string().serialize(&mut buffer);
    buffer
}

/// Give a node the heartbeats of its view plus `more`; it answers, which says that it has taken them.
async fn install(
    feeder: &tokio::net::UdpSocket,
    state: &State,
    side: &Side,
    ids: &[ChitchatId],
    handle: &ChitchatHandle,
    more: u64,
) -> anyhow::Result<()> {
    let mut answer = vec![0; 70_000];
    let data = syn(&state.cluster_name, side, ids, more);
    feeder
        .send_to(&data, handle.chitchat_id().gossip_advertise_addr)
        .await?;
    tokio::time::timeout(Duration::from_secs(5), feeder.recv_from(&mut answer)).await??;
    // Its own heartbeat is its own affair: bring it to where the others expect it.
    let own = side
        .view
        .iter()
        .find(|row| row.endpoint == side.endpoint)
        .unwrap();
    handle
        .with_chitchat(|chitchat| {
            let target = serde_json::from_value(json!(own.heartbeat + more)).unwrap();
            chitchat.self_node_state().try_set_heartbeat(target);
        })
        .await;
    Ok(())
}

/// CPU nanoseconds to send and receive one datagram of `size` bytes on loopback, with nothing done to it.
async fn datagram_nanoseconds(size: usize) -> anyhow::Result<f64> {
    let one = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let other = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let (data, mut buffer) = (vec![7u8; size], vec![0u8; 70_000]);
    let times = 2_000;
    let began = cpu_nanoseconds();
    for _ in 0..times {
        one.send_to(&data, other.local_addr()?).await?;
        other.recv_from(&mut buffer).await?;
    }
    Ok((cpu_nanoseconds() - began) as f64 / f64::from(times))
}

struct Pair<'a> {
    state: &'a State,
    ids: Vec<ChitchatId>,
    a: ChitchatHandle,
    b: ChitchatHandle,
    feeder: tokio::net::UdpSocket,
    meter: Meter,
    done: u64,
}

impl Pair<'_> {
    /// Bring both views to where they differ as in the file, then one exchange: CPU of each leg, and bytes.
    async fn exchange(&mut self) -> anyhow::Result<([u64; 3], [usize; 3])> {
        self.done += 1;
        let more = self.done * STEP;
        install(
            &self.feeder,
            self.state,
            &self.state.a,
            &self.ids,
            &self.a,
            more,
        )
        .await?;
        install(
            &self.feeder,
            self.state,
            &self.state.b,
            &self.ids,
            &self.b,
            more,
        )
        .await?;
        *self.meter.0.lock().unwrap() = Record::default();
        let began = cpu_nanoseconds();
        self.a.gossip(self.b.chitchat_id().gossip_advertise_addr)?;
        // Both servers run while this task waits, until b waits for the next message.
        tokio::time::timeout(Duration::from_secs(5), self.meter.1.notified()).await?;
        let record = self.meter.0.lock().unwrap();
        anyhow::ensure!(
            record.bytes.len() == 3 && record.processed.len() == 4,
            "not one exchange"
        );
        // processed: SYN about to be encoded, SYN-ACK ready, ACK ready, ACK applied.
        let p = &record.processed;
        Ok((
            [p[1] - began, p[2] - p[1], p[3] - p[2]],
            [record.bytes[0], record.bytes[1], record.bytes[2]],
        ))
    }
}

impl Pair<'_> {
    /// After an exchange both know the same heartbeats, but for their own, which go on.
    async fn check(&self) -> anyhow::Result<()> {
        let (a, b) = (self.a.chitchat(), self.b.chitchat());
        let (a, b) = (a.lock().await, b.lock().await);
        for id in &self.ids {
            let own = id == a.self_chitchat_id() || id == b.self_chitchat_id();
            let known =
                |side: &chitchat::Chitchat| side.node_state(id).map(|s| u64::from(s.heartbeat()));
            anyhow::ensure!(
                known(&a).is_some() && (own || known(&a) == known(&b)),
                "{id:?} still differs"
            );
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

async fn measure(state: &State, version: ProtocolVersion) -> anyhow::Result<serde_json::Value> {
    // Two ports that are free now; chitchat wants to know them beforehand.
    let probes = [
        std::net::UdpSocket::bind("127.0.0.1:0")?,
        std::net::UdpSocket::bind("127.0.0.1:0")?,
    ];
    let addresses = [probes[0].local_addr()?, probes[1].local_addr()?];
    drop(probes);
    let meter = Meter::default();
    let ids = identities(state, addresses);
    let a = start(state, &state.a, &ids, &meter, version).await?;
    let b = start(state, &state.b, &ids, &meter, version).await?;
    let feeder = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let mut pair = Pair {
        state,
        ids,
        a,
        b,
        feeder,
        meter,
        done: 0,
    };

    let mut bytes = [0; 3];
    let warm_up_began = cpu_nanoseconds();
    for _ in 0..WARM_UPS {
        (_, bytes) = pair.exchange().await?;
    }
    let one_seconds = (cpu_nanoseconds() - warm_up_began) as f64 / 1e9 / WARM_UPS as f64;
    let exchanges = ((REPEAT_SECONDS / one_seconds) as usize).clamp(20, 5_000);
    let mut transport = [0.0; 3];
    for (leg, size) in bytes.iter().enumerate() {
        transport[leg] = datagram_nanoseconds(*size).await? / 1e3;
    }
    let mut repeats = Vec::new();
    for _ in 0..REPEATS {
        let mut sums = [0.0; 3];
        for _ in 0..exchanges {
            let (legs, _) = pair.exchange().await?;
            for leg in 0..3 {
                sums[leg] += legs[leg] as f64 / 1e3 / exchanges as f64;
            }
        }
        repeats.push([0, 1, 2].map(|leg| sums[leg] - transport[leg]));
    }
    pair.check().await?;
    let mut messages = serde_json::Map::new();
    for leg in 0..3 {
        let cpu = median(repeats.iter().map(|sums| sums[leg]).collect());
        let one = json!({
            "bytes": bytes[leg],
            "cpu_microseconds": rounded(cpu),
            "transport_microseconds": rounded(transport[leg]),
        });
        messages.insert(MESSAGES[leg].to_string(), one);
    }
    let totals: Vec<f64> = repeats.iter().map(|sums| sums.iter().sum()).collect();
    Ok(json!({
        "messages": messages,
        "total_bytes": bytes.iter().sum::<usize>(),
        "total_cpu_microseconds": rounded(median(totals.clone())),
        "repeats_cpu_microseconds": totals.into_iter().map(rounded).collect::<Vec<_>>(),
        "exchanges_per_repeat": exchanges,
    }))
}

async fn run() -> anyhow::Result<()> {
    let path = std::env::args()
        .nth(1)
        .expect("usage: chitchat-peer STATE.json");
    let state: State = serde_json::from_reader(std::fs::File::open(path)?)?;
    let same =
        |(a, b): (&Row, &Row)| a.endpoint == b.endpoint && a.states_version == b.states_version;
    anyhow::ensure!(
        state.a.view.iter().zip(&state.b.view).all(same),
        "this harness wants views that differ in heartbeats only"
    );
    let mut answer = json!({
        "peer": "chitchat",
        "version": "0.13.0",
        "endpoints": state.a.view.len(),
        "repeats": REPEATS,
        "warm_up": {"exchanges": WARM_UPS},
        "notes": [
            "format V1 (digest compressed with zstd); V0, its default for compatibility, under variants",
            "CPU of the one thread of both nodes, with tokio's scheduling, without the datagrams' system calls",
        ],
    });
    for (key, value) in measure(&state, ProtocolVersion::V1)
        .await?
        .as_object()
        .unwrap()
    {
        answer[key] = value.clone();
    }
    // Without compression a digest has to fit a datagram of 65,507 bytes: about 1,300 endpoints.
    answer["variants"] = json!({"v0": match measure(&state, ProtocolVersion::V0).await {
        Ok(value) => value,
        Err(error) => json!({"fails": error.to_string()}),
    }});
    println!("{answer}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run())
}
