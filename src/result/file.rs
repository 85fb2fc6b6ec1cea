//! Reading and writing run files: gzip; a JSON header on the first line, then the columns it announces, little-endian.
//!
//! Small enough to be read by anybody: `zcat RUN | head -1` shows the header, and `columns` in it says what follows.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Header, RunResult};

/// Why a run file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system said no, or the file ends too early.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The first line is not a header of ours.
    #[error("{path}: not a pushlab run file: {source}")]
    Header {
        /// The file.
        path: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The file is of another format.
    #[error("{path}: run file format {found}, this pushlab reads format {FORMAT}: use the version that wrote it")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
    },
    /// The columns are not those of this format.
    #[error("{path}: {what}")]
    Columns {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// What the header says about a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Column {
    name: String,
    r#type: String,
    count: usize,
}

#[derive(Serialize, Deserialize)]
struct FirstLine<H> {
    #[serde(flatten)]
    header: H,
    columns: Vec<Column>,
}

/// A column in memory.
enum Data<'a> {
    U32(&'a Vec<u32>),
    U8(&'a Vec<u8>),
}

/// Every column of the format, in file order.
fn columns(run: &RunResult) -> [(&'static str, Data<'_>); 14] {
    use Data::{U8, U32};
    let (likes, events, arrivals) = (&run.likes, &run.events, &run.arrivals);
    [
        ("likes.due_us", U32(&likes.due_us)),
        ("likes.sent_us", U32(&likes.sent_us)),
        ("likes.answered_us", U32(&likes.answered_us)),
        ("likes.post", U32(&likes.post)),
        ("likes.version", U32(&likes.version)),
        ("likes.outcome", U8(&likes.outcome)),
        ("events.post", U32(&events.post)),
        ("events.version", U32(&events.version)),
        ("events.prev", U32(&events.prev)),
        ("events.likes", U32(&events.likes)),
        ("events.committed_us", U32(&events.committed_us)),
        ("arrivals.session", U32(&arrivals.session)),
        ("arrivals.version", U32(&arrivals.version)),
        ("arrivals.at_us", U32(&arrivals.at_us)),
    ]
}

/// Writes `run` to `path`, whole or not at all (a temporary file beside it, then a rename).
///
/// # Errors
/// [`FileError::Io`].
pub fn write(path: &Path, run: &RunResult) -> Result<(), FileError> {
    let io = |source| FileError::Io { path: path.display().to_string(), source };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let mut out = BufWriter::new(GzEncoder::new(file, Compression::fast()));
    write_to(&mut out, run).map_err(io)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?.finish().map_err(io)?;
    // A temporary file is private to its owner; a run file is for everybody who may see the folder.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

fn write_to(out: &mut impl Write, run: &RunResult) -> std::io::Result<()> {
    let columns = columns(run);
    let described = columns.iter().map(|(name, data)| {
        let (r#type, count) = match data {
            Data::U32(values) => ("u32", values.len()),
            Data::U8(values) => ("u8", values.len()),
        };
        Column { name: (*name).into(), r#type: r#type.into(), count }
    });
    let first = FirstLine { header: &run.header, columns: described.collect() };
    serde_json::to_writer(&mut *out, &first)?;
    out.write_all(b"\n")?;
    for (_, data) in columns {
        match data {
            Data::U32(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))?,
            Data::U8(values) => out.write_all(values)?,
        }
    }
    out.flush()
}

/// Reads a run file.
///
/// # Errors
/// [`FileError`]: unreadable, cut short, not ours, or of another format.
pub fn read(path: &Path) -> Result<RunResult, FileError> {
    let io = |source| FileError::Io { path: path.display().to_string(), source };
    let file = File::open(path).map_err(io)?;
    let mut input = BufReader::with_capacity(1 << 16, MultiGzDecoder::new(BufReader::new(file)));
    read_from(&mut input, &path.display().to_string())
}

/// Only the header of a run file: quick, without its columns.
///
/// # Errors
/// As [`read`].
pub fn read_header(path: &Path) -> Result<Header, FileError> {
    let io = |source| FileError::Io { path: path.display().to_string(), source };
    let file = File::open(path).map_err(io)?;
    let mut input = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    Ok(read_first_line(&mut input, &path.display().to_string())?.header)
}

fn read_first_line(input: &mut impl BufRead, path: &str) -> Result<FirstLine<Header>, FileError> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).map_err(|source| FileError::Io { path: path.into(), source })?;
    let header = |source| FileError::Header { path: path.into(), source };
    let value: serde_json::Value = serde_json::from_slice(&line).map_err(header)?;
    let found = value.get("format").and_then(serde_json::Value::as_u64);
    match found {
        Some(found) if found != u64::from(FORMAT) => {
            Err(FileError::Format { path: path.into(), found: u32::try_from(found).unwrap_or(u32::MAX) })
        }
        _ => serde_json::from_value(value).map_err(header),
    }
}

