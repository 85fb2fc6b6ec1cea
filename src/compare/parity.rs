//! The parity sheet: what is equal between the arms, read from the command lines in force, and what cannot be equal.

use std::path::Path;

use super::plan::Planned;
use super::scenario::latency::load_args;
use super::stack::{Cpus, Kind, serve_args};
use crate::domain::{Arm, LikesChanged, LikesState, PostId, Update, Version};
use crate::result::ParityRow;

/// The sheet for a plan on a stack. Each row's two values are looked up in the command lines of the two arms.
#[must_use]
pub fn rows(kind: Kind, cpus: &Cpus, cells: &[Planned]) -> Vec<ParityRow> {
    let Some(cell) = cells.first() else { return Vec::new() };
    let lines = [Arm::SsePost, Arm::StompPost].map(|arm| command_lines(cpus, &Planned { arm, ..cell.clone() }));
    let told = |what: &str, flag: &str, note: &str| {
        let [sse, stomp] = [&lines[0], &lines[1]].map(|line| value(line, flag));
        ParityRow { what: what.into(), equal: sse == stomp, sse, stomp, note: note.into() }
    };
    let same = |what: &str, value: &str, note: &str| ParityRow {
        what: what.into(),
        sse: value.into(),
        stomp: value.into(),
        equal: true,
        note: note.into(),
    };
    let [snapshot, changed] = samples().map(|update| update.to_json().len());
    let mut rows = vec![
        same("JSON body", &format!("{changed} B (snapshot {snapshot} B)"), "one function encodes it for both"),
        told(
            "heartbeat of the pod",
            "--heartbeat",
            "SSE: a comment; STOMP: an end-of-line; the client sends none over SSE",
        ),
        told("heartbeat a viewer expects", "load --heartbeat", "after two silent periods it reconnects"),
        told("repair of quiet posts", "--anti-entropy", ""),
        told("X-Accel-Buffering", "--accel-buffering", "means nothing to a WebSocket"),
        told("maximum age of a stream", "--max-age", ""),
        same("mailbox and flush", "newest per post, no window", "one engine writes both"),
        same("TCP_NODELAY, buffers", "on, same for both", "one engine, one accept loop"),
        same("subscriptions per session", "1", ""),
        same("HTTP version, TLS", "1.1, none", ""),
        told("schedule of likes", "load --schedule", ""),
        told("seed", "load --seed", "the arms of one block have one seed"),
        told(
            "likers",
            "load --likers",
            "SSE+POST and STOMP+POST: a keep-alive connection each; STOMP+SEND: one WebSocket each; viewers are sessions apart",
        ),
        told("CPUs of the generator", "load --cpus", ""),
        same("CPUs of everything else", &list(&cpus.stack), ""),
        same("pods", &cell.pods.to_string(), "as in the first cell; a cell's own number is among its levels"),
    ];
    if kind == Kind::Kubernetes {
        rows.push(same("edge, broker, database, nodes", "one release for both", "what runs where is among the facts"));
    }
    if kind == Kind::Embedded {
        rows.push(same("broker, database", "in process, SQLite", "no proxy, no broker between processes, no row lock"));
    }
    rows.push(ParityRow {
        what: "framing per event".into(),
        sse: "`id:`, `data:`, chunk".into(),
        stomp: "WebSocket header, MESSAGE headers".into(),
        equal: false,
        note: "cannot be equal: its cost is bytes per delivery in the side-by-side table".into(),
    });
    rows.push(ParityRow {
        what: "reconnection".into(),
        sse: "`retry:` and Last-Event-ID, our client".into(),
        stomp: "no standard, our client".into(),
        equal: false,
        note: "one backoff with jitter for both; SSE waits for the server's `retry:` (500–1500 ms) first, for which STOMP \
               has no word: a cut SSE viewer comes back about a second later"
            .into(),
    });
    rows
}

fn samples() -> [Update; 2] {
    let post_id = PostId::new(1_000).unwrap_or_else(|| unreachable!("within range"));
    let (likes, version) = (1_000, Version(1_000));
    let event = LikesChanged { post_id, likes, version, prev: Version(999), committed_at: 1_795_408_200_000_000 };
    [Update::Snapshot(LikesState { post_id, likes, version }), Update::Changed(event)]
}

/// `serve`'s and `load`'s command lines of a cell, one after the other.
fn command_lines(cpus: &Cpus, cell: &Planned) -> Vec<String> {
    let mut line = serve_args(cell);
    line.extend(load_args(&["http://edge".into()], &[], &["http://admin".into()], cpus, cell, Path::new("out")));
    line
}

/// The value of a flag; `load --x` looks in the generator's part alone.
fn value(line: &[String], flag: &str) -> String {
    let begin = if flag.starts_with("load ") { line.iter().position(|word| word == "load").unwrap_or(0) } else { 0 };
    let flag = flag.trim_start_matches("load ");
    let at = line[begin..].iter().position(|word| word == flag);
    at.and_then(|at| line.get(begin + at + 1)).cloned().unwrap_or_else(|| "default".into())
}

fn list(cpus: &[usize]) -> String {
    if cpus.is_empty() { "not pinned".into() } else { cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::Plan;

    #[test]
    fn the_command_lines_of_two_arms_differ_in_the_arm_alone() {
        let cpus = Cpus { generator: vec![1], stack: vec![0] };
        for plan in ["quick", "seed", "full", "faults", "writes", "kind"] {
            for cell in Plan::load(plan).unwrap().0.expand(None) {
                let [sse, stomp] =
                    [Arm::SsePost, Arm::StompSend].map(|arm| command_lines(&cpus, &Planned { arm, ..cell.clone() }));
                let different: Vec<_> = sse.iter().zip(&stomp).filter(|(a, b)| a != b).collect();
                assert_eq!(sse.len(), stomp.len());
                assert_eq!(different, [(&"sse-post".to_owned(), &"stomp-send".to_owned())], "{}", cell.cell.id);
            }
        }
    }

    #[test]
    fn the_arms_of_a_block_share_their_seed_and_everything_but_the_arm() {
        let cells = Plan::load("full").unwrap().0.expand(None);
        for a in &cells {
            for pair in a.cell.pairs.iter().filter(|pair| pair.side == 'a' && pair.claim.starts_with("arm: ")) {
                let b = cells.iter().find(|b| {
                    b.cell
                        .pairs
                        .iter()
                        .any(|other| other.claim == pair.claim && other.number == pair.number && other.side == 'b')
                });
                let b = Planned { arm: a.arm, cell: a.cell.clone(), ..b.unwrap().clone() };
                assert_eq!(&b, a);
            }
        }
    }

    #[test]
    fn every_row_that_says_equal_has_equal_values() {
        let cells = Plan::load("quick").unwrap().0.expand(None);
        for row in rows(Kind::Local, &Cpus::default(), &cells) {
            assert_eq!(row.equal, row.sse == row.stomp, "{row:?}");
            assert!(row.equal || !row.note.is_empty(), "{row:?}");
        }
    }
}
