//! One encoding per update and format, shared by every viewer that wants it.

use std::collections::HashMap;

use bytes::Bytes;
use slab::Slab;

use super::Protocol;
use crate::domain::Update;

/// The formats in use on one topic, each with the bytes of the newest update it was asked for.
#[derive(Debug)]
pub(super) struct Encoded<P: Protocol> {
    entries: Slab<Entry<P::Format>>,
    index: HashMap<P::Format, u32>,
}

#[derive(Debug)]
struct Entry<F> {
    format: F,
    viewers: usize,
    /// Which update `bytes` are of; 0 is none.
    serial: u64,
    bytes: Bytes,
}

impl<P: Protocol> Default for Encoded<P> {
    fn default() -> Self {
        Self { entries: Slab::new(), index: HashMap::new() }
    }
}

impl<P: Protocol> Encoded<P> {
    /// One more viewer wants `format`; the number names it until [`Encoded::release`].
    pub(super) fn acquire(&mut self, format: P::Format) -> u32 {
        let entries = &mut self.entries;
        let id = *self.index.entry(format).or_insert_with_key(|format| {
            let entry = Entry { format: format.clone(), viewers: 0, serial: 0, bytes: Bytes::new() };
            u32::try_from(entries.insert(entry)).expect("fewer formats than viewers, fewer viewers than 2^32")
        });
        self.entries[id as usize].viewers += 1;
        id
    }

    /// One viewer less.
    pub(super) fn release(&mut self, id: u32) {
        let entry = &mut self.entries[id as usize];
        entry.viewers -= 1;
        if entry.viewers == 0 {
            let entry = self.entries.remove(id as usize);
            self.index.remove(&entry.format);
        }
    }

    /// The bytes of `update`, whose number on this topic is `serial` (from 1, never repeated).
    pub(super) fn get(&mut self, id: u32, serial: u64, update: &Update) -> &Bytes {
        let entry = &mut self.entries[id as usize];
        if entry.serial != serial {
            entry.bytes = P::encode(update, &entry.format);
            entry.serial = serial;
        }
        &entry.bytes
    }
}
