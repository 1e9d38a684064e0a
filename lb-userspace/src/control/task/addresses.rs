//! The floating addresses, as far as this node should hold them.

use std::{future::pending, net::IpAddr};

use tokio::sync::watch;

use crate::{
    config::Config,
    events::{Kind, Note},
    vrrp::{HeldAddress, Holder, HolderState},
};

/// Holds the addresses while this node is the one that should.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    holder: Option<(Holder, watch::Receiver<HolderState>)>,
    known: Vec<HeldAddress>,
}

impl Addresses {
    /// Takes, changes or gives up addresses, so that they are those of the configuration if `node`
    /// should hold them.
    pub(super) async fn follow(&mut self, config: &Config, node: &str) -> anyhow::Result<()> {
        let holds = config.owner().is_some_and(|owner| owner.name == node);
        let wanted = if holds { all(config) } else { Vec::new() };
        match &self.holder {
            Some((holder, _)) if holds => holder.set_addresses(wanted).await,
            Some(_) => {
                if let Some((holder, _)) = self.holder.take() {
                    holder.release().await?;
                }
                self.known.clear();
            }
            None if holds && !wanted.is_empty() => {
                let interface = config.node(node).map(|node| node.interface.clone());
                let holder = Holder::start(interface.unwrap_or_default(), wanted)?;
                let state = holder.state();
                self.holder = Some((holder, state));
            }
            None => {}
        }
        Ok(())
    }

    /// Returns when there is news of the addresses.
    pub(super) async fn changed(&mut self) {
        if let Some((_, state)) = &mut self.holder
            && state.changed().await.is_ok()
        {
            return;
        }
        pending::<()>().await;
    }

    /// What has changed since the last call.
    pub(super) fn news(&mut self) -> Vec<Note> {
        let Some((_, state)) = &mut self.holder else { return Vec::new() };
        let state = state.borrow_and_update().clone();
        let mut notes = Vec::new();
        for now in &state.addresses {
            let before = self.known.iter().find(|known| known.address == now.address);
            notes.extend(changes(before, now, &state.interface));
        }
        self.known = state.addresses;
        notes
    }

    /// Whether any address is held.
    pub(super) fn holds(&self) -> bool {
        self.known.iter().any(|known| known.held)
    }

    /// What is known of an address, if this node should hold it.
    pub(super) fn get(&self, address: IpAddr) -> Option<&HeldAddress> {
        self.known.iter().find(|known| known.address == address)
    }
}

/// All floating addresses.
pub(super) fn all(config: &Config) -> Vec<(IpAddr, u8)> {
    config.floating.iter().flat_map(|floating| floating.addresses.iter().copied()).collect()
}

fn changes(before: Option<&HeldAddress>, now: &HeldAddress, interface: &str) -> Vec<Note> {
    let mut notes = Vec::new();
    let address = now.address;
    let held = before.is_some_and(|before| before.held);
    if now.held && !held {
        notes.push(Note::new(Kind::Address, format!("{address} is held on {interface}")));
    } else if !now.held && held {
        notes.push(Note::new(Kind::Address, format!("{address} is gone from {interface}")));
    }
    if before.is_some_and(|before| before.restored < now.restored) {
        let message = format!("{address} was taken off {interface} by somebody, and put on again");
        notes.push(Note::new(Kind::Address, message));
    }
    if let Some(mac) = &now.conflict
        && before.is_none_or(|before| before.conflict != now.conflict)
    {
        let message = format!(
            "{address} is claimed by another host, {mac}: find out which, and take it off there"
        );
        notes.push(Note::new(Kind::Fault, message));
    }
    if let Some(problem) = &now.problem
        && before.is_none_or(|before| before.problem != now.problem)
    {
        notes.push(Note::new(Kind::Fault, format!("{address} is not held: {problem}")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let gone = HeldAddress {
            address: "192.0.2.100".parse().unwrap(),
            prefix: 24,
            held: false,
            restored: 0,
            conflict: None,
            problem: None,
        };
        let held = HeldAddress { held: true, ..gone.clone() };
        let messages = |before: Option<&HeldAddress>, now: &HeldAddress| {
            let notes = changes(before, now, "eth0");
            notes.into_iter().map(|note| note.message).collect::<Vec<_>>()
        };
        assert_eq!(messages(None, &held), ["192.0.2.100 is held on eth0"]);
        assert!(messages(Some(&held), &held).is_empty());
        assert_eq!(messages(Some(&held), &gone), ["192.0.2.100 is gone from eth0"]);
        let restored = HeldAddress { restored: 1, ..held.clone() };
        assert!(messages(Some(&held), &restored)[0].contains("put on again"));
        let conflict = HeldAddress { conflict: Some("02:00:00:00:00:09".into()), ..held.clone() };
        assert!(messages(Some(&held), &conflict)[0].contains("02:00:00:00:00:09"));
        assert!(messages(Some(&conflict), &conflict).is_empty());
    }
}
