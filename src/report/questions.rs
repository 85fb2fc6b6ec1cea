//! The open questions by number, and what a report must say it has not measured.

/// Number and question, in the order of DESIGN.
pub const QUESTIONS: [(&str, &str); 14] = [
    ("Q1", "How long from a like to its viewers, at 1, 10 and 1000 likes/s with 1 and 1000 viewers?"),
    ("Q2", "Does a proxy buffer an SSE stream? When exactly, and what does it cost?"),
    ("Q3", "Is an SSE stream mistaken for long polling and cut by idle time-outs?"),
    ("Q4", "How skewed do pods get under long-lived connections, and does least-connection routing help?"),
    ("Q5", "Is keeping connections cheaper than reconnecting or polling?"),
    ("Q6", "Should connections live in gateway pods of their own?"),
    ("Q7", "A STOMP broker relay against a hub in the pod?"),
    ("Q8", "Is a sticky session needed once there is a broker?"),
    ("Q9", "How fast can a user switch what they watch?"),
    ("Q10", "The write: pessimistic lock against its alternatives?"),
    ("Q11", "Text against binary frames, HTTP/1.1, HTTP/2 and TLS: bytes on the wire?"),
    ("Q12", "What is lost, noticed and healed when a pod, the broker or the database fails?"),
    ("Q13", "What does one stalled client cost the others and the pod?"),
    ("Q14", "How many viewers fit into one CPU inside an SLO, and what does an idle one cost?"),
];

/// The question of that number; the number itself for one of a plan's own.
#[must_use]
pub fn text(number: &str) -> &str {
    match QUESTIONS.iter().find(|(known, _)| *known == number) {
        Some((_, text)) => text,
        None if number.is_empty() => "Runs outside a plan",
        None => number,
    }
}

/// What the figures of such a stack do not show, as sentences.
#[must_use]
pub fn limits(stack: &str) -> Vec<&'static str> {
    let mut limits = match stack {
        "embedded" => vec![
            "A proxy, a broker between processes, or a row lock: pods, broker and database share one process.",
            "A latency ranking of transports: install what `pushlab doctor` names and run `--stack local`.",
        ],
        "local" => vec![
            "A network: everything is on one host, so there is no loss, no jitter, no bandwidth limit and no round trip.",
            "Clusters: one NATS server, one database without replicas, one proxy process.",
        ],
        _ => vec![
            "The clock error between the hosts is part of every latency, unless the manifest says it was measured.",
        ],
    };
    limits.extend([
        "Browsers: viewers are our own client, stamped by the kernel; rendering and EventSource's own delays are not in it.",
        "TLS, HTTP/2 and HTTP/3: streams run over plain HTTP/1.1 and WebSocket.",
        "Mobile radios, sleeping tabs, middleboxes that cut idle connections.",
        "Loopback books the receiver's TCP work on the sender: CPU per delivery is for the whole system and an upper bound for a pod.",
    ]);
    limits
}
