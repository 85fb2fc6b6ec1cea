//! The integration suite, one binary: real servers, real clients, real time-outs, port 0.

mod architecture;
mod broker;
mod likes;
mod servers;
mod pod;
mod stack;
mod store;
