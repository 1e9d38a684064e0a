//! A download in flight: a long answer over one connection, every byte of which is compared.

use std::{
    fs::File,
    io::{BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// Bytes a second, in the words of the app servers. With 200 MB it is in flight while something happens and for
/// some seconds after it.
const RATE: &str = "30m";

/// A download is broken if nothing comes for so long.
const LIMIT: Duration = Duration::from_secs(10);

/// A download that has been asked for.
pub(super) struct Download {
    stream: TcpStream,
}

impl Download {
    pub(super) fn ask(target: SocketAddr) -> Result<Self> {
        let mut stream =
            TcpStream::connect_timeout(&target, LIMIT).context("connect for the download")?;
        stream.set_read_timeout(Some(LIMIT))?;
        let request =
            format!("GET /big?rate={RATE} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context("ask for the download")?;
        Ok(Self { stream })
    }

    /// Reads it to its end, and compares it with the file that it is.
    pub(super) fn read(self, file: &Path) -> Result<()> {
        let file = File::open(file).with_context(|| format!("open {}", file.display()))?;
        let mut stream = BufReader::with_capacity(1 << 16, self.stream);
        skip_head(&mut stream)?;
        compare(stream, BufReader::with_capacity(1 << 16, file))
    }
}

/// Reads the head of an answer, which must be a good one.
fn skip_head(stream: &mut impl Read) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("read the head of the download")?;
        head.extend(byte);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "the download is refused");
    Ok(())
}

/// Whether two readers give the same.
fn compare(mut body: impl Read, mut file: impl Read) -> Result<()> {
    let (mut piece, mut wanted) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0_u64;
    loop {
        let length = body.read(&mut piece).with_context(|| format!("read after byte {at}"))?;
        if length == 0 {
            break;
        }
        file.read_exact(&mut wanted[..length])
            .with_context(|| format!("more than the file's {at} bytes"))?;
        ensure!(piece[..length] == wanted[..length], "other bytes after byte {at}");
        at += length as u64;
    }
    ensure!(file.read(&mut wanted)? == 0, "the download ends after {at} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_file_is_a_good_download() {
        assert!(compare(&b"abc"[..], &b"abc"[..]).is_ok());
        for (body, file, what) in
            [("ab", "abc", "ends after 2"), ("abc", "ab", "more than"), ("abd", "abc", "other")]
        {
            let error = compare(body.as_bytes(), file.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains(what), "{error:#}");
        }
    }

    #[test]
    fn an_error_page_is_no_download() {
        let mut body = &b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nxyz"[..];
        skip_head(&mut body).unwrap();
        assert_eq!(body, b"xyz");
        assert!(skip_head(&mut &b"HTTP/1.1 502 Bad\r\n\r\n"[..]).is_err());
        assert!(skip_head(&mut &b"HTTP/1.1 200 OK\r\n"[..]).is_err());
    }
}
