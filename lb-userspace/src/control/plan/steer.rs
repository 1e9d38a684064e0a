//! Steered services: tables that change without moving a packet of a connection that lives.
//!
//! Replies of a steered service do not pass the balancer, and while a slot is undisturbed nothing is
//! written down about its connections. So when a slot is given to another backend, nobody knows which
//! connections it has. What is known is where all of them are: at the backend that it had, its base.
//!
//! ```text
//!                 given to B                      the grace time is over
//!    {A, A} ───────────────────────▶ {B, base A} ────────────────────────▶ {B, B | LOOK_UP}
//!  no look-up                   new: to B, by an entry                   all others: to B │
//!                       others: to A, and an entry says so      those with an entry: there│
//!                                                                                         │
//!    {B, B} ◀─────────────────────────────────────────────────────────────────────────────┘
//!  no look-up                  no entry says anything else than B
//! ```
//!
//! The grace time is as long as a connection may be silent: each that still lives has an entry by then.
//! If A is cut off, its connections are over, and a short time is enough: those that still send are
//! told. A slot that is given away again before its time keeps its base; one that is given back to its
//! base needs no more than the look-ups.
//!
//! The kernel keeps the entries, [`Swept`] is what a sweep saw of them. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::service::{LOOK_UP, NOBODY, Slot};

/// How long the connections of a backend that was cut off are still sent to it, which means that they
/// are reset. Afterwards they are sent to the slot's next backend, which knows nothing of them, and
/// resets them too.
pub(super) const RESETS_FOR: Duration = Duration::from_mins(1);

/// A packet is in the program for microseconds. So long after a table was written, no entry is made by
/// the one before any more.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// Slots are freed of their look-ups together, not one at a time: each time the table is written anew.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// What a sweep saw of the entries of steered connections: by backend, the places of their hashes, which
/// are the slots of a table of 65,536.
pub type Swept = BTreeMap<u32, BTreeSet<u16>>;

/// How a base stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// It forwards: its connections live.
    Lives,
    /// It was cut off then.
    Cut(Duration),
    /// There is no such backend.
    Unknown,
}

/// The table of a steered service, as it is written or planned.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Steering {
    slots: Vec<Slot>,
    /// By index: the slots that are not undisturbed.
    disturbed: BTreeMap<u32, Disturbed>,
    /// When look-ups were last ended in it.
    tidied: Duration,
}

/// A slot in which packets are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Disturbed {
    /// When it became what it is; unknown until the table is written.
    since: Option<Duration>,
    /// A sweep found no entry that differs from the base.
    forgotten: bool,
}

impl Steering {
    /// What a previous daemon wrote.
    pub(super) fn adopt(slots: Vec<Slot>) -> Self {
        if !slots.len().is_power_of_two() {
            return Self::default();
        }
        let disturbed = (0..).zip(&slots).filter(|(_, slot)| slot.base != slot.backend);
        let disturbed = disturbed.map(|(index, _)| (index, Disturbed::default())).collect();
        Self { slots, disturbed, tidied: Duration::ZERO }
    }

    /// The slots.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// How many slots are not undisturbed.
    pub(super) fn disturbed(&self) -> u32 {
        self.disturbed.len() as u32
    }

    /// Every backend that a slot names.
    pub(super) fn named(&self) -> impl Iterator<Item = u32> {
        let ids = self.slots.iter().flat_map(|slot| [slot.backend, slot.base & !LOOK_UP]);
        ids.filter(|&id| id != NOBODY)
    }

    /// The table is in force from now on.
    pub(super) fn written(&mut self, now: Duration) {
        for disturbed in self.disturbed.values_mut() {
            disturbed.since.get_or_insert(now);
        }
    }

    /// Takes what a sweep saw that began at `began`.
    pub(super) fn swept(&mut self, seen: &Swept, began: Duration) {
        let places = 1 << 16;
        let slots = self.slots.len() as u32;
        for (&index, disturbed) in &mut self.disturbed {
            let slot = self.slots[index as usize];
            let looks_only = slot.base == slot.backend | LOOK_UP;
            if looks_only && disturbed.since.is_some_and(|since| since + IN_FLIGHT <= began) {
                let first = (index * (places / slots)) as u16;
                let last = ((index + 1) * (places / slots) - 1) as u16;
                let elsewhere = seen.iter().any(|(&backend, hashes)| {
                    backend != slot.backend && hashes.range(first..=last).next().is_some()
                });
                disturbed.forgotten = !elsewhere;
            }
        }
    }

