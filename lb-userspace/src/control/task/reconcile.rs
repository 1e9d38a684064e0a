//! One round: judge, attach, plan, apply.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Task, instant};
use crate::{
    clock,
    config::{self, sizes},
    control::{
        kernel::Kernel,
        plan::{Desired, Planner},
    },
    dataplane::Op,
    events::{Kind, Note},
};

/// Wait after the first failure to write, and the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The longest sleep between two rounds. The tick wakes the task long before.
const IDLE: Duration = Duration::from_mins(1);

impl Task {
    /// Makes the kernel's tables true, and answers when time alone will change something.
    pub(super) async fn reconcile(&mut self) -> Instant {
        let now = clock::monotonic();
        let notes = self.state.judge(now);
        self.tell(notes);
        self.tell_proxy();
        self.want_next_hops();
        for note in self.addresses.news() {
            self.timeline.add(note);
        }
        self.attach_where_needed().await;
        // What a previous daemon left is better than what a new one does not know yet.
        if !self.adopted || self.is_settled(now) {
            self.write(now).await;
        }
        if !*self.settled.borrow() && self.is_settled(now) {
            self.settle().await;
        }
        self.follow_elder().await;
        self.weigh(now).await;
        self.follow_anycast().await;
        let deadlines = [
            self.state.next_deadline(now),
            self.planner.next_deadline(),
            self.retry.map(|(at, _)| at),
            (!*self.settled.borrow()).then_some(self.settle_by),
        ];
        let next = deadlines.into_iter().flatten().filter(|&at| at > now).min();
        instant(next.unwrap_or(now + IDLE))
    }

    pub(super) fn is_settled(&self, now: Duration) -> bool {
        *self.settled.borrow() || now >= self.settle_by || self.state.is_settled()
    }

    /// Takes the floating addresses, now that their services are ready.
    async fn settle(&mut self) {
        self.follow_peers().await;
        // The thread of VRRP waits for this, and must not begin with more than it may do.
        self.addresses.set_may_preempt(self.may_preempt()).await;
        self.follow_addresses().await;
        self.settled.send_replace(true);
    }

    /// Holds the floating addresses that this node should hold.
    pub(super) async fn follow_addresses(&mut self) {
        let leases = self.kernel.leases();
        let result = self.addresses.follow(&self.config, &self.node, leases).await;
        self.fault("floating addresses", result.err().map(|error| format!("{error:#}")));
    }

    /// Asks for the next hops of all backends, those included that still drain.
    fn want_next_hops(&mut self) {
        let of = (self.state.revision(), self.planner.retired());
        if self.hops_wanted_of == Some(of) {
            return;
        }
        self.hops_wanted_of = Some(of);
        let configured = self.state.records().map(|(_, record)| record.config.address.ip());
        let retiring = self.planner.retiring().map(|retiring| retiring.address.ip());
        // What is of connections of another node's proxy goes there.
        let has_proxy = self.state.proxied().next().is_some();
        let nodes = self.config.nodes.iter().filter(|it| has_proxy && it.name != self.node);
        let nodes = nodes.map(|node| node.address);
        let wanted: BTreeSet<IpAddr> = configured.chain(retiring).chain(nodes).collect();
        self.wanted.send_if_modified(|current| {
            let new = *current != wanted;
            if new {
                *current = wanted;
            }
            new
        });
    }

