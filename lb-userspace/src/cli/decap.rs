//! `ballast decap`: takes packets out of tunnels, on a backend.

use std::path::Path;

use super::{
    DecapArgs,
    output::{columns, print},
};
use crate::dataplane::{
    AttachMode,
    decap::{self, PINS, Status},
};

/// Attaches the program, takes it off, or says what it has done.
pub(super) fn decap(args: &DecapArgs) -> anyhow::Result<()> {
    let pins = args.pin_dir.as_deref().unwrap_or(Path::new(PINS));
    let interface = args.interface.as_str();
    if args.detach {
        let line = if decap::detach(pins, interface)? {
            format!("packets in tunnels are taken out on {interface} no longer\n")
        } else {
            format!("nothing was on {interface}\n")
        };
        return Ok(print(&line)?);
    }
    if !args.status {
        decap::attach(pins, interface, &args.from)?;
    }
    let status = decap::status(pins, interface)?;
    if args.json {
        return Ok(print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?);
    }
    Ok(print(&render(&status, args.status))?)
}

fn render(status: &Status, packets: bool) -> String {
    let interface = &status.interface;
    let Some(mode) = status.mode else {
        return format!("nothing is on {interface}: `ballast decap --interface {interface}`\n");
    };
    let mode = match mode {
        AttachMode::Driver => "driver mode",
        AttachMode::Generic => "generic mode (slow: the driver has no XDP)",
    };
    let from: Vec<String> = status.from.iter().map(|&prefix| prefix.into()).collect();
    let from = if from.is_empty() { "anywhere".to_owned() } else { from.join(", ") };
    let mut text = format!("packets in tunnels from {from} are taken out on {interface}, {mode}\n");
    if packets {
        let rows = status.packets.iter().map(|(what, count)| vec![what.clone(), count.to_string()]);
        text.push_str(&columns(&rows.collect::<Vec<_>>(), 2));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_where_and_how_many() {
        let status = Status {
            interface: "eth0".into(),
            mode: Some(AttachMode::Driver),
            from: vec!["192.0.2.11".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            packets: vec![("ip_in_ip".into(), 7), ("other".into(), 1)],
        };
        let text = render(&status, true);
        assert_eq!(
            text,
            "packets in tunnels from 192.0.2.11/32, 2001:db8::/32 are taken out on eth0, driver mode\n  \
             ip_in_ip  7\n  other     1\n"
        );
        assert_eq!(render(&status, false).lines().count(), 1);
        let nothing = Status { mode: None, ..status };
        assert!(render(&nothing, true).contains("nothing is on eth0"));
    }
}