    /// Whether [`Steering::turn`] would change something although the wanted table has not changed.
    pub(super) fn is_due(&self, idle: Duration, now: Duration, base: impl Fn(u32) -> Base) -> bool {
        let released = self.disturbed.iter().any(|(&index, disturbed)| {
            let slot = self.slots[index as usize];
            slot.backend != slot.base & !LOOK_UP
                && is_released(slot.base & !LOOK_UP, disturbed, idle, now, &base)
        });
        released || self.may_tidy(now)
    }

    fn may_tidy(&self, now: Duration) -> bool {
        let mut forgotten = self.disturbed.values().filter(|disturbed| disturbed.forgotten);
        forgotten.clone().count() == self.disturbed.len() && !self.disturbed.is_empty()
            || now >= self.tidied + TIDY_EVERY && forgotten.next().is_some()
    }

    /// The table that follows this one. `wanted` has the backend of new connections by slot, or is empty
    /// if nobody serves; `idle` is how long a connection may be silent.
    pub(super) fn turn(
        &self,
        wanted: &[u32],
        idle: Duration,
        now: Duration,
        base: impl Fn(u32) -> Base,
    ) -> Self {
        // A table never shrinks: a slot's connections would have more than one base.
        let len = self.slots.len().max(wanted.len());
        let tidies = self.may_tidy(now);
        let mut next = Self {
            slots: Vec::with_capacity(len),
            disturbed: BTreeMap::new(),
            tidied: if tidies { now } else { self.tidied },
        };
        for index in 0..len {
            let to = if wanted.is_empty() { NOBODY } else { wanted[index * wanted.len() / len] };
            let (slot, disturbed) = if self.slots.is_empty() {
                (Slot::of(to), None)
            } else {
                let old = index * self.slots.len() / len;
                let disturbed = self.disturbed.get(&(old as u32));
                let released = |base_id, it: &Disturbed| is_released(base_id, it, idle, now, &base);
                turn(self.slots[old], disturbed, to, tidies, released)
            };
            next.slots.push(slot);
            next.disturbed.extend(disturbed.map(|disturbed| (index as u32, disturbed)));
        }
        next
    }
}

/// Whether nobody needs a slot's base any more.
fn is_released(
    id: u32,
    disturbed: &Disturbed,
    idle: Duration,
    now: Duration,
    base: impl Fn(u32) -> Base,
) -> bool {
    match base(id) {
        Base::Lives => disturbed.since.is_some_and(|since| now >= since + idle),
        Base::Cut(at) => now >= at + RESETS_FOR,
        Base::Unknown => true,
    }
}

/// What a slot becomes that is given to `to`.
fn turn(
    old: Slot,
    disturbed: Option<&Disturbed>,
    to: u32,
    tidies: bool,
    released: impl Fn(u32, &Disturbed) -> bool,
) -> (Slot, Option<Disturbed>) {
    let old_base = old.base & !LOOK_UP;
    let known = disturbed.copied().unwrap_or_default();
    // Entries may say something else than the base.
    let looked_up = disturbed.is_some();
    let split = old.backend != old_base;
    let base = if released_or_nobody(old_base, split, &known, released) { to } else { old_base };
    if base != to {
        let same = split && base == old_base;
        let since = if same { known.since } else { None };
        return (Slot { backend: to, base }, Some(Disturbed { since, forgotten: false }));
    }
    if !looked_up || (!split && to == old.backend && known.forgotten && tidies) {
        return (Slot::of(to), None);
    }
    let same = !split && to == old.backend;
    let next = if same { known } else { Disturbed::default() };
    (Slot { backend: to, base: to | LOOK_UP }, Some(next))
}

/// Whether no connection without an entry is at the base.
fn released_or_nobody(
    base: u32,
    split: bool,
    known: &Disturbed,
    released: impl Fn(u32, &Disturbed) -> bool,
) -> bool {
    base == NOBODY || (split && released(base, known))
}
