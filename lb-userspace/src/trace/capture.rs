//! A trace as a pcapng file (draft-ietf-opsawg-pcapng): each packet as it came and as it left, with what
//! became of it as a comment.
//!
//! A network interface is two interfaces of the file: `eth0` has the packets that came by it, and
//! `eth0 after` what the data path made of them.

use std::{borrow::Cow, fmt::Write as _, io::Write, time::Duration};

use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::{Direction, Frame, Packet};

/// Timestamps in nanoseconds: a negative power of ten.
const NANOSECONDS: u8 = 9;

/// A file that is being written.
pub struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    /// Names of the file's interfaces, by number.
    interfaces: Vec<String>,
}

impl<W: Write> std::fmt::Debug for Capture<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("interfaces", &self.interfaces).finish_non_exhaustive()
    }
}

impl<W: Write> Capture<W> {
    /// Writes the head of the file.
    pub fn new(writer: W) -> Result<Self, PcapError> {
        Ok(Self { writer: PcapNgWriter::new(writer)?, interfaces: Vec::new() })
    }

    /// Writes a packet, whose frames must have their bytes.
    pub fn packet(&mut self, packet: &Packet) -> Result<(), PcapError> {
        let verdict = verdict(packet);
        self.frame(&packet.interface, packet, &packet.before, &verdict)?;
        if let Some(after) = &packet.after {
            self.frame(&format!("{} after", packet.interface), packet, after, &verdict)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        interface: &str,
        packet: &Packet,
        frame: &Frame,
        comment: &str,
    ) -> Result<(), PcapError> {
        let interface_id = self.interface(interface)?;
        let since_1970 = u64::try_from(packet.time.as_nanosecond()).unwrap_or(0);
        let comment = EnhancedPacketOption::Comment(Cow::Borrowed(comment));
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(since_1970),
            original_len: frame.length,
            data: Cow::Owned(bytes(&frame.bytes)),
            options: vec![comment],
        })?;
        Ok(())
    }

    /// The number of an interface of the file, which is described when it is first used.
    fn interface(&mut self, name: &str) -> Result<u32, PcapError> {
        if let Some(number) = self.interfaces.iter().position(|known| known == name) {
            return Ok(number as u32);
        }
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        // No limit: what is left out of a frame its lengths say.
        let description =
            InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
        self.writer.write_pcapng_block(description)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() as u32 - 1)
    }

    /// Hands what is buffered to the file.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.writer.get_mut().flush()
    }
}

/// What became of a packet, in a few words: `known: forwarded to app-01 (web)`.
pub fn verdict(packet: &Packet) -> String {
    let mut text = format!("{}: ", packet.stage);
    let name = packet.backend.as_deref().unwrap_or("a backend");
    // Writing to a `String` cannot fail.
    let _ = match (packet.forwarded, &packet.reason) {
        (_, Some(reason)) => {
            let end = match (packet.action.as_str(), packet.after.is_some()) {
                ("pass", _) => "passed to this host",
                (_, true) => "answered",
                _ => "dropped",
            };
            let about = packet.backend.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
            write!(text, "{end}, {reason}{about}")
        }
        (Some(Direction::To), None) => write!(text, "forwarded to {name}"),
        (Some(Direction::From), None) => write!(text, "forwarded from {name}"),
        (None, None) => write!(text, "forwarded"),
    };
    if let Some(service) = &packet.service {
        let _ = write!(text, " ({service})");
    }
    text
}

/// Bytes from hexadecimal; what is none ends them.
fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().map_while(|digit| digit.to_digit(16)).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| (high * 16 + low) as u8).collect()
}

#[cfg(test)]
mod tests;
