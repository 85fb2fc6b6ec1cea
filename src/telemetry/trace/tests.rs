use super::*;

#[test]
fn nothing_is_made_while_tracing_is_off() {
    let tracer = Tracer::default();
    let never = || -> Carrier { panic!("asked for headers") };
    assert!(tracer.asked(SystemTime::now(), || panic!("asked for a name"), never).is_none());
    let trace = tracer.resumed(&Carrier {
        parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        state: None,
    });
    assert!(!trace.is_sampled() && trace.carrier().is_none());
    assert_eq!(size_of::<Trace>(), 8);
}
