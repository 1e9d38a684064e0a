//! The verdict on a server of a database, which other probes and other servers do not change: there is
//! no panic, and nobody serves in the place of another.

use std::time::Duration;

use super::{Admin, Judgement, Verdict, WEIGHT_SCALE, Why};

/// What a server of a database is there for, in one of its services; the text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appointed {
    /// It serves.
    Serves(String),
    /// It gets no new connections; those that it has go on.
    Rests(String),
    /// It gets no packet.
    Barred(String),
}

impl Appointed {
    /// Why.
    pub fn why(&self) -> &str {
        match self {
            Self::Serves(why) | Self::Rests(why) | Self::Barred(why) => why,
        }
    }
}

/// What is known of one server.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// What it is there for.
    pub appointed: &'a Appointed,
    /// What the operator wants.
    pub admin: Admin,
    /// How long its connections may still go on, while it is draining.
    pub drain_left: Duration,
    /// Configured weight, or the operator's.
    pub weight: u32,
    /// Whether the MAC address of its next hop is known.
    pub resolved: bool,
}

/// Judges the servers of one service of a database.
pub fn judge(servers: &[Server<'_>]) -> Judgement {
    let verdicts = servers.iter().map(|server| {
        let (appointed, forward) = match server.appointed {
            Appointed::Serves(_) => (true, true),
            Appointed::Rests(_) => (false, true),
            Appointed::Barred(_) => (false, false),
        };
        let may_go_on = match server.admin {
            Admin::Enabled => true,
            Admin::Draining => !server.drain_left.is_zero(),
            Admin::Disabled => false,
        };
        let mut reasons = Vec::new();
        match server.admin {
            Admin::Enabled => {}
            Admin::Disabled => reasons.push(Why::Disabled),
            Admin::Draining if server.drain_left.is_zero() => reasons.push(Why::Drained),
            Admin::Draining => reasons.push(Why::Draining(server.drain_left)),
        }
        if !server.resolved {
            reasons.push(Why::NoNextHop);
        }
        reasons.push(Why::Appointed(server.appointed.why().to_owned()));
        Verdict {
            serving: appointed && server.admin == Admin::Enabled && server.resolved,
            forward: forward && may_go_on,
            weight: server.weight * WEIGHT_SCALE,
            reasons,
        }
    });
    Judgement { verdicts: verdicts.collect(), panic: false, on_backups: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(appointed: &Appointed, admin: Admin, resolved: bool) -> (bool, bool) {
        let server =
            Server { appointed, admin, drain_left: Duration::from_secs(9), weight: 1, resolved };
        let judgement = judge(&[server]);
        assert!(!judgement.panic && !judgement.on_backups);
        let verdict = &judgement.verdicts[0];
        assert!(verdict.reasons.contains(&Why::Appointed(appointed.why().into())));
        (verdict.serving, verdict.forward)
    }

    #[test]
    fn the_appointment_decides_and_the_operator_may_say_no() {
        let serves = || Appointed::Serves("primary".into());
        assert_eq!(verdict(&serves(), Admin::Enabled, true), (true, true));
        assert_eq!(verdict(&serves(), Admin::Enabled, false), (false, true));
        assert_eq!(verdict(&serves(), Admin::Draining, true), (false, true));
        assert_eq!(verdict(&serves(), Admin::Disabled, true), (false, false));
        let rests = Appointed::Rests("too late".into());
        assert_eq!(verdict(&rests, Admin::Enabled, true), (false, true));
        let barred = Appointed::Barred("takes writes on timeline 1".into());
        assert_eq!(verdict(&barred, Admin::Enabled, true), (false, false), "nor by panic");
    }
}
