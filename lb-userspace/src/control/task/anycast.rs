//! The anycast addresses: on the loopback interface of every node, while that node can serve them.
//!
//! A routing daemon beside this one tells the routers what is there (`docs/anycast.md`). So an address that
//! is taken off is one that the routers stop sending here.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::sync::watch;

use super::Task;
use crate::{
    clock,
    control::state::ServiceState,
    events::{Kind, Note},
    vrrp::{Holder, HolderState},
};

/// Where they are: nobody is asked for them there.
pub(in crate::control) const INTERFACE: &str = "lo";

/// Holds them while this node should.
#[derive(Debug, Default)]
pub(super) struct Anycast {
    holder: Option<(Holder, watch::Receiver<HolderState>)>,
    /// What was wanted last, and why not where it was not.
    wanted: BTreeMap<IpAddr, Option<String>>,
    /// When an address could not be served last.
    unfit_at: BTreeMap<IpAddr, Duration>,
}

/// How long an address that was withdrawn must be fit before it is offered again: the probes of all backends
/// have their say, so that this node chooses backends as the others do.
const RETURN_AFTER: Duration = Duration::from_secs(3);

impl Anycast {
    /// Why an address is not offered, given why it cannot be served.
    fn damp(&mut self, address: IpAddr, why_not: Option<String>, now: Duration) -> Option<String> {
        if why_not.is_some() {
            self.unfit_at.insert(address, now);
            return why_not;
        }
        // One that was never withdrawn is offered at once.
        let withdrawn = self.wanted.get(&address).is_some_and(Option::is_some);
        let unfit_at = self.unfit_at.get(&address).filter(|_| withdrawn);
        unfit_at
            .is_some_and(|unfit_at| now < *unfit_at + RETURN_AFTER)
            .then(|| "it has been fit again only for a moment".to_owned())
    }

    /// Puts addresses on and takes them off. Tells what has changed.
    async fn follow(
        &mut self,
        wanted: BTreeMap<IpAddr, Option<String>>,
    ) -> anyhow::Result<Vec<Note>> {
        if self.wanted == wanted || (wanted.is_empty() && self.holder.is_none()) {
            return Ok(Vec::new());
        }
        let on = wanted.iter().filter(|(_, problem)| problem.is_none());
        let addresses = on.map(|(&address, _)| (address, host_prefix(address))).collect();
        if let Some((holder, _)) = &self.holder {
            holder.set_addresses(addresses).await;
        } else {
            let holder = Holder::start(INTERFACE.to_owned(), addresses)?;
            let state = holder.state();
            self.holder = Some((holder, state));
        }
        let notes = changes(&self.wanted, &wanted);
        self.wanted = wanted;
        Ok(notes)
    }

    /// Takes them off: this node ends, and others serve.
    pub(super) async fn release(&mut self) -> Vec<Note> {
        let Some((holder, _)) = self.holder.take() else { return Vec::new() };
        let gone = changes(&std::mem::take(&mut self.wanted), &BTreeMap::new());
        match holder.release().await {
            Ok(()) => gone,
            Err(error) => {
                vec![Note::new(Kind::Fault, "anycast addresses").because(format!("{error:#}"))]
            }
        }
    }

    /// Each address, whether it is on, and what is wrong where it is not.
    pub(super) fn list(&self) -> impl Iterator<Item = (IpAddr, bool, Option<String>)> {
        let state =
            self.holder.as_ref().map(|(_, state)| state.borrow().clone()).unwrap_or_default();
        self.wanted.iter().map(move |(&address, why_not)| {
            let held = state.addresses.iter().find(|held| held.address == address);
            let problem = why_not.clone().or_else(|| held.and_then(|held| held.problem.clone()));
            (address, held.is_some_and(|held| held.held), problem)
        })
    }
}

