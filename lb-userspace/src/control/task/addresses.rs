//! The floating addresses, as far as this node should hold them: always, if it is alone; if there are
//! several nodes, while VRRP says so.

use std::{collections::BTreeSet, future::pending, net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    config::Config,
    events::{Kind, Note},
    vrrp::{
        HeldAddress, Holder, HolderState,
        router::{Leases, Overview, Released, Router, Setup},
    },
};

/// How long the thread of VRRP may take to say how it stands.
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds the addresses while this node is the one that should.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    who: Option<Who>,
    state: Option<watch::Receiver<HolderState>>,
    known: Vec<HeldAddress>,
    /// What the thread of VRRP has told.
    told: Vec<Note>,
    /// What that thread knows of [`Addresses::set_may_preempt`].
    may_preempt: Option<bool>,
}

/// Who decides.
#[derive(Debug)]
enum Who {
    /// Nobody: this node is alone.
    Alone(Holder),
    /// VRRP.
    Shared(Router, mpsc::Receiver<Note>),
}

impl Addresses {
    /// Starts VRRP if there are several nodes; it takes part from [`Addresses::follow`] on. If an
    /// earlier daemon held the addresses until a moment ago, this one does from now on.
    pub(super) async fn prepare(
        &mut self,
        config: &Config,
        node: &str,
        leases: Arc<dyn Leases>,
    ) -> anyhow::Result<()> {
        if !config.is_shared() || config.floating.is_empty() {
            return Ok(());
        }
        let setup = Setup::new(config, node).context("find this node in the configuration")?;
        let (router, notes) = Router::start(setup, leases).await?;
        self.go_on(router, notes);
        Ok(())
    }

    /// Goes on with VRRP that has been started.
    pub(super) fn go_on(&mut self, router: Router, notes: mpsc::Receiver<Note>) {
        self.may_preempt = None;
        self.state = Some(router.holder());
        self.who = Some(Who::Shared(router, notes));
    }

    /// Takes, changes or gives up addresses, so that they are those of the configuration, as far as
    /// `node` should hold them. `leases` are for a VRRP that has to be started.
    pub(super) async fn follow(
        &mut self,
        config: &Config,
        node: &str,
        leases: Arc<dyn Leases>,
    ) -> anyhow::Result<()> {
        let shared = config.is_shared();
        if self.who.as_ref().is_some_and(|who| matches!(who, Who::Shared(..)) != shared) {
            // Another node has come into the configuration, or the last other one has gone.
            if let Some(Who::Shared(router, _)) = self.who.take() {
                router.stop().await;
            }
            self.who = None;
            self.known.clear();
        }
        if shared && self.who.is_none() {
            self.prepare(config, node, Arc::clone(&leases)).await?;
        }
        match &self.who {
            Some(Who::Shared(router, _)) => {
                if let Some(setup) = Setup::new(config, node) {
                    router.configure(setup).await;
                }
                router.begin().await;
            }
            Some(Who::Alone(holder)) => holder.set_addresses(all(config)).await,
            None if !shared && !config.floating.is_empty() => {
                leases.keep(&[])?;
                let interface = config.node(node).map(|node| node.interface.clone());
                let holder = Holder::start(interface.unwrap_or_default(), all(config))?;
                self.state = Some(holder.state());
                self.who = Some(Who::Alone(holder));
            }
            None => {}
        }
        Ok(())
    }

    /// Returns when there is news of the addresses.
    pub(super) async fn changed(&mut self) {
        let notes = match &mut self.who {
            Some(Who::Shared(_, notes)) => Some(notes),
            _ => None,
        };
        tokio::select! {
            true = moved(self.state.as_mut()) => {}
            Some(note) = told(notes) => self.told.push(note),
            else => pending().await,
        }
    }

    /// What has changed since the last call.
    pub(super) fn news(&mut self) -> Vec<Note> {
        let mut notes = std::mem::take(&mut self.told);
        if let Some(Who::Shared(_, more)) = &mut self.who {
            notes.extend(std::iter::from_fn(|| more.try_recv().ok()));
        }
        let Some(state) = &mut self.state else { return notes };
        let state = state.borrow_and_update().clone();
        for now in &state.addresses {
            let before = self.known.iter().find(|known| known.address == now.address);
            notes.extend(changes(before, now, &state.interface));
        }
        for gone in self.known.iter().filter(|known| known.held) {
            if !state.addresses.iter().any(|now| now.address == gone.address) {
                let message = format!("{} is off {}", gone.address, state.interface);
                notes.push(Note::new(Kind::Address, message));
            }
        }
        self.known = state.addresses;
        notes
    }

    /// The addresses that are held.
    pub(super) fn held(&self) -> BTreeSet<IpAddr> {
        self.known.iter().filter(|known| known.held).map(|known| known.address).collect()
    }

    /// Whether any address is held.
    pub(super) fn holds(&self) -> bool {
        self.known.iter().any(|known| known.held)
    }

    /// What is known of an address, if this node should hold it.
    pub(super) fn get(&self, address: IpAddr) -> Option<&HeldAddress> {
        self.known.iter().find(|known| known.address == address)
    }

    /// Advertises another priority from now on.
    pub(super) async fn set_priority(&self, priority: u8) {
        if let Some(Who::Shared(router, _)) = &self.who {
            router.set_priority(priority).await;
        }
    }

    /// Whether this node may take the addresses from one that serves.
    pub(super) async fn set_may_preempt(&mut self, may: bool) {
        if let Some(Who::Shared(router, _)) = &self.who
            && self.may_preempt.replace(may) != Some(may)
        {
            router.set_may_preempt(may).await;
        }
    }

    /// How VRRP stands; none if this node is alone.
    pub(super) async fn overview(&self) -> Option<Overview> {
        let Some(Who::Shared(router, _)) = &self.who else { return None };
        let overview = match timeout(PATIENCE, router.overview()).await {
            Ok(Ok(overview)) => return Some(overview),
            Ok(Err(error)) => format!("{error:#}; restart ballast"),
            Err(_) => "the thread of VRRP does not answer".to_owned(),
        };
        Some(Overview { instances: Vec::new(), problems: vec![overview] })
    }

    /// Hands the addresses over; none if this node is alone. It may take some seconds, so it is done
    /// elsewhere.
    pub(super) fn release(
        &self,
    ) -> Option<impl Future<Output = anyhow::Result<Vec<Released>>> + 'static> {
        let Some(Who::Shared(router, _)) = &self.who else { return None };
        let router = router.clone();
        Some(async move { router.release().await })
    }

    /// Ends: with others, the addresses are handed over; alone, they stay.
    pub(super) async fn stop(&mut self) {
        if let Some(Who::Shared(router, _)) = &self.who {
            router.stop().await;
        }
    }
}

/// Whether something has changed; false if nothing will any more.
async fn moved(state: Option<&mut watch::Receiver<HolderState>>) -> bool {
    match state {
        Some(state) => state.changed().await.is_ok(),
        None => false,
    }
}

async fn told(notes: Option<&mut mpsc::Receiver<Note>>) -> Option<Note> {
    notes?.recv().await
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
