//! `pushlab bench writes` in short: every strategy proves its versions, at the store and through pods.

use std::process::Command;

#[test]
fn the_bench_of_the_write_strategies_runs_and_prints_what_it_found() {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_pushlab"));
    bench.args(["bench", "writes", "--callers", "40", "--seconds", "0.2", "--repetitions", "1", "--pods", "2"]);
    let output = bench.args(["--strategies", "pessimistic,combining,event"]).env("RUST_LOG", "off").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{said}");
    assert_eq!(told.matches("combining ÷ pessimistic").count(), 3, "store, HTTP, STOMP: {told}");
    assert_eq!(told.matches("from the answer to the count").count(), 3, "{told}");
    assert!(told.contains("sync_binlog=1") && !told.contains("NaN"), "{told}");
}
