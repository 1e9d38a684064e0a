//! Tells when SYNs for the proxy are answered with SYN cookies: its listeners are full.

use std::time::Duration;

use super::Task;
use crate::{
    control::plan::Proxied,
    dataplane::cookies,
    events::{Kind, Note},
};

/// Cookies a second from which on it is told. The kernel may be told to give them always; this is more than
/// such a node's clients ask for.
const MANY: f64 = 1000.0;

/// Cookies a second below which it is over.
const FEW: f64 = 100.0;

/// Whether cookies are given.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    /// Since when, and what is known of it.
    going_on: Option<(Duration, String)>,
}

impl Cookies {
    /// Takes how many were given in a second, the service with most new connections, and what a connection
    /// loses by a cookie.
    fn take(
        &mut self,
        rate: f64,
        service: impl FnOnce() -> Option<String>,
        loss: impl FnOnce() -> Option<&'static str>,
        now: Duration,
    ) -> Option<Note> {
        match &self.going_on {
            Some((since, _)) if rate < FEW => {
                let lasted = now.saturating_sub(*since).as_secs();
                self.going_on = None;
                let message = format!("the proxy's listeners have room again, after {lasted} s");
                Some(Note::new(Kind::Recovered, message))
            }
            None if rate >= MANY => {
                let service = service();
                let on = service.as_deref().unwrap_or("a removed service");
                let mut message = format!(
                    "the proxy's listeners are full: possible SYN flood on {on}, {rate:.0} SYNs a second \
                     are answered with SYN cookies"
                );
                if let Some(loss) = loss() {
                    message.push_str("; ");
                    message.push_str(loss);
                }
                self.going_on = Some((now, message.clone()));
                Some(Note { service, ..Note::new(Kind::Kernel, message) })
            }
            _ => None,
        }
    }

    /// What goes on now, for `status`.
    pub(super) fn message(&self) -> Option<&str> {
        self.going_on.as_ref().map(|(_, message)| message.as_str())
    }
}

impl Task {
    /// Looks whether SYN cookies have begun or ended.
    pub(super) fn watch_cookies(&mut self, now: Duration) {
        let mut told = std::mem::take(&mut self.cookies);
        let busiest = || {
            let services = self.state.services().iter();
            let proxied = services.filter(|it| !matches!(it.proxied(), Proxied::None));
            let rates = proxied.filter_map(|service| {
                let rate = self.rates.services.get(&self.index(service)?)?;
                Some((rate, &service.config.name))
            });
            let busiest = rates.max_by(|(one, _), (other, _)| one.total_cmp(other));
            busiest.map(|(_, name)| name.clone())
        };
        let note = told.take(self.rates.cookies, busiest, cookies::loss, now);
        self.cookies = told;
        if let Some(note) = note {
            self.timeline.add(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_told_when_they_begin_and_when_they_end() {
        let mut cookies = Cookies::default();
        let mut take = |rate: f64, second| {
            let web = || Some("web".to_owned());
            cookies.take(rate, web, || Some("windows are small"), Duration::from_secs(second))
        };
        assert_eq!(take(999.0, 1), None);
        let note = take(123_456.0, 2).unwrap();
        assert_eq!((note.kind, note.service.as_deref()), (Kind::Kernel, Some("web")));
        assert!(note.message.contains("on web, 123456 SYNs a second"), "{note:?}");
        assert!(note.message.ends_with("cookies; windows are small"), "{note:?}");
        assert_eq!(take(1_000_000.0, 3), None);
        assert_eq!(take(100.0, 4), None, "it comes and goes");
        let note = take(99.0, 12).unwrap();
        assert_eq!(note.kind, Kind::Recovered);
        assert!(note.message.ends_with("after 10 s"), "{note:?}");
        assert_eq!(take(0.0, 13), None);
        assert_eq!(cookies.message(), None);
    }
}
