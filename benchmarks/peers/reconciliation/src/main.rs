//! Published packages that find the difference of two sets, over the rows of a directory (`benchmarks/peers/rows.py`).
//!
//! negentropy: an id is token, version and digest (32 bytes), the timestamp either the time of the version or 0 for
//! all, which orders by token. riblt: a symbol is token and version (16 bytes); its package has no wire format, so a
//! coded symbol is counted as 16 bytes, 8 of its hash, and its count as a varint, and the symbols come in batches, each
//! an eighth of what was there. It decodes each time from the beginning; the CPU of the longest time is told. Everything runs in one thread; CPU is that of the process.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use riblt::{CodedSymbol, RatelessIBLT, Symbol, UnmanagedRatelessIBLT};
use serde_json::{Value, json};

const ROW_BYTES: usize = 32;
const FIRST_SYMBOLS: usize = 16;
/// Symbols at which it is given up: the package takes the square of their number.
const SYMBOLS_MAX: usize = 200_000;

type Row = [u8; ROW_BYTES];

fn cpu_milliseconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) }, 0);
    now.tv_sec as f64 * 1e3 + now.tv_nsec as f64 / 1e6
}

fn read(path: &Path) -> Vec<Row> {
    let data = fs::read(path).unwrap_or_else(|error| panic!("error: {}: {error}", path.display()));
    data.chunks_exact(ROW_BYTES).map(|row| row.try_into().unwrap()).collect()
}

fn token(row: &Row) -> u64 {
    u64::from_be_bytes(row[..8].try_into().unwrap())
}

fn version(row: &Row) -> u64 {
    u64::from_be_bytes(row[8..16].try_into().unwrap())
}

/// Rows with others put over them, in token order.
fn with(rows: &[Row], puts: &[Row]) -> Vec<Row> {
    let mut fresh: BTreeMap<u64, Row> = puts.iter().map(|row| (token(row), *row)).collect();
    let mut merged: Vec<Row> =
        rows.iter().map(|row| fresh.remove(&token(row)).unwrap_or(*row)).collect();
    merged.extend(fresh.into_values());
    merged.sort_unstable_by_key(token);
    merged
}

// ------------------------------------------------------------------------------------------------------- negentropy

fn storage(rows: &[Row], by_time: bool) -> NegentropyStorageVector {
    let mut made = NegentropyStorageVector::with_capacity(rows.len());
    for row in rows {
        let timestamp = if by_time { (version(row) >> 16) / 1000 } else { 0 };
        made.insert(timestamp, Id::from_byte_array(*row)).unwrap();
    }
    made.seal().unwrap();
    made
}

fn negentropy(ours: &[Row], theirs: &[Row], by_time: bool) -> Value {
    let began = cpu_milliseconds();
    let (left, right) = (storage(ours, by_time), storage(theirs, by_time));
    let built = cpu_milliseconds();
    let mut client = Negentropy::borrowed(&left, 0).unwrap();
    let mut server = Negentropy::borrowed(&right, 0).unwrap();
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let (mut bytes, mut round_trips, mut largest) = (0, 0, 0);
    let mut query = Some(client.initiate().unwrap());
    while let Some(asked) = query {
        let answer = server.reconcile(&asked).unwrap();
        bytes += asked.len() + answer.len();
        largest = largest.max(asked.len()).max(answer.len());
        round_trips += 1;
        query = client.reconcile_with_ids(&answer, &mut have, &mut need).unwrap();
    }
    json!({
        "bytes": bytes, "round_trips": round_trips, "message_bytes_max": largest, "items": have.len() + need.len(),
        "build_cpu_milliseconds": (built - began) / 2.0, "find_cpu_milliseconds": cpu_milliseconds() - built,
    })
}

// ------------------------------------------------------------------------------------------------------------ riblt

#[derive(Clone, Debug, PartialEq)]
struct Item([u8; 16]);

impl Symbol for Item {
    const BYTE_ARRAY_LENGTH: usize = 16;

    fn encode_to_bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn decode_from_bytes(bytes: &Vec<u8>) -> Self {
        Item(bytes[..16].try_into().unwrap())
    }
}

fn symbol_bytes(symbol: &CodedSymbol<Item>) -> usize {
    let mut zigzag = ((symbol.count << 1) ^ (symbol.count >> 63)) as u64;
    let mut count = 1;
    while zigzag >= 128 {
        zigzag >>= 7;
        count += 1;
    }
    16 + 8 + count
}

fn riblt(ours: &[Row], theirs: &[Row]) -> Value {
    let items = |rows: &[Row]| rows.iter().map(|row| Item(row[..16].try_into().unwrap())).collect::<Vec<_>>();
    let (mut left, mut right) = (RatelessIBLT::new(items(ours)), RatelessIBLT::new(items(theirs)));
    let (mut bytes, mut batches, mut symbols) = (0, 0, 0);
    let (mut encode, mut decode) = (0.0, 0.0);
    let items = loop {
        if symbols > SYMBOLS_MAX {
            return json!({"gave_up": format!("not decoded with {symbols} symbols")});
        }
        let last = symbols + FIRST_SYMBOLS.max(symbols / 8);
        let began = cpu_milliseconds();
        left.extend_coded_symbols(last - 1);
        right.extend_coded_symbols(last - 1);
        let encoded = cpu_milliseconds();
        bytes += right.coded_symbols[symbols..last].iter().map(symbol_bytes).sum::<usize>();
        let mut block = UnmanagedRatelessIBLT::<Item>::new();
        for (one, other) in left.coded_symbols[..last].iter().zip(&right.coded_symbols) {
            block.add_coded_symbol(&one.collapse(other));
        }
        let peeled = block.peel_all_symbols().len();
        encode += (encoded - began) / 2.0;
        decode = f64::max(decode, cpu_milliseconds() - encoded);
        (symbols, batches) = (last, batches + 1);
        if block.is_empty() {
            break peeled;
        }
    };
    json!({
        "bytes": bytes, "batches": batches, "symbols": symbols, "items": items,
        "encode_cpu_milliseconds": encode, "decode_cpu_milliseconds": decode,
    })
}

fn main() {
    let directory = std::env::args().nth(1).expect("error: a directory with cases.json is needed");
    let directory = Path::new(&directory);
    let input: Value = serde_json::from_slice(&fs::read(directory.join("cases.json")).unwrap()).unwrap();
    let base = read(&directory.join("rows.bin"));
    let mut cases = Vec::new();
    for case in input["cases"].as_array().unwrap() {
        let puts = read(&directory.join(case["file"].as_str().unwrap()));
        let (first, second) = puts.split_at(case["first"].as_u64().unwrap() as usize);
        let (ours, theirs) = (with(&base, first), with(&base, second));
        let expected = HashSet::<&Row>::from_iter(&ours).symmetric_difference(&HashSet::from_iter(&theirs)).count();
        let found = json!({
            "differences": case["differences"], "kind": case["kind"], "items": expected,
            "negentropy_by_token": negentropy(&ours, &theirs, false),
            "negentropy_by_time": negentropy(&ours, &theirs, true),
            "riblt": riblt(&ours, &theirs),
        });
        for scheme in ["negentropy_by_token", "negentropy_by_time", "riblt"] {
            let items = found[scheme].get("items").and_then(Value::as_u64);
            assert!(items.is_none_or(|items| items == expected as u64), "error: {scheme} found {items:?} of {expected}");
        }
        cases.push(found);
    }
    let answer = json!({
        "peer": "reconciliation", "negentropy_version": "0.5.3", "riblt_version": "0.1.1",
        "rows": base.len(), "cases": cases,
    });
    println!("{answer}");
}
