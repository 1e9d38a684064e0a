//! The backends that a request has been tried at.

use std::sync::Arc;

use super::backend::Backend;

/// The backends that a request has been tried at, in order. Nearly all requests have one, for which no
/// memory is asked.
#[derive(Debug, Default)]
pub(super) struct Tried {
    first: Option<Arc<Backend>>,
    others: Vec<Arc<Backend>>,
}

impl Tried {
    pub(super) fn push(&mut self, backend: Arc<Backend>) {
        match self.first {
            None => self.first = Some(backend),
            Some(_) => self.others.push(backend),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn count(&self) -> u32 {
        u32::from(self.first.is_some()) + self.others.len() as u32
    }

    /// The one that was tried last.
    pub(super) fn last(&self) -> Option<&Arc<Backend>> {
        self.others.last().or(self.first.as_ref())
    }

    pub(super) fn has(&self, backend: &Arc<Backend>) -> bool {
        self.first.iter().chain(&self.others).any(|tried| Arc::ptr_eq(tried, backend))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_again() {
        let backends = ["a", "b", "c", "d"].map(|name| {
            let address = "192.0.2.21:80".parse().unwrap();
            Arc::new(Backend::new(name, address, &Arc::default()))
        });
        let mut tried = Tried::default();
        assert!(tried.is_empty() && tried.last().is_none());
        for (count, backend) in backends.iter().take(3).enumerate() {
            assert!(!tried.has(backend));
            tried.push(Arc::clone(backend));
            assert!(tried.has(backend));
            assert_eq!(tried.count(), count as u32 + 1);
            assert!(Arc::ptr_eq(tried.last().unwrap(), backend));
        }
        assert!(backends[..3].iter().all(|backend| tried.has(backend)));
        assert!(!tried.has(&backends[3]) && !tried.is_empty());
    }
}
