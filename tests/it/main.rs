//! The integration suite, one binary: real servers, real clients, real time-outs, port 0.

mod architecture;
mod broker;
mod compare;
mod likes;
mod load;
mod page;
mod pod;
mod proxy;
mod servers;
mod stack;
mod store;