fn read_from(input: &mut impl BufRead, path: &str) -> Result<RunResult, FileError> {
    let first = read_first_line(input, path)?;
    let mut run = RunResult { header: first.header, ..RunResult::default() };
    let wrong = |what: String| FileError::Columns { path: path.into(), what };
    let expected: Vec<_> = columns(&run).iter().map(|(name, _)| *name).collect();
    let found: Vec<_> = first.columns.iter().map(|column| column.name.as_str()).collect();
    if expected != found {
        return Err(wrong(format!("its columns are {found:?}, format {FORMAT} has {expected:?}")));
    }
    for column in &first.columns {
        let io = |source| FileError::Io { path: path.into(), source };
        match (column.name.as_str(), column.r#type.as_str()) {
            ("likes.outcome", "u8") => run.likes.outcome = read_bytes(input, column.count).map_err(io)?,
            (name, "u32") if let Some(target) = target(&mut run, name) => {
                *target = read_u32(input, column.count).map_err(io)?;
            }
            (name, other) => return Err(wrong(format!("column {name} has type {other}"))),
        }
    }
    let mut rest = [0];
    match input.read(&mut rest) {
        Ok(0) => check_lengths(&run).map_err(wrong).map(|()| run),
        Ok(_) => Err(wrong("more bytes than its columns hold".into())),
        Err(source) => Err(FileError::Io { path: path.into(), source }),
    }
}

fn target<'a>(run: &'a mut RunResult, name: &str) -> Option<&'a mut Vec<u32>> {
    let (likes, events, arrivals) = (&mut run.likes, &mut run.events, &mut run.arrivals);
    Some(match name {
        "likes.due_us" => &mut likes.due_us,
        "likes.sent_us" => &mut likes.sent_us,
        "likes.answered_us" => &mut likes.answered_us,
        "likes.post" => &mut likes.post,
        "likes.version" => &mut likes.version,
        "events.post" => &mut events.post,
        "events.version" => &mut events.version,
        "events.prev" => &mut events.prev,
        "events.likes" => &mut events.likes,
        "events.committed_us" => &mut events.committed_us,
        "arrivals.session" => &mut arrivals.session,
        "arrivals.version" => &mut arrivals.version,
        "arrivals.at_us" => &mut arrivals.at_us,
        _ => return None,
    })
}

/// Reads without trusting `count` for the first allocation: a damaged header must not ask for all memory.
fn read_bytes(input: &mut impl Read, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(count as u64).read_to_end(&mut bytes)?;
    if bytes.len() == count { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

fn read_u32(input: &mut impl Read, count: usize) -> std::io::Result<Vec<u32>> {
    let mut values = Vec::new();
    let mut left = count;
    while left > 0 {
        let some = left.min(1 << 16);
        let bytes = read_bytes(input, some * 4)?;
        values.extend(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)));
        left -= some;
    }
    Ok(values)
}

/// Columns of one table have one length, and indexes point at something.
fn check_lengths(run: &RunResult) -> Result<(), String> {
    for table in ["likes.", "events.", "arrivals."] {
        let mut lengths: Vec<_> = columns(run).iter().filter(|(name, _)| name.starts_with(table)).map(length).collect();
        lengths.dedup();
        if lengths.len() > 1 {
            return Err(format!("the columns {table}* have different lengths: {lengths:?}"));
        }
    }
    let posts = run.header.posts.len();
    let sessions = run.header.sessions.len();
    let beyond = |values: &[u32], limit: usize| values.iter().any(|value| *value as usize >= limit);
    if run.header.initial.len() != posts || run.header.finals.len() != posts {
        return Err("initial and final states are not one per post".into());
    }
    if beyond(&run.likes.post, posts)
        || beyond(&run.events.post, posts)
        || run.header.sessions.iter().any(|s| s.post as usize >= posts)
        || beyond(&run.arrivals.session, sessions)
    {
        return Err("an entry points to a post or session that is not there".into());
    }
    Ok(())
}

fn length((_, data): &(&'static str, Data<'_>)) -> usize {
    match data {
        Data::U32(values) => values.len(),
        Data::U8(values) => values.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::synthetic;

    #[test]
    fn a_run_survives_writing_and_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.run.gz");
        let run = synthetic::good();
        write(&path, &run).unwrap();
        assert_eq!(read(&path).unwrap(), run);
        assert_eq!(read_header(&path).unwrap(), run.header);
    }

    #[test]
    fn a_cut_file_another_format_and_noise_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.run.gz");
        write(&path, &synthetic::good()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for keep in [0, 5, whole.len() / 2, whole.len() - 9] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            assert!(read(&path).is_err(), "{keep} of {} bytes", whole.len());
        }
        std::fs::write(&path, b"not gzip at all").unwrap();
        assert!(read(&path).is_err());
        let mut other = synthetic::good();
        other.header.format = FORMAT + 1;
        write(&path, &other).unwrap();
        assert!(matches!(read(&path), Err(FileError::Format { found, .. }) if found == FORMAT + 1));
    }

    #[test]
    fn entries_that_point_nowhere_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.run.gz");
        let mut run = synthetic::good();
        run.arrivals.session[0] = 1000;
        write(&path, &run).unwrap();
        assert!(matches!(read(&path), Err(FileError::Columns { .. })));
    }
}
