//! `[[node]]` and `[[floating]]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use toml::Spanned;

use super::{Seen, vrrp, whole};
use crate::config::{
    Floating, Node,
    raw::{self, File},
    read::List,
    report::Findings,
    value::address::{Prefix, unfit},
};

/// RFC 9568 §5.2.4.
const DEFAULT_PRIORITY: u32 = 100;

pub(super) fn nodes(file: &File, findings: &mut Findings) -> Vec<Node> {
    let mut names = Seen::default();
    let mut addresses = Seen::default();
    let mut nodes = Vec::new();
    for raw in file.node.items() {
        let node = raw.get_ref();
        if let Some(name) = node.name.get() {
            names.once(
                name.get_ref().clone(),
                name.span(),
                || format!("two nodes have the name `{}`", name.get_ref().0),
                "give each node a name of its own",
                findings,
            );
        }
        if let Some(address) = node.address.get() {
            let ip = address.get_ref().0;
            addresses.once(
                ip,
                address.span(),
                || format!("two nodes have the address {ip}"),
                "write each node's own address",
                findings,
            );
            if let Some(why) = unfit(ip) {
                findings
                    .error(address.span(), format!("{ip} is {why}"))
                    .help("write the address that the node has on its interface");
            }
        }
        if let (Some(name), Some(address), Some(interface)) =
            (node.name.value(), node.address.value(), node.interface.value())
        {
            nodes.push((
                raw.span(),
                Node {
                    name: name.0.clone(),
                    address: address.0,
                    interface: interface.0.clone(),
                    priority: whole(&node.priority, DEFAULT_PRIORITY) as u8,
                },
            ));
        }
    }
    if file.node.is_absent() || file.node.value().is_some_and(List::is_empty) {
        let help = "add a `[[node]]` with `name`, `address` and `interface`";
        if let Some(floating) = file.floating.items().next() {
            let message = "no `[[node]]` that could hold this floating address";
            findings.error(floating.span(), message).help(help);
        } else {
            findings.error_of_file("no `[[node]]`").help(help);
        }
    }
    warn_of_equals(&nodes, findings);
    warn_of_no_key(file, &nodes, findings);
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// Without a key the nodes tell each other nothing, and whoever takes an address over knows none of its
/// connections.
fn warn_of_no_key(file: &File, nodes: &[(Range<usize>, Node)], findings: &mut Findings) {
    let key = file.cluster.value().is_some_and(|cluster| !cluster.secret_file.is_absent());
    if let ([_, (second, _), ..], false) = (nodes, key) {
        findings
            .warning(second.clone(), "there are several nodes, and no key by which they know each other")
            .help(
                "connections break whenever an address moves: write `openssl rand -hex 32` into a file on \
                 each node, and name it in `[cluster]`: `secret_file = \"…\"`",
            );
    }
}

/// Between nodes of the same priority their addresses decide, which nobody remembers.
fn warn_of_equals(nodes: &[(Range<usize>, Node)], findings: &mut Findings) {
    for (at, (place, node)) in nodes.iter().enumerate() {
        let Some((first, other)) = nodes[..at].iter().find(|it| it.1.priority == node.priority)
        else {
            continue;
        };
        findings
            .warning(
                place.clone(),
                format!("`{}` and `{}` have the same priority", other.name, node.name),
            )
            .help("give the node that is preferred a higher `priority`; of equals, the higher address is")
            .label(first.clone(), format!("priority {}", other.priority));
    }
}

/// The floating addresses, for checks of what listens on them.
#[derive(Debug)]
pub(super) struct Held {
    places: BTreeMap<IpAddr, Range<usize>>,
    broadcasts: BTreeMap<IpAddr, Range<usize>>,
    /// Every address could be read.
    complete: bool,
}

impl Held {
    /// The place where a floating address is written.
    pub(super) fn place(&self, address: IpAddr) -> Option<Range<usize>> {
        self.places.get(&address).cloned()
    }

    /// The floating network that `address` is the broadcast of.
    pub(super) fn broadcast(&self, address: IpAddr) -> Option<Range<usize>> {
        self.broadcasts.get(&address).cloned()
    }

    /// Adds an address that is written as itself, without a network; false if it stands there already.
    pub(super) fn add_address(&mut self, address: IpAddr, place: Range<usize>) -> bool {
        self.places.insert(address, place).is_none()
    }

    /// Not every address could be read.
    pub(super) fn miss(&mut self) {
        self.complete = false;
    }

    fn add(&mut self, prefix: &Spanned<Prefix>) {
        let Prefix { address, .. } = *prefix.get_ref();
        self.places.entry(address).or_insert_with(|| prefix.span());
        if let Some(broadcast) = prefix.get_ref().broadcast() {
            self.broadcasts.entry(broadcast.into()).or_insert_with(|| prefix.span());
        }
    }

    /// Reports an address to listen on that no `[[floating]]` and no `[[anycast]]` has.
    pub(super) fn check_listen(
        &self,
        listen: SocketAddr,
        span: Range<usize>,
        key: &str,
        findings: &mut Findings,
    ) {
        let ip = listen.ip();
        if !self.complete || self.place(ip).is_some() {
            return;
        }
        let length = if ip.is_ipv4() { 24 } else { 64 };
        let help = if unfit(ip).is_none() {
            format!(
                "add \"{ip}/{length}\" to the `addresses` of a `[[floating]]`, or correct `{key}`"
            )
        } else {
            format!("write one of the floating addresses in `{key}`; each needs its own entry")
        };
        findings.error(span, format!("no `[[floating]]` holds {ip}")).help(help);
    }
}

pub(super) fn floating(
    file: &File,
    nodes: &[Node],
    findings: &mut Findings,
) -> (Vec<Floating>, Held) {
    let mut vrids = Seen::default();
    let mut seen = Seen::default();
    let mut held = Held {
        places: BTreeMap::new(),
        broadcasts: BTreeMap::new(),
        complete: !file.floating.is_wrong() && !file.floating.value().is_some_and(List::has_wrong),
    };
    let mut instances = Vec::new();
    for raw in file.floating.items() {
        let instance = raw.get_ref();
        if let Some(vrid) = instance.vrid.get() {
            let number = vrid.get_ref().0;
            vrids.once(
                number,
                vrid.span(),
                || format!("two `[[floating]]` have the vrid {number}"),
                "give each `[[floating]]` a vrid of its own, 1 to 255",
                findings,
            );
        }
        match instance.addresses.get() {
            None => held.complete = false,
            Some(list) if list.get_ref().is_empty() => {
                findings
                    .error(list.span(), "`addresses` is empty")
                    .help("write at least one, such as \"192.0.2.100/24\"");
            }
            Some(list) => held.complete &= !list.get_ref().has_wrong(),
        }
        let mut addresses = Vec::new();
        for prefix in instance.addresses.items() {
            check_address(prefix, file, &mut seen, findings);
            held.add(prefix);
            addresses.extend(prefix.get_ref().length.map(|l| (prefix.get_ref().address, l)));
        }
        if let Some(vrid) = instance.vrid.value() {
            instances.push((raw.span(), vrrp::floating(instance, vrid.0 as u8, addresses)));
        }
        vrrp::check(instance, findings);
    }
    vrrp::check_families(&instances, nodes, findings);
    (instances.into_iter().map(|(_, floating)| floating).collect(), held)
}

fn check_address(
    prefix: &Spanned<Prefix>,
    file: &File,
    seen: &mut Seen<IpAddr>,
    findings: &mut Findings,
) {
    let span = prefix.span();
    let prefix = *prefix.get_ref();
    let ip = prefix.address;
    seen.once(
        ip,
        span.clone(),
        || format!("the floating address {ip} stands twice"),
        "remove one of the two",
        findings,
    );
    let unfit = unfit(ip).or_else(|| {
        if prefix.broadcast().map(IpAddr::V4) == Some(ip) {
            Some("the broadcast address of its network")
        } else if prefix.network().map(IpAddr::V4) == Some(ip) {
            Some("the address of the network itself")
        } else {
            None
        }
    });
    if let Some(why) = unfit {
        findings
            .error(span.clone(), format!("{ip} is {why}"))
            .help("write an address that a host can have, with the prefix length of its network");
    }
    let own = |node: &&Spanned<raw::Node>| node.get_ref().address.value().map(|a| a.0) == Some(ip);
    if let Some(node) = file.node.items().find(own)
        && let Some(place) = node.get_ref().address.span()
    {
        findings
            .error(span, format!("the floating address {ip} is also a node's own address"))
            .help("write an address that no host has; the nodes share it")
            .label(place, "the node's address");
    }
}