    /// Plans, and applies the plan.
    async fn write(&mut self, now: Duration) {
        let floating = self.config.service_addresses().collect();
        let plan = self.planner.plan(&self.desired(floating), now);
        let problems: Vec<_> = plan.problems.iter().map(ToString::to_string).collect();
        self.fault("tables", (!problems.is_empty()).then(|| problems.join("; ")));
        if plan.ops.is_empty() {
            self.retry = None;
            self.fault("kernel", None);
            return;
        }
        let kernel = Arc::clone(&self.kernel);
        let applied = tokio::task::spawn_blocking(move || {
            let (done, result) = apply(kernel.as_ref(), &plan.ops);
            (plan.ops, done, result)
        });
        let (ops, done, result) = match applied.await {
            Ok(applied) => applied,
            // The blocking thread panicked. How far it came stands in the maps alone.
            Err(panicked) => {
                let kernel = Arc::clone(&self.kernel);
                let read = tokio::task::spawn_blocking(move || kernel.adopted()).await;
                if let Ok(Ok(adopted)) = read {
                    self.planner = Planner::adopt(adopted);
                    self.planner.set_density(sizes::needs(&self.config).density);
                }
                (Vec::new(), 0, Err(panicked.into()))
            }
        };
        let now = clock::monotonic();
        let mut notes = Vec::new();
        for op in &ops[..done] {
            self.planner.applied(op, now);
            notes.extend(log(op));
        }
        self.tell(notes);
        match result {
            Ok(()) => {
                self.retry = None;
                self.fault("kernel", None);
            }
            Err(error) => {
                let wait = match self.retry {
                    // Other inputs come in between; they try too, and do not make the wait longer.
                    Some((at, wait)) if now < at => wait,
                    Some((_, wait)) => (wait * 2).min(LAST_RETRY),
                    None => FIRST_RETRY,
                };
                self.retry = Some((now + wait, wait));
                self.fault("kernel", Some(format!("{error:#}; it is tried again")));
            }
        }
    }

    /// What the maps should say.
    fn desired(&self, floating: BTreeSet<IpAddr>) -> Desired {
        let config::Dataplane { tcp_idle_timeout, udp_idle_timeout, .. } = self.config.dataplane;
        let desired = self.state.desired(floating);
        Desired {
            tcp_idle: tcp_idle_timeout,
            udp_idle: udp_idle_timeout,
            // Until then the floating addresses are not taken.
            untouched: !self.adopted && !*self.settled.borrow(),
            ..desired
        }
    }

    /// Puts notes on the timeline; of too many, how many there are of each kind.
    pub(super) fn tell(&self, notes: Vec<Note>) {
        if notes.len() <= MANY_NOTES {
            for note in notes {
                self.timeline.add(note);
            }
            return;
        }
        let mut kinds: BTreeMap<String, Vec<Note>> = BTreeMap::new();
        for note in notes {
            kinds.entry(format!("{:?}", note.kind)).or_default().push(note);
        }
        for notes in kinds.into_values() {
            let (count, shown) = (notes.len(), notes.len().min(SHOWN_NOTES));
            let mut notes = notes.into_iter();
            for note in notes.by_ref().take(shown) {
                self.timeline.add(note);
            }
            if let Some(next) = notes.next() {
                let message = format!("and {} more of this kind at once", count - shown);
                self.note(next.kind, message);
            }
        }
    }
}

/// More notes than this in one round would push everything else off the timeline.
const MANY_NOTES: usize = 256;

/// What is told in full, then, of each kind.
const SHOWN_NOTES: usize = 16;

/// Writes that go to the kernel in one call.
const BATCH: usize = 4096;

/// Applies writes: how many have been made, and why no more.
fn apply(kernel: &dyn Kernel, ops: &[Op]) -> (usize, anyhow::Result<()>) {
    let mut done = 0;
    for batch in ops.chunks(BATCH) {
        if kernel.apply(batch).is_ok() {
            done += batch.len();
            continue;
        }
        // Once more, one by one, so that the planner knows how far it came.
        for op in batch {
            if let Err(error) = kernel.apply(std::slice::from_ref(op)) {
                return (done, Err(error));
            }
            done += 1;
        }
    }
    (done, Ok(()))
}

fn log(op: &Op) -> Option<Note> {
    match op {
        Op::SetBackend { id, backend } => tracing::debug!(id, ?backend, "set backend"),
        Op::ClearBackend { id } => {
            tracing::debug!(id, "clear backend");
            let message = format!("the last connections of backend {id} are over");
            return Some(Note::new(Kind::Drained, message));
        }
        Op::SetTable { start, slots } => {
            tracing::debug!(start, len = slots.len(), "set table");
        }
        Op::SetService { key, service } => tracing::debug!(?key, ?service, "set service"),
        Op::RemoveService { key } => tracing::debug!(?key, "remove service"),
        Op::SetSource { .. } | Op::RemoveSource { .. } => {
            tracing::debug!(?op, "change who may connect");
        }
        Op::SetVips { .. } => tracing::debug!("set the filter of floating addresses"),
        Op::SetPorts { .. } => tracing::debug!("set the filter of services"),
    }
    None
}
