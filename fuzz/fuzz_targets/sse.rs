//! Chunks and event streams: any bytes are survived, and how they are split does not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pushlab_fuzz::proto::sse::{ChunkDecoder, Decoder, parse_last_event_id};

fuzz_target!(|data: &[u8]| {
    let (mut chunks, mut input) = (ChunkDecoder::new(), data);
    while let Ok(Some(_)) = chunks.next(&mut input) {}
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_last_event_id(text);
    }
    let (mut whole, mut bytewise) = (Decoder::new(1000), Decoder::new(1000));
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let one = whole.feed(data, &mut a);
    let two = data.iter().try_for_each(|byte| bytewise.feed(&[*byte], &mut b));
    assert_eq!((one, a), (two, b));
    assert_eq!(whole.last_event_id(), bytewise.last_event_id());
});
