//! What an open and unused connection costs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use xtask::lab::Lab;

use super::{
    cpu,
    fronts::{Front, Fronts},
};

/// For so long they have been unused.
const UNUSED: Duration = Duration::from_secs(10);

/// Bytes that each of so many connections adds to a proxy's memory. Each has had one request, and has been
/// unused since.
pub(super) fn of_idle(
    lab: &Lab,
    fronts: &Fronts,
    front: Front,
    count: usize,
) -> anyhow::Result<f64> {
    let process = fronts.process(front)?;
    // The first ones need what all will share.
    let first = open(lab, front, 50)?;
    thread::sleep(UNUSED);
    let before = resident(process)?;
    let more = open(lab, front, count)?;
    thread::sleep(UNUSED);
    let grown = resident(process)? - before;
    drop((first, more));
    Ok(grown / count as f64)
}

fn open(lab: &Lab, front: Front, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let address = front.address(false);
    let open = move || -> anyhow::Result<Vec<TcpStream>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = TcpStream::connect(address).context("connect")?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").context("ask")?;
            let mut answer = [0; 1024];
            let length = stream.read(&mut answer).context("read an answer")?;
            ensure!(answer[..length].starts_with(b"HTTP/1.1 200"), "the answer is another one");
            connections.push(stream);
        }
        Ok(connections)
    };
    lab.host("client").within(open)?
}

/// Resident memory of a process and its children, in bytes.
pub(super) fn resident(process: Pid) -> anyhow::Result<f64> {
    let file = format!("/proc/{process}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let mut sum = kilobytes.with_context(|| format!("find VmRSS in {file}"))? * 1024.0;
    for child in cpu::children(process)? {
        sum += resident(child)?;
    }
    Ok(sum)
}
