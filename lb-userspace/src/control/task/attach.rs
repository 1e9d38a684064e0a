//! Puts the program on the interfaces that need it: the node's own, and those that lead to backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    sync::Arc,
};

use anyhow::Context as _;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::Task;
use crate::{dataplane::AttachMode, events::Kind};

/// Interfaces with the program, by index.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    done: BTreeMap<u32, AttachMode>,
    /// Not tried again before the next tick.
    failed: BTreeSet<u32>,
}

impl Attachments {
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
        let hops = self.state.next_hops().values().map(|hop| hop.ifindex);
        let mut wanted: BTreeSet<u32> = hops.collect();
        let own = self.interface().ok().and_then(|name| if_nametoindex(name.as_str()).ok());
        wanted.extend(own);
        for ifindex in wanted {
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
