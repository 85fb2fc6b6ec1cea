//! WebSocket frames in both roles: any bytes are survived within the limits, and how they are split does not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pushlab_fuzz::proto::ws::{Decoder, Limits, Role};

fuzz_target!(|data: &[u8]| {
    let limits = Limits { frame: 200, message: 300, fragments: 4 };
    for role in [Role::Server, Role::Client] {
        let (mut whole, mut bytewise) = (Decoder::new(role, limits), Decoder::new(role, limits));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let one = whole.feed(data, &mut a);
        let two = data.iter().try_for_each(|byte| {
            let result = bytewise.feed(&[*byte], &mut b);
            assert!(bytewise.held() <= limits.message + 125);
            result
        });
        assert_eq!((one, a), (two, b));
    }
});
