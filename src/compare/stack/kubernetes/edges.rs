//! Which edges a release has: read from the configuration its nginx really runs with, not from values.

use std::time::Duration;

use crate::compare::edges::{Edge, EdgeConfig};

/// One way into the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// What it is, in a plan's words.
    pub(super) config: EdgeConfig,
    /// The Service that leads to it.
    pub(super) service: String,
}

/// The ways through an nginx with this configuration, one per `server` block with names: `server_name` lists the host for
/// viewers and the Service of that variant, which begins with `prefix`. Blocks that are no edge of ours are left out.
pub(super) fn of_nginx(text: &str, prefix: &str) -> Vec<Way> {
    let blocks = blocks(text);
    let mut ways = Vec::new();
    for server in blocks.iter().filter(|block| block.head == "server") {
        let names = server.values("server_name").next().unwrap_or_default();
        let Some(service) =
            names.split_whitespace().find(|name| name.starts_with(prefix) && !name.contains(['.', '*']))
        else {
            continue;
        };
        let stream = server.blocks.iter().find(|block| block.head == "location @stream");
        let upstream = stream.and_then(|stream| stream.values("proxy_pass").next()).unwrap_or_default();
        let upstream = format!("upstream {}", upstream.trim_start_matches("http://"));
        let upstream = blocks.iter().find(|block| block.head == upstream);
        let (Some(stream), Some(upstream)) = (stream, upstream) else { continue };
        let method = |line: &str| upstream.lines.iter().any(|own| own == line);
        let http10 = stream.values("proxy_http_version").next() == Some("1.0");
        let gzip = server.values("gzip").next() == Some("on");
        let plain = !method("ip_hash") && !upstream.lines.iter().any(|line| line.starts_with("hash "));
        let edge = match (http10, gzip) {
            (true, false) if plain => Edge::NginxHttp10,
            (false, true) if plain => Edge::NginxGzip,
            (false, false) if method("least_conn") => Edge::NginxLeastConn,
            (false, false) if method("random two least_conn") => Edge::NginxRandomTwo,
            (false, false) if plain && !upstream.lines.iter().any(|line| line.starts_with("random")) => Edge::NginxRr,
            _ => continue,
        };
        let seconds = |value: &str| value.trim_end_matches('s').parse().ok();
        let usual = EdgeConfig::new(edge);
        ways.push(Way {
            config: EdgeConfig {
                edge,
                buffering: server.values("proxy_buffering").next() != Some("off"),
                retry503: stream.values("proxy_next_upstream").any(|value| value.contains("http_503")),
                max_temp_file: server.values("proxy_max_temp_file_size").next().map(str::to_owned),
                silence_s: stream.values("proxy_read_timeout").find_map(seconds).unwrap_or(usual.silence_s),
            },
            service: service.to_owned(),
        });
    }
    ways
}

/// How long after a change of the pods the edge asks DNS again: `valid=` of its resolver.
pub(super) fn asks_dns_every(text: &str) -> Duration {
    let valid = text.split_whitespace().find_map(|word| word.strip_prefix("valid=")).unwrap_or_default();
    let valid = valid.trim_end_matches(';');
    humantime::parse_duration(valid).unwrap_or(Duration::from_secs(30))
}

/// A block of nginx' configuration: what is before its brace, its own lines, and the blocks within.
#[derive(Debug, Default)]
struct Block {
    head: String,
    lines: Vec<String>,
    blocks: Vec<Block>,
}

impl Block {
    /// Values of a directive.
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' ').map(str::trim))
    }
}

/// The blocks within `http`. Good enough for files that nginx accepted and that hold no braces in quotes but whole lines.
fn blocks(text: &str) -> Vec<Block> {
    let mut stack = vec![Block::default()];
    let mut word = String::new();
    for line in text.lines() {
        let line = line.split_once(" #").map_or(line, |(code, _)| code).trim();
        if line.starts_with('#') || line.starts_with('"') {
            continue;
        }
        for c in line.chars() {
            match c {
                ';' => {
                    let line = squeeze(&std::mem::take(&mut word));
                    if let Some(block) = stack.last_mut() {
                        block.lines.push(line);
                    }
                }
                '{' => stack.push(Block { head: squeeze(&std::mem::take(&mut word)), ..Block::default() }),
                '}' => {
                    word.clear();
                    if let (true, Some(block)) = (stack.len() > 1, stack.pop())
                        && let Some(parent) = stack.last_mut()
                    {
                        parent.blocks.push(block);
                    }
                }
                c => word.push(c),
            }
        }
        word.push(' ');
    }
    let top = stack.swap_remove(0);
    top.blocks.into_iter().find(|block| block.head == "http").map(|http| http.blocks).unwrap_or_default()
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the chart renders, shortened to two variants and one that is none of ours.
    const CONFIG: &str = r#"
daemon off;
events { worker_connections 16384; }
http {
    resolver kube-dns.kube-system.svc.cluster.local valid=2s ipv6=off;
    map "$request_method $http_accept" $wants_stream {
        default 0;
        "~^GET .*text/event-stream" 1;
    }
    # sse: buffering off, least_conn. Each block counts for itself { }
    upstream sse-streams {
        zone sse-streams 256k;
        least_conn;
        server lab-pushlab-headless.ns.svc.cluster.local:8080 resolve;
    }
    upstream ws-rr-streams { zone ws-rr-streams 256k; server x:8080 resolve; }
    upstream odd-streams { hash $arg_x consistent; server x:8080 resolve; }
    server {
        listen 8080 default_server backlog=4096;
        server_name sse.lab.localhost lab-nginx-sse lab-nginx-sse.*;
        proxy_buffering off;
        location / {
            error_page 418 = @stream;
            if ($wants_stream) { return 418; }
            proxy_pass http://sse-api;
        }
        location @stream {
            proxy_pass http://sse-streams;
            proxy_http_version 1.1;
            proxy_read_timeout 15s;                         # a heartbeat and a half
            proxy_next_upstream error timeout http_503;
        }
    }
    server {
        listen 8080;
        server_name ws-rr.lab.localhost lab-nginx-ws-rr lab-nginx-ws-rr.*;
        proxy_buffering on;
        location @stream {
            proxy_pass http://ws-rr-streams;
            proxy_http_version 1.1;
            proxy_read_timeout 3s;
            proxy_next_upstream error timeout http_503;
        }
    }
    server { server_name odd.lab.localhost lab-nginx-odd; location @stream { proxy_pass http://odd-streams; } }
    server { listen 8081; location = /healthz { return 200 "ok\n"; } }
}
"#;

    #[test]
    fn the_ways_are_read_from_the_configuration_itself() {
        let ways = of_nginx(CONFIG, "lab-nginx");
        let known = [
            ("lab-nginx-sse", EdgeConfig::new(Edge::NginxLeastConn)),
            ("lab-nginx-ws-rr", EdgeConfig { buffering: true, silence_s: 3, ..EdgeConfig::new(Edge::NginxRr) }),
        ];
        assert_eq!(ways, known.map(|(service, config)| Way { service: service.into(), config }));
        assert_eq!(asks_dns_every(CONFIG), Duration::from_secs(2));
        assert!(of_nginx("", "lab").is_empty());
        assert!(of_nginx("http { server { ", "lab").is_empty());
    }
}
