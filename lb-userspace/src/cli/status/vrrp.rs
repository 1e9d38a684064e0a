//! The part of `ballast status` about VRRP.

use std::fmt::Write as _;

use crate::vrrp::router::{InstanceStatus, PeerStatus};

/// A line for each virtual router, and one for each other router that has been heard.
pub(super) fn rows(instances: &[InstanceStatus]) -> Vec<Vec<String>> {
    instances
        .iter()
        .flat_map(|it| std::iter::once(own(it)).chain(it.peers.iter().map(peer)))
        .collect()
}

fn own(instance: &InstanceStatus) -> Vec<String> {
    let InstanceStatus { vrid, role, version, priority, configured_priority, .. } = instance;
    // Writing to a `String` cannot fail.
    let mut more = format!("priority {priority}");
    if priority != configured_priority {
        let _ = write!(more, " (configured: {configured_priority})");
    }
    let _ = write!(more, ", version {version}, every {} ms", instance.interval_ms);
    let _ = write!(more, ", {} adverts sent, {} heard", instance.sent, instance.received);
    let refused: Vec<_> =
        instance.refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
    if !refused.is_empty() {
        let _ = write!(more, ", refused: {}", refused.join(", "));
    }
    if let Some(last) = &instance.last_refused {
        let _ = write!(more, " (last: {last})");
    }
    vec![format!("vrid {vrid}"), role.clone(), more]
}

fn peer(peer: &PeerStatus) -> Vec<String> {
    let PeerStatus { node, address, priority, .. } = peer;
    let name =
        node.as_ref().map_or_else(|| address.to_string(), |name| format!("{name} {address}"));
    let mut more = match priority {
        0 => "has left".to_owned(),
        priority => format!("priority {priority}"),
    };
    let _ = write!(
        more,
        ", every {} ms, last heard {} ms ago, checksum {}",
        peer.interval_ms, peer.last_advert_ms, peer.checksum
    );
    if peer.other_addresses {
        more += ", OTHER ADDRESSES";
    }
    vec![String::new(), name, more]
}
