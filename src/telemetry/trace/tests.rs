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

fn carrier(parent: &str) -> Carrier {
    Carrier::new(Some(parent.into()), Some("vendor=1".into()))
}

#[test]
fn a_trace_survives_its_headers() {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let asked = Tracer::recording().asked(SystemTime::now(), || "POST".into(), || carrier(parent)).expect("sampled");
    let sent = asked.trace().carrier().expect("headers");
    assert!(sent.parent.as_ref().is_some_and(|sent| sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-")));
    assert_eq!(sent.state.as_deref(), Some("vendor=1"));
    assert_eq!(Tracer::recording().resumed(&sent), asked.trace());
}

#[test]
fn a_caller_that_is_not_sampled_or_not_understood_is_not_followed() {
    let of = |parent: &str| Tracer::recording().asked(SystemTime::now(), || "POST".into(), || carrier(parent));
    assert!(of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").is_none());
    for bad in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "ä"] {
        let own = of(bad).expect("a trace of its own").trace().carrier().and_then(|carrier| carrier.parent);
        assert!(own.is_some_and(|own| !own.contains("0af7651916cd43dd8448eb211c80319c")), "{bad:?}");
    }
    let mut headers = http::HeaderMap::new();
    headers.append(TRACEPARENT, http::HeaderValue::from_static("a"));
    headers.append(TRACEPARENT, http::HeaderValue::from_static("b"));
    headers.append(TRACESTATE, http::HeaderValue::from_static("a=1"));
    headers.append(TRACESTATE, http::HeaderValue::from_static("b=2"));
    assert_eq!(Carrier::of(&headers), Carrier { parent: None, state: Some("a=1,b=2".into()) });
    assert_eq!(Carrier::new(None, Some("a".repeat(513))).state, None);
}

#[tokio::test]
async fn the_running_task_knows_its_trace() {
    let asked = Tracer::recording().asked(SystemTime::now(), || "POST".into(), Carrier::default).expect("sampled");
    let (trace, span) = asked.trace().scope(async { current() }).await.expect("a trace");
    assert_eq!((trace.len(), span.len()), (32, 16));
    assert_eq!(current(), None);
    assert_eq!(Trace::none().scope(async { current() }).await, None);
}
