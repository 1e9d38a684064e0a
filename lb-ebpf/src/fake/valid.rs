//! Whether a frame is one that a receiver would take: lengths and checksums, each computed in full and
//! by other code than that under test.

use std::{format, string::String, vec::Vec};

use crate::tunnel::GUE_PORT;

/// Panics unless every length and checksum in the frame is right.
///
/// # Panics
///
/// Names the first mistake, with the bytes.
#[track_caller]
pub fn assert_valid(frame: &[u8]) {
    if let Err(mistake) = check(frame) {
        panic!("{mistake} in {frame:02x?}");
    }
}

/// The first mistake in a frame.
pub fn check(frame: &[u8]) -> Result<(), String> {
    let mut at = 12;
    let mut ether_type = word(frame, at)?;
    while matches!(ether_type, 0x8100 | 0x88a8) {
        at += 4;
        ether_type = word(frame, at)?;
    }
    match ether_type {
        0x0800 => ipv4(&frame[at + 2..], false),
        0x86dd => ipv6(&frame[at + 2..], false),
        _ => Ok(()),
    }
}

/// The sum of RFC 1071, the plain way.
#[must_use]
pub fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    match bytes.get(at..at + 2) {
        Some(pair) => Ok(u16::from_be_bytes([pair[0], pair[1]])),
        None => Err(format!("ends before byte {at}")),
    }
}

fn need(condition: bool, mistake: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(mistake.into()) }
}

/// `quoted`: the packet may end early, as one that an ICMP error quotes.
fn ipv4(packet: &[u8], quoted: bool) -> Result<(), String> {
    need(packet.len() >= 20, "IPv4 header is cut off")?;
    need(packet[0] >> 4 == 4, "IP version is not 4")?;
    let header_len = usize::from(packet[0] & 0xf) * 4;
    need(header_len >= 20 && packet.len() >= header_len, "IPv4 header length is wrong")?;
    need(naive_sum(&packet[..header_len]) == 0xffff, "IPv4 header checksum is wrong")?;
    let total = usize::from(word(packet, 2)?);
    need(total >= header_len, "IPv4 total length is less than the header")?;
    let fragment = word(packet, 6)? & 0x3fff != 0;
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, packet[9]]);
    let payload = within(packet, header_len, total, quoted)?;
    if fragment { Ok(()) } else { carried(packet[9], &pseudo, payload, total - header_len) }
}

fn ipv6(packet: &[u8], quoted: bool) -> Result<(), String> {
    need(packet.len() >= 40, "IPv6 header is cut off")?;
    need(packet[0] >> 4 == 6, "IP version is not 6")?;
    let payload_len = usize::from(word(packet, 4)?);
    let mut pseudo = packet[8..40].to_vec();
    pseudo.extend([0, packet[6]]);
    let payload = within(packet, 40, 40 + payload_len, quoted)?;
    carried(packet[6], &pseudo, payload, payload_len)
}

fn within(packet: &[u8], start: usize, end: usize, quoted: bool) -> Result<&[u8], String> {
    need(quoted || end <= packet.len(), "IP packet is longer than the frame")?;
    Ok(&packet[start..end.min(packet.len())])
}

/// Checks what an IP packet carries; `len` is its length by the IP header.
fn carried(protocol: u8, pseudo: &[u8], bytes: &[u8], len: usize) -> Result<(), String> {
    let whole = bytes.len() == len;
    let sum = |with_pseudo: bool| {
        let mut all = Vec::new();
        if with_pseudo {
            all.extend(pseudo);
            all.extend((len as u16).to_be_bytes());
        }
        all.extend(bytes);
        naive_sum(&all)
    };
    match protocol {
        6 if whole => {
            need(bytes.len() >= 20, "TCP header is cut off")?;
            let header_len = usize::from(bytes[12] >> 4) * 4;
            need((20..=len).contains(&header_len), "TCP data offset is wrong")?;
            need(sum(true) == 0xffff, "TCP checksum is wrong")
        }
        17 if whole => {
            need(bytes.len() >= 8, "UDP header is cut off")?;
            need(usize::from(word(bytes, 4)?) == len, "UDP length is wrong")?;
            let tunnel = word(bytes, 2)? == GUE_PORT;
            let absent = word(bytes, 6)? == 0 && (pseudo.len() == 10 || tunnel);
            need(absent || sum(true) == 0xffff, "UDP checksum is wrong")?;
            match bytes[8..] {
                // Variant 1: an IP header, told by its version.
                [first, ..] if tunnel && first >> 4 == 4 => ipv4(&bytes[8..], false),
                [first, ..] if tunnel && first >> 4 == 6 => ipv6(&bytes[8..], false),
                _ => Ok(()),
            }
        }
        4 if whole => ipv4(bytes, false),
        41 if whole => ipv6(bytes, false),
        1 if whole => {
            need(bytes.len() >= 8, "ICMP header is cut off")?;
            need(sum(false) == 0xffff, "ICMP checksum is wrong")?;
            if matches!(bytes[0], 3 | 11 | 12) { ipv4(&bytes[8..], true) } else { Ok(()) }
        }
        58 if whole => {
            need(bytes.len() >= 8, "ICMPv6 header is cut off")?;
            need(sum(true) == 0xffff, "ICMPv6 checksum is wrong")?;
            if (1..=4).contains(&bytes[0]) { ipv6(&bytes[8..], true) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}
