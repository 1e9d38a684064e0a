//! Tells when the half-open table is full: SYNs come faster than clients go on with them.

use std::{collections::BTreeMap, time::Duration};

use super::Task;
use crate::{
    dataplane::Sweep,
    events::{Kind, Note},
};

/// The table counts as full from here on, in percent: then the kernel takes the place of the oldest
/// entries for new ones.
const FULL: u64 = 80;

/// And as not full any more below this.
const SLACK: u64 = 40;

/// Whether a flood goes on.
#[derive(Debug, Default)]
pub(super) struct Flood {
    /// Since when, and what is known of it.
    going_on: Option<(Duration, String)>,
}

impl Flood {
    /// Takes what a sweep found, the services by backend, and new connections a second by service.
    fn take(
        &mut self,
        sweep: &Sweep,
        service_of: &BTreeMap<u32, String>,
        rates: &BTreeMap<String, f64>,
        now: Duration,
    ) -> Option<Note> {
        if let Some((since, _)) = self.going_on
            && sweep.half_open_percent < SLACK
        {
            self.going_on = None;
            let lasted = now.saturating_sub(since).as_secs();
            let message = format!("the half-open table has room again, after {lasted} s");
            return Some(Note::new(Kind::Recovered, message));
        }
        let begins = self.going_on.is_none();
        if sweep.half_open_percent < FULL && begins {
            return None;
        }
        let mut by_service: BTreeMap<&str, u64> = BTreeMap::new();
        for (id, entries) in &sweep.half_open {
            if let Some(service) = service_of.get(id) {
                *by_service.entry(service).or_default() += entries;
            }
        }
        let target = by_service.into_iter().max_by_key(|(_, entries)| *entries);
        let service = target.map(|(service, _)| service.to_owned());
        let on = service.as_deref().unwrap_or("a removed service");
        let rate = service.as_ref().and_then(|service| rates.get(service)).copied();
        let message = format!(
            "half-open table full: possible SYN flood on {on}, {:.0} new connections a second; \
             established connections have a table of their own",
            rate.unwrap_or(0.0)
        );
        let since = self.going_on.as_ref().map_or(now, |(since, _)| *since);
        self.going_on = Some((since, message.clone()));
        begins.then(|| Note { service, ..Note::new(Kind::Kernel, message) })
    }

    /// Whether there is something to tell of this sweep, or may be.
    fn concerns(&self, sweep: &Sweep) -> bool {
        self.going_on.is_some() || sweep.half_open_percent >= FULL
    }

    /// What goes on now, for `status`.
    pub(super) fn message(&self) -> Option<&str> {
        self.going_on.as_ref().map(|(_, message)| message.as_str())
    }
}

impl Task {
    /// Looks whether a flood has begun or ended.
    pub(super) fn watch_floods(&mut self, sweep: &Sweep, now: Duration) {
        let (mut service_of, mut rates) = (BTreeMap::new(), BTreeMap::new());
        if self.flood.concerns(sweep) {
            service_of = self.service_names(sweep.half_open.keys().copied());
            rates.extend(self.state.services().iter().filter_map(|service| {
                let rate = self.rates.services.get(&self.index(service)?)?;
                Some((service.config.name.clone(), *rate))
            }));
        }
        if let Some(note) = self.flood.take(sweep, &service_of, &rates, now) {
            self.timeline.add(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_when_it_begins_and_when_it_ends() {
        let service_of =
            BTreeMap::from([(1, "web".to_owned()), (2, "web".to_owned()), (3, "shop".to_owned())]);
        let rates = BTreeMap::from([("web".to_owned(), 123_456.0), ("shop".to_owned(), 3.0)]);
        let sweep = |half_open_percent| Sweep {
            half_open: BTreeMap::from([(1, 30), (2, 30), (3, 40)]),
            half_open_percent,
            ..Sweep::default()
        };
        let mut flood = Flood::default();
        let mut take = |percent, second| {
            flood.take(&sweep(percent), &service_of, &rates, Duration::from_secs(second))
        };
        assert_eq!(take(79, 1), None);
        let note = take(80, 2).unwrap();
        assert_eq!((note.kind, note.service.as_deref()), (Kind::Kernel, Some("web")));
        assert!(note.message.contains("on web, 123456 new connections a second"), "{note:?}");
        assert_eq!(take(99, 3), None);
        assert_eq!(take(50, 4), None, "it comes and goes");
        let note = take(39, 12).unwrap();
        assert_eq!(note.kind, Kind::Recovered);
        assert!(note.message.ends_with("after 10 s"), "{note:?}");
        assert_eq!(take(0, 13), None);
        assert_eq!(flood.message(), None);
    }
}
