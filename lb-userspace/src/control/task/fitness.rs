//! How well this node can serve, and the priority that follows: who reaches fewer backends than another
//! node gives way to it.

use std::{fmt::Write as _, time::Duration};

use nix::net::if_::if_nametoindex;

use super::Task;
use crate::{
    config::{Config, units},
    control::verdict::Admin,
    events::{Kind, Note},
    health::Health,
    vrrp::priority::{self, Damper, Fitness, Haste, Steps},
};

/// The priority that this node advertises.
#[derive(Debug, Default)]
pub(super) struct Weight {
    /// Begun with the configured priority, and anew when that changes.
    damper: Option<(u8, Damper)>,
    /// What VRRP was told last.
    told: Option<u8>,
    /// What of it the timeline gets.
    steps: Steps,
}

impl Task {
    /// Lets VRRP know what this node is worth.
    pub(super) async fn weigh(&mut self, now: Duration) {
        if !self.config.is_shared() || !*self.settled.borrow() {
            return;
        }
        self.addresses.set_may_preempt(self.may_preempt()).await;
        let Some(own) = self.config.node(&self.node).map(|node| node.priority) else { return };
        let fitness = self.fitness();
        let all: Vec<u8> = self.config.nodes.iter().map(|node| node.priority).collect();
        let wanted = priority::of(own, &all, fitness);
        let notice = notice(&self.config);
        let fresh = self.weight.damper.filter(|(base, _)| *base == own);
        let (_, mut damper) = fresh.unwrap_or((own, Damper::new(own)));
        let holds = self.addresses.holds();
        let haste = Haste::of(fitness.attached, holds);
        let priority = damper.follow(wanted, notice, haste, now);
        self.weight.damper = Some((own, damper));
        if self.weight.told.replace(priority) != Some(priority) {
            self.addresses.set_priority(priority).await;
        }
        let Some(settled) = self.weight.steps.follow(priority, own, holds, now) else { return };
        if priority == own {
            let message = format!("this node advertises its configured priority, {own}, again");
            self.note(Kind::Role, message);
            return;
        }
        let mut why = if fitness.attached {
            let Fitness { backends, unreachable, .. } = fitness;
            format!("{unreachable} of {backends} backends cannot be reached from here")
        } else {
            "the program is not on its interface".to_owned()
        };
        if settled.steps > 1 {
            let took = Duration::from_millis(settled.took.as_millis() as u64);
            let _ = write!(why, ", in {} steps within {}", settled.steps, units::show(took));
        }
        let message = format!("this node advertises priority {priority} instead of {own}");
        self.timeline.add(Note::new(Kind::Role, message).because(why));
    }

    /// Whether the program is on this node's interface.
    pub(super) fn is_attached(&self) -> bool {
        let own = self.interface().ok().and_then(|name| if_nametoindex(name.as_str()).ok());
        own.is_some_and(|ifindex| self.attachments.has(ifindex))
    }

    fn fitness(&self) -> Fitness {
        let attached = self.is_attached();
        // What passive signals say is not asked: a node without traffic has none.
        let meant = self.state.records().filter(|(_, it)| it.wish.admin == Admin::Enabled);
        let (mut backends, mut unreachable) = (0, 0);
        for (_, record) in meant {
            backends += 1;
            unreachable += usize::from(record.health == Health::Down);
        }
        Fitness { attached, backends, unreachable }
    }
}

/// How long the slowest check takes to notice that a backend is down, after the fastest node has.
fn notice(config: &Config) -> Duration {
    let slowest = config.services.iter().map(|service| {
        let health = &service.health;
        health.interval * health.fall + health.timeout
    });
    slowest.max().unwrap_or(Duration::ZERO)
}
