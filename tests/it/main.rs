//! The integration suite, one binary: real servers, real clients, real time-outs, port 0.

mod architecture;
mod broker;
mod pod;
mod servers;
mod stack;
mod store;
mod watch;
