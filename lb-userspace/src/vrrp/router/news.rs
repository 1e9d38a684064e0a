//! What happens to a virtual router, in sentences.

use std::{net::IpAddr, time::Duration};

use super::{
    Setup,
    instance::{First, name_of},
};
use crate::{
    config::units,
    events::{Kind, Note},
    vrrp::machine::Cause,
};

/// A change of the state, or nothing if it is not worth telling.
pub(super) fn of(cause: Cause, vrid: u8, addresses: &[IpAddr], setup: &Setup) -> Option<Note> {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let all = all.join(", ");
    let name = |address: IpAddr| node(setup, address);
    let taken = |why: String| {
        Some(
            Note::new(Kind::Role, format!("this node is Active for {all} (vrid {vrid})"))
                .because(why),
        )
    };
    let lost = |message: String, why: String| Some(Note::new(Kind::Role, message).because(why));
    match cause {
        Cause::Starts => {
            Some(Note::new(Kind::Role, format!("this node is Backup for {all} (vrid {vrid})")))
        }
        Cause::Resumes => {
            taken("it was Active a moment ago, and nobody can have taken over".into())
        }
        Cause::Owns => taken("its priority is that of the owner".into()),
        Cause::NobodyHeard => taken("no Active was heard since the start".into()),
        Cause::ActiveSilent => taken("no advert of the Active came in time".into()),
        Cause::NobodyTook => taken("nobody has taken over while it did not run".into()),
        Cause::ActiveLeft => taken("the Active has handed over".into()),
        Cause::Preempts => taken("the Active has a lower priority".into()),
        Cause::Yields { to, priority } => lost(
            format!("this node is Backup for {all} (vrid {vrid}): {} is Active", name(to)),
            format!("its priority is {priority}"),
        ),
        Cause::HandedOver { to } => lost(
            format!("{} has taken {all} over (vrid {vrid})", name(to)),
            "this node has handed over".into(),
        ),
        Cause::Stalled { by } => {
            let by = Duration::from_millis(by.as_millis() as u64);
            let message = format!("this node lets {all} go (vrid {vrid}) until it has listened");
            let why =
                format!("it did not run for {}; another node may have taken over", units::show(by));
            Some(Note::new(Kind::Fault, message).because(why))
        }
        Cause::NobodyTakes => {
            let message = format!("nobody took {all} over (vrid {vrid}); this node goes on");
            Some(Note::new(Kind::Role, message))
        }
        Cause::Stays => {
            let message =
                format!("nobody took {all} over (vrid {vrid}); the addresses stay for a minute");
            Some(Note::new(Kind::Role, message))
        }
        Cause::Fault => {
            let message = format!("this node takes no part for {all} (vrid {vrid})");
            Some(Note::new(Kind::Role, message).because("its interface cannot be used"))
        }
        // Told by `split`, once.
        Cause::Contested { .. } => None,
    }
}

/// Two nodes are Active.
pub(super) fn split(by: IpAddr, priority: u8, vrid: u8, setup: &Setup) -> Note {
    let message = format!("two nodes are Active for vrid {vrid}: {} is too", node(setup, by));
    let why =
        format!("its advert has priority {priority}; it has to yield, and does not hear this node");
    Note::new(Kind::Fault, message).because(why)
}

/// Only one is, again.
pub(super) fn united(by: IpAddr, vrid: u8, setup: &Setup) -> Note {
    let message = format!("{} is not Active for vrid {vrid} any more", node(setup, by));
    Note::new(Kind::Recovered, message).because("no advert of it came")
}

/// Something was heard for the first time.
pub(super) fn first(first: First, vrid: u8, setup: &Setup) -> Note {
    match first {
        First::Refused(refusal, source) => {
            let message = format!("an advert of {} is ignored (vrid {vrid})", node(setup, source));
            Note::new(Kind::Fault, message).because(refusal.to_string())
        }
        First::OtherAddresses(source) => {
            let message = format!(
                "{} uses vrid {vrid} for other addresses: write the same `addresses` on all nodes, or \
                 another vrid",
                node(setup, source)
            );
            Note::new(Kind::Fault, message)
        }
    }
}

fn node(setup: &Setup, address: IpAddr) -> String {
    match name_of(setup, address) {
        Some(name) => format!("{name} ({address})"),
        None => address.to_string(),
    }
}