impl Task {
    /// Offers the addresses that this node can serve.
    pub(super) async fn follow_anycast(&mut self) {
        if !*self.settled.borrow() {
            return;
        }
        let attached = self.is_attached();
        let now = clock::monotonic();
        let mut wanted = BTreeMap::new();
        for &address in &self.config.anycast {
            let services = self.state.services();
            let services = services.iter().filter(|it| it.config.listen.ip() == address);
            let why_not = self.anycast.damp(address, why_not(attached, services), now);
            wanted.insert(address, why_not);
        }
        match self.anycast.follow(wanted).await {
            Ok(notes) => {
                self.tell(notes);
                self.fault("anycast addresses", None);
            }
            Err(error) => self.fault("anycast addresses", Some(format!("{error:#}"))),
        }
    }
}

/// Why this node must not offer an address; none if it may.
fn why_not<'a>(attached: bool, services: impl Iterator<Item = &'a ServiceState>) -> Option<String> {
    if !attached {
        return Some("the program is not on its interface".to_owned());
    }
    // In panic all serve, because none is fit.
    let serves =
        |it: &ServiceState| !it.panic && it.records.iter().any(|record| record.verdict.serving);
    // An address goes to another node as a whole, so one service that cannot serve here is enough: it may
    // serve there. If it serves nowhere, no node has the address, and routers refuse its clients at once.
    let unfit = services.filter(|it| !serves(it)).map(|it| it.config.name.as_str());
    let unfit: Vec<&str> = unfit.collect();
    (!unfit.is_empty()).then(|| format!("no backend of {} is fit", unfit.join(", ")))
}

fn changes(
    before: &BTreeMap<IpAddr, Option<String>>,
    now: &BTreeMap<IpAddr, Option<String>>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    for (address, why_not) in now {
        match (before.get(address), why_not) {
            (Some(None), None) => {}
            (_, None) => {
                let message = format!("{address} is on {INTERFACE}: this node serves it");
                notes.push(Note::new(Kind::Address, message));
            }
            (Some(Some(old)), Some(why)) if old == why => {}
            (_, Some(why)) => {
                let message = format!("{address} is off {INTERFACE}: other nodes are to serve it");
                notes.push(Note::new(Kind::Address, message).because(why.clone()));
            }
        }
    }
    for (address, _) in
        before.iter().filter(|(address, why)| why.is_none() && !now.contains_key(address))
    {
        notes.push(Note::new(Kind::Address, format!("{address} is off {INTERFACE}")));
    }
    notes
}

pub(super) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_withdrawn_comes_back_after_a_while() {
        let address: IpAddr = "198.51.100.80".parse().unwrap();
        let mut anycast = Anycast::default();
        let s = Duration::from_secs;
        let mut at = |seconds: u64, unfit: bool| {
            let why = anycast.damp(address, unfit.then(|| "why".to_owned()), s(seconds));
            anycast.wanted.insert(address, why.clone());
            why.is_none()
        };
        assert!(at(10, false), "at the start it is offered at once");
        assert!(!at(11, true));
        assert!(!at(12, false));
        assert!(!at(13, true));
        assert!(!at(15, false));
        assert!(at(16, false));
        assert!(at(17, false));
    }

    #[test]
    fn what_changes_is_told_once() {
        let address: IpAddr = "198.51.100.80".parse().unwrap();
        let told = |before: &[Option<&str>], now: &[Option<&str>]| {
            let map = |of: &[Option<&str>]| {
                of.iter().map(|why| (address, why.map(str::to_owned))).collect::<BTreeMap<_, _>>()
            };
            let notes = changes(&map(before), &map(now));
            notes.into_iter().map(|note| note.message).collect::<Vec<_>>()
        };
        let on = "198.51.100.80 is on lo: this node serves it";
        let off = "198.51.100.80 is off lo: other nodes are to serve it";
        assert_eq!(told(&[], &[None]), [on]);
        assert!(told(&[None], &[None]).is_empty());
        assert_eq!(told(&[None], &[Some("why")]), [off]);
        assert!(told(&[Some("why")], &[Some("why")]).is_empty());
        assert_eq!(told(&[Some("why")], &[None]), [on]);
        assert_eq!(told(&[None], &[]), ["198.51.100.80 is off lo"]);
        assert!(told(&[Some("why")], &[]).is_empty());
    }
}
