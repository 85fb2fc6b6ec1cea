//! The integration suite, one binary: real servers, real clients, real time-outs, port 0.

mod architecture;
mod broker;
mod checklists;
mod collector;
mod compare;
mod contention;
mod edge;
mod exported;
mod faults;
mod killed;
mod likes;
mod load;
mod observe;
mod otelcol;
mod page;
mod parts;
mod pod;
mod pod_process;
mod proxy;
mod servers;
mod stack;
mod store;
mod writing;
