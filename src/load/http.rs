//! As much of HTTP/1.1 as a client of ours needs: response heads, and bodies by length, by chunks or until the end.

use crate::proto::sse::ChunkDecoder;

/// Largest response head, and largest body of an answer that is no stream.
const LARGEST: usize = 64 * 1024;

/// What a response head says that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Head {
    /// The status code.
    pub(super) status: u16,
    /// `X-Pushlab-Pod`.
    pub(super) pod: Option<String>,
    /// `Retry-After`, in seconds.
    pub(super) retry_after_s: Option<u32>,
    /// `Content-Type`.
    pub(super) content_type: String,
    /// `Content-Encoding: gzip`.
    pub(super) gzip: bool,
    /// `Transfer-Encoding: chunked`.
    pub(super) chunked: bool,
    /// `Content-Length`.
    pub(super) length: Option<usize>,
    /// The connection ends after this response.
    pub(super) close: bool,
    /// `Sec-WebSocket-Protocol`.
    pub(super) subprotocol: Option<String>,
}

/// The bytes are not an HTTP response that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP/1.1 response: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// The head at the front of `bytes` and its length; `None` while it is not complete.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Malformed> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > LARGEST { Err(Malformed("its head is too long")) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed("its head is not text"))?;
    let mut lines = text.split("\r\n");
    let mut status = lines.next().unwrap_or_default().split(' ');
    let version = status.next().filter(|version| version.starts_with("HTTP/1."));
    let version = version.ok_or(Malformed("no status line"))?;
    let code = status.next().and_then(|code| code.parse().ok()).ok_or(Malformed("no status code"))?;
    let mut head = Head { status: code, close: version == "HTTP/1.0", ..Head::default() };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Malformed("a header without a colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "x-pushlab-pod" => head.pod = Some(value.into()),
            "retry-after" => head.retry_after_s = value.parse().ok(),
            "content-type" => head.content_type = value.to_ascii_lowercase(),
            "content-encoding" => head.gzip = value.eq_ignore_ascii_case("gzip"),
            "transfer-encoding" => head.chunked = value.to_ascii_lowercase().ends_with("chunked"),
            "content-length" => head.length = Some(value.parse().map_err(|_| Malformed("a bad content-length"))?),
            "connection" => match value.to_ascii_lowercase().as_str() {
                "close" => head.close = true,
                "keep-alive" => head.close = false,
                _ => {}
            },
            "sec-websocket-protocol" => head.subprotocol = Some(value.into()),
            _ => {}
        }
    }
    Ok(Some((head, end + 4)))
}

/// A whole answer at the front of `bytes`: its head, its body, and how many bytes it took; `None` while incomplete.
/// `at_eof` says that nothing more will come, which ends a body without a length.
pub(super) fn parse_answer(bytes: &[u8], at_eof: bool) -> Result<Option<(Head, Vec<u8>, usize)>, Malformed> {
    let Some((head, start)) = parse_head(bytes)? else { return Ok(None) };
    let mut rest = &bytes[start..];
    if head.chunked {
        let (mut chunks, mut body) = (ChunkDecoder::new(), Vec::new());
        while let Some(piece) = chunks.next(&mut rest).map_err(|_| Malformed("broken chunks"))? {
            body.extend_from_slice(piece);
        }
        return Ok(chunks.is_end().then(|| (head, body, bytes.len() - rest.len())));
    }
    match head.length {
        Some(length) if length > LARGEST => Err(Malformed("its body is too long")),
        Some(length) if rest.len() < length => Ok(None),
        Some(length) => Ok(Some((head, rest[..length].to_vec(), start + length))),
        None if matches!(head.status, 204 | 304) => Ok(Some((head, Vec::new(), start))),
        None if at_eof => Ok(Some((Head { close: true, ..head }, rest.to_vec(), bytes.len()))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nrest";

    #[test]
    fn a_head_in_pieces() {
        let bytes = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nX-Pushlab-Pod: pod-1\r\nContent-Length: 0\r\n\r\n";
        for cut in 0..bytes.len() {
            assert_eq!(parse_head(&bytes[..cut]), Ok(None));
        }
        let (head, len) = parse_head(bytes).unwrap().unwrap();
        assert_eq!((head.status, head.retry_after_s, head.pod.as_deref()), (503, Some(2), Some("pod-1")));
        assert_eq!(len, bytes.len());
    }

    #[test]
    fn bodies_by_length_by_chunks_and_until_the_end() {
        let by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP";
        let (_, body, used) = parse_answer(by_length, false).unwrap().unwrap();
        assert_eq!((&body[..], used), (&b"abc"[..], by_length.len() - 4));
        let (_, body, used) = parse_answer(CHUNKED, false).unwrap().unwrap();
        assert_eq!((&body[..], used), (&b"abc"[..], CHUNKED.len() - 4));
        let until_end = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(parse_answer(until_end, false), Ok(None));
        let (head, body, _) = parse_answer(until_end, true).unwrap().unwrap();
        assert!(head.close && body == b"abc");
    }

    #[test]
    fn noise_is_refused() {
        assert!(parse_head(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(parse_head(&vec![b'x'; LARGEST + 1]).is_err());
        assert!(parse_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false).is_err());
    }
}
