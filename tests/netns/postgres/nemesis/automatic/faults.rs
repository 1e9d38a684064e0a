//! What is done to a system that heals itself.

use super::*;
use crate::postgres::unattended::ETCD;

mod disks;
mod grave;
mod light;

pub(super) use grave::Grave;
pub(super) use light::Light;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It needs a promotion.
    Grave(Grave),
    /// It needs none.
    Light(Light),
}

impl Fault {
    /// Chooses one; while there is to be no promotion, one that needs none.
    pub(super) fn choose(random: &mut fastrand::Rng, calm: bool) -> Self {
        // Both are drawn each time, so that the order depends on the seed as far as it can.
        let (grave, light) = (Grave::choose(random), Light::choose(random));
        let lightly = random.u8(..3) == 0;
        if calm || lightly { Self::Light(light) } else { Self::Grave(grave) }
    }

    /// What the histogram calls it.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Grave(grave) => grave.class(),
            Self::Light(light) => light.class(),
        }
    }
}

impl Nemesis<'_> {
    /// Does it, and takes it back. Says who must be the primary then.
    pub(super) fn inflict(
        &mut self,
        fault: Fault,
        primary: &str,
        standby: &str,
    ) -> Result<Outcome> {
        match fault {
            Fault::Grave(grave) => self.strike(grave, primary, standby),
            Fault::Light(light) => self.disturb(light, primary, standby),
        }
    }

    fn member(&self, host: HostName) -> Program {
        self.site.lab().program(host.as_str(), "etcd")
    }

    /// Kills all members of etcd but this one; gives those that were killed.
    fn kill_majority(&self, but: HostName) -> Result<Vec<HostName>> {
        let others: Vec<_> = ETCD.into_iter().filter(|it| *it != but).collect();
        others.iter().try_for_each(|host| self.member(*host).kill())?;
        Ok(others)
    }
}
