//! Puts the program on the interfaces that need it: the node's own, and those that lead to backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::Task;
use crate::{
    dataplane::{AttachMode, Attachment},
    events::Kind,
};

/// Interfaces with the program, by index.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    done: BTreeMap<u32, AttachMode>,
    /// Not tried again before the next tick.
    failed: BTreeSet<u32>,
    /// Since when nothing needs the program there.
    idle: BTreeMap<u32, Duration>,
}

/// An interface that nothing has needed for so long loses the program. A route that flaps must not
/// take it away from packets that are on their way.
const IDLE_FOR: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

impl Attachments {
    /// Interfaces that have the program of this daemon already.
    pub(super) fn adopt(&mut self, attachments: &[Attachment]) {
        self.done.extend(attachments.iter().map(|it| (it.ifindex, it.mode)));
    }

    /// Whether the program is on an interface.
    pub(super) fn has(&self, ifindex: u32) -> bool {
        self.done.contains_key(&ifindex)
    }

    /// Lets what failed be tried again.
    pub(super) fn retry(&mut self) {
        self.failed.clear();
    }
}

impl Task {
    /// Puts the program on the node's interface at the start, when an error is still the operator's
    /// to see.
    pub(super) async fn attach_first(&mut self, interface: &str) -> anyhow::Result<()> {
        let ifindex = if_nametoindex(interface).with_context(|| {
            format!("find interface {interface}: `ip link` lists those that there are")
        })?;
        self.attach(interface.to_owned(), ifindex).await
    }

    /// Puts the program where it is missing: on interfaces that next hops have begun to name, and
    /// on the node's own if it has been made anew.
    pub(super) async fn attach_where_needed(&mut self) {
        for ifindex in self.needed_interfaces() {
            if self.attachments.done.contains_key(&ifindex)
                || self.attachments.failed.contains(&ifindex)
            {
                continue;
            }
            // It may be gone again; whoever told of it will say so.
            let Ok(name) = if_indextoname(ifindex).map(CString::into_string) else { continue };
            let name = name.unwrap_or_else(|_| format!("number {ifindex}"));
            let result = self.attach(name.clone(), ifindex).await;
            if result.is_err() {
                self.attachments.failed.insert(ifindex);
            }
            let wrong = result.err().map(|error| format!("{error:#}"));
            self.fault(&format!("interface {name}"), wrong);
        }
    }

    /// The node's own interface, and those that lead to backends.
    fn needed_interfaces(&self) -> BTreeSet<u32> {
        let hops = self.state.next_hops().values().map(|hop| hop.ifindex);
        let own = self.interface().ok().and_then(|name| if_nametoindex(name.as_str()).ok());
        hops.chain(own).collect()
    }

    /// Takes the program off interfaces that no next hop has named for some time: backends have moved,
    /// or an earlier daemon served others.
    pub(super) async fn detach_where_idle(&mut self, now: Duration) {
        // Before all next hops are known, no interface is known to be idle.
        if !*self.settled.borrow() {
            return;
        }
        let needed = self.needed_interfaces();
        self.attachments.idle.retain(|ifindex, _| !needed.contains(ifindex));
        for &ifindex in self.attachments.done.keys().filter(|ifindex| !needed.contains(ifindex)) {
            self.attachments.idle.entry(ifindex).or_insert(now);
        }
        let over = |(_, since): &(&u32, &Duration)| now.saturating_sub(**since) >= IDLE_FOR;
        let over: Vec<u32> =
            self.attachments.idle.iter().filter(over).map(|(&ifindex, _)| ifindex).collect();
        for ifindex in over {
            let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
            // Of an interface that is gone, the name is empty.
            let name = name.filter(|name| !name.is_empty());
            let name = name.unwrap_or_else(|| format!("number {ifindex}"));
            let kernel = Arc::clone(&self.kernel);
            let result = tokio::task::spawn_blocking(move || kernel.detach(ifindex)).await;
            let result = result.map_err(anyhow::Error::from).flatten();
            let wrong = result.err().map(|error| format!("take the program off: {error:#}"));
            if wrong.is_none() {
                self.attachments.done.remove(&ifindex);
                self.attachments.idle.remove(&ifindex);
                let message = format!("the program is off {name}: it leads to no backend any more");
                self.note(Kind::Attach, message);
            }
            self.fault(&format!("interface {name}"), wrong);
        }
    }

    async fn attach(&mut self, interface: String, ifindex: u32) -> anyhow::Result<()> {
        let kernel = Arc::clone(&self.kernel);
        let name = interface.clone();
        let mode = tokio::task::spawn_blocking(move || kernel.attach(&name, ifindex))
            .await?
            .with_context(|| format!("attach to {interface}"))?;
        self.attachments.done.insert(ifindex, mode);
        let mode = match mode {
            AttachMode::Driver => "driver",
            AttachMode::Generic => "generic",
        };
        self.note(Kind::Attach, format!("the program runs on {interface}, in {mode} mode"));
        Ok(())
    }
}
