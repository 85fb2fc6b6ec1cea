//! The process that only reads: connects as told, then drains every socket as fast as it can.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mio::{Events, Interest, Poll, Token};

/// Runs until the conductor goes away.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    super::raise_open_files();
    let (sockets, arriving) = mpsc::sync_channel(1024);
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        if let Err(error) = read_all(&arriving) {
            eprintln!("pushlab bench: the reader failed: {error:#}");
            std::process::exit(1);
        }
    })?;
    super::obey(|words| match words {
        ["connect", kind, address, count] => {
            for i in 0..count.parse::<u32>()? {
                let socket = connect(kind, address).with_context(|| format!("connection {i} to {address}"))?;
                sockets.send(socket)?;
            }
            Ok("ok".into())
        }
        ["collector"] => collector().map(|address| address.to_string()),
        other => bail!("unknown order {other:?}"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes spans over HTTP as fast as they come and forgets them.
fn collector() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take_posts(stream));
        }
    });
    Ok(address)
}

fn take_posts(stream: TcpStream) -> std::io::Result<()> {
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        std::io::copy(&mut (&mut requests).take(length), &mut std::io::sink())?;
        answers.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn connect(kind: &str, address: &str) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = match kind {
        "raw" => return Ok(socket),
        "sse" => "GET /sse HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n",
        _ => {
            "GET /stomp HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        }
    };
    socket.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let n = socket.read(&mut buffer).context("no answer")?;
        ensure!(n > 0, "closed instead of answering");
        head.extend_from_slice(&buffer[..n]);
    }
    Ok(socket)
}

fn read_all(arriving: &mpsc::Receiver<TcpStream>) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut sockets = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        poll.poll(&mut events, Some(Duration::from_millis(20)))?;
        for event in &events {
            let socket: &mut mio::net::TcpStream = &mut sockets[event.token().0];
            while socket.read(&mut buffer).is_ok_and(|n| n == buffer.len()) {}
        }
        while let Ok(socket) = arriving.try_recv() {
            socket.set_nonblocking(true)?;
            let mut socket = mio::net::TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(sockets.len()), Interest::READABLE)?;
            let _ = socket.read(&mut buffer);
            sockets.push(socket);
        }
    }
}
