//! Content negotiation (RFC 9110 §12.5.1): the state of a post's likes as JSON, or as a stream of its changes.

use http::{HeaderMap, header};

use super::error::ApiError;

const STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";

/// What `Accept` asks for where both forms are served: the stream only when it is wanted more than JSON, or is named and
/// wanted as much.
///
/// # Errors
/// 406 when it wants neither.
pub(super) fn wants_stream(headers: &HeaderMap) -> Result<bool, ApiError> {
    match (wanted(headers, STREAM), wanted(headers, JSON)) {
        (None, None) => Err(ApiError::NotAcceptable),
        (stream, json) => Ok(stream > json || (stream == json && stream.is_some_and(|(_, exactness)| exactness == 2))),
    }
}

/// Where only the stream is served.
///
/// # Errors
/// 406 when it is not wanted.
pub(super) fn stream_only(headers: &HeaderMap) -> Result<(), ApiError> {
    wanted(headers, STREAM).map(drop).ok_or(ApiError::NotAcceptable)
}

/// How much a media type is wanted: its weight in thousandths, then how exactly it is named (2 itself, 1 `text/*`,
/// 0 `*/*` or no `Accept`). The most exact range decides; `None`: not wanted.
fn wanted(headers: &HeaderMap, kind: &str) -> Option<(u16, u8)> {
    let lists = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = lists.flat_map(|list| list.split(',')).filter(|range| !range.trim().is_empty()).peekable();
    if ranges.peek().is_none() {
        return Some((1000, 0));
    }
    let main = kind.split('/').next().unwrap_or_default();
    let fitting = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default();
        let exactness = if range.eq_ignore_ascii_case(kind) {
            2
        } else if range.strip_suffix("/*").is_some_and(|name| name.eq_ignore_ascii_case(main)) {
            1
        } else if range == "*/*" {
            0
        } else {
            return None;
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0).clamp(0.0, 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
        let thousandths = (weight * 1000.0) as u16;
        Some((exactness, thousandths))
    });
    let (exactness, weight) = fitting.max_by_key(|(exactness, _)| *exactness)?;
    (weight > 0).then_some((weight, exactness))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(accept: &str) -> &'static str {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        match wants_stream(&headers) {
            Ok(true) => "stream",
            Ok(false) => "json",
            Err(error) => {
                assert_eq!(error.status(), 406);
                "neither"
            }
        }
    }

    #[test]
    fn accept_decides_between_json_stream_and_406() {
        for (accept, expected) in [
            ("text/event-stream", "stream"),
            ("Text/Event-Stream; charset=utf-8", "stream"),
            ("text/event-stream, */*", "stream"),
            ("application/json, text/event-stream", "stream"),
            ("application/json, text/event-stream;q=0.5", "json"),
            ("text/event-stream;q=0, */*", "json"),
            ("text/*", "stream"),
            ("*/*", "json"),
            ("", "json"),
            ("application/*", "json"),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
            ("text/html", "neither"),
            ("image/*, text/event-stream;q=0.0", "neither"),
        ] {
            assert_eq!(choice(accept), expected, "{accept:?}");
        }
        assert_eq!(wants_stream(&HeaderMap::new()), Ok(false));
        assert_eq!(stream_only(&HeaderMap::new()), Ok(()));
    }
}
