//! Parses the command line, starts the runtime, dispatches, exits.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use pushlab::cli::{Bench, BenchWhat, Cli, Command};
use pushlab::{affinity, compare, contention, doctor, hub, load, probe, report, serve, shutdown};

fn main() -> ExitCode {
    let cli = Cli::parse();
    serve::tls::provide();
    // A thread hands its cores on to those it starts, so this comes before the runtime.
    let pinned = match &cli.command {
        Command::Serve(config) => affinity::pin(config.cpus.as_ref().map_or(&[], |cpus| &cpus.0)).context("--cpus"),
        _ => Ok(()),
    };
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from);
    match pinned.and_then(|()| runtime()).and_then(|runtime| runtime.block_on(dispatch(cli.command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pushlab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let shutdown = shutdown::on_signals()?;
    match command {
        Command::Serve(config) => serve::run(config, shutdown).await,
        Command::Load(config) => load::run(config, shutdown).await,
        Command::Compare(config) => compare::run(config, shutdown).await,
        Command::Report(config) => report::run(config, shutdown).await,
        Command::Check(config) => report::check(config, shutdown).await,
        Command::Doctor(config) => doctor::run(config, shutdown).await,
        Command::Probe(config) => probe::run(config, shutdown).await,
        Command::Bench(Bench { what: Some(BenchWhat::Writes(config)), .. }) => contention::run(config, shutdown).await,
        Command::Bench(Bench { what: Some(BenchWhat::Telemetry(config)), .. }) => {
            hub::bench::telemetry::run(config, shutdown).await
        }
        Command::Bench(Bench { what: None, delivery }) => hub::bench::run(delivery, shutdown).await,
        Command::Selftest(config) => compare::selftest::run(config, shutdown).await,
        Command::Guardian(config) => compare::stack::guardian::run(config, shutdown).await,
    }
}
