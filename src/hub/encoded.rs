//! One encoding per update and format, shared by every viewer that wants it.

use std::collections::{HashMap, VecDeque};

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
    /// Numbers and bytes of updates that wait in a ring, ascending.
    kept: VecDeque<(u64, Bytes)>,
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
            let (bytes, kept) = (Bytes::new(), VecDeque::new());
            let entry = Entry { format: format.clone(), viewers: 0, serial: 0, bytes, kept };
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

    /// As [`Encoded::get`] for one of several updates that wait; those before number `oldest` are asked for no more.
    pub(super) fn get_kept(&mut self, id: u32, serial: u64, oldest: u64, update: &Update) -> &Bytes {
        let Entry { format, kept, .. } = &mut self.entries[id as usize];
        while kept.front().is_some_and(|(number, _)| *number < oldest) {
            kept.pop_front();
        }
        let at = kept.partition_point(|(number, _)| *number < serial);
        if kept.get(at).is_none_or(|(number, _)| *number != serial) {
            kept.insert(at, (serial, P::encode(update, format)));
        }
        &kept[at].1
    }
}
