//! The thread: epoll, slab, rounds, sweep. (Types only so far.)

use std::io;
use std::thread::JoinHandle;

use super::{EngineHandle, EngineOptions, Protocol};

pub(super) fn spawn<P: Protocol>(
    _index: u16,
    _options: EngineOptions,
) -> io::Result<(EngineHandle<P>, JoinHandle<()>)> {
    Err(io::Error::other("the engine is not built yet"))
}
