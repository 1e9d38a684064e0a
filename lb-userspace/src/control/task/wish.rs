//! What the operator wants of backends: kept on disk first, then in force.

use serde::{Deserialize, Serialize};

use super::{Task, in_force};
use crate::{
    clock,
    control::{
        verdict::Admin,
        wishes::{self, Kept, Wishes},
    },
    events::{Kind, Note},
};

/// What shall change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Whether it shall serve.
    Admin(Admin),
    /// Its weight; none for the configured one.
    Weight(Option<u32>),
}

/// A wish of the operator.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) backend: String,
    pub(super) service: Option<String>,
    pub(super) change: Change,
}

/// A backend with what is wanted of it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wished {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Whether it shall serve.
    pub admin: Admin,
    /// Its weight.
    pub weight: u32,
}

/// Why a wish is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// There is no such backend or service.
    #[error("{0}")]
    Unknown(String),
    /// It could not be kept, and so was not put into force.
    #[error("nothing has changed, because the wish cannot be kept in {directory}: {reason}")]
    NotKept {
        /// The state directory.
        directory: String,
        /// Why.
        reason: String,
    },
}

impl Task {
    pub(super) async fn wish(&mut self, request: Request) -> Result<Vec<Wished>, WishError> {
        let affected = self.affected(&request)?;
        let mut new = self.wishes.clone();
        let now = clock::wall();
        for key in &affected {
            let kept = new.entry(key.clone()).or_insert(Kept {
                admin: Admin::Enabled,
                weight: None,
                since: now,
            });
            match request.change {
                // A second `drain` does not give the connections more time.
                Change::Admin(admin) if admin == kept.admin => {}
                Change::Admin(admin) => (kept.admin, kept.since) = (admin, now),
                Change::Weight(weight) => kept.weight = weight,
            }
        }
        new.retain(|_, kept| kept.admin != Admin::Enabled || kept.weight.is_some());
        self.keep(new).await?;
        let mut wished = Vec::new();
        for key in affected {
            let kept = self.wishes.get(&key);
            let wish = kept.map(|kept| in_force(kept, clock::monotonic())).unwrap_or_default();
            let (service, backend) = key;
            self.state.wish(&service, &backend, wish);
            let record = self
                .state
                .records()
                .find(|(of, record)| of.config.name == service && record.config.name == backend);
            let weight = record.map_or(1, |(_, record)| record.weight());
            let message = match request.change {
                Change::Admin(admin) => format!("{backend} is {} by command", admin.word()),
                Change::Weight(Some(weight)) => format!("{backend} has weight {weight} by command"),
                Change::Weight(None) => format!("{backend} has its configured weight again"),
            };
            self.timeline.add(Note::new(Kind::Wish, message).service(&service).backend(&backend));
            wished.push(Wished { service, backend, admin: wish.admin, weight });
        }
        Ok(wished)
    }

    /// The backends that a wish is about.
    fn affected(&self, request: &Request) -> Result<Vec<(String, String)>, WishError> {
        let Request { backend, service, .. } = request;
        let in_scope = |name: &str| service.as_deref().is_none_or(|service| service == name);
        let services = self.state.services();
        if !services.iter().any(|service| in_scope(&service.config.name)) {
            let known: Vec<_> = services.iter().map(|it| it.config.name.as_str()).collect();
            let asked = service.as_deref().unwrap_or_default();
            let known = known.join(", ");
            let message = format!("no service is called {asked}; there are: {known}");
            return Err(WishError::Unknown(message));
        }
        let scope = || self.state.records().filter(|(service, _)| in_scope(&service.config.name));
        let affected: Vec<_> = scope()
            .filter(|(_, record)| record.config.name == *backend)
            .map(|(service, record)| (service.config.name.clone(), record.config.name.clone()))
            .collect();
        if affected.is_empty() {
            let mut known: Vec<_> =
                scope().map(|(_, record)| record.config.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            let known = known.join(", ");
            let of = service.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
            let message = format!("no backend{of} is called {backend}; there are: {known}");
            return Err(WishError::Unknown(message));
        }
        Ok(affected)
    }

    /// Forgets wishes about backends that are configured no longer.
    pub(super) async fn forget_wishes(&mut self) {
        let mut new = self.wishes.clone();
        new.retain(|(service, backend), _| {
            let services = self.config.services.iter().filter(|it| it.name == *service);
            services.flat_map(|it| &it.backends).any(|it| it.name == *backend)
        });
        if new == self.wishes {
            return;
        }
        // They do no harm on disk, so a failure can wait for the next wish.
        if let Err(error) = self.keep(new.clone()).await {
            tracing::warn!(%error, "wishes about removed backends stay on disk");
            self.wishes = new;
        }
    }

    async fn keep(&mut self, new: Wishes) -> Result<(), WishError> {
        let directory = self.state_dir.clone();
        let saved =
            tokio::task::spawn_blocking(move || wishes::save(&directory, &new).map(|()| new)).await;
        let reason = match saved {
            Ok(Ok(new)) => {
                self.wishes = new;
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(panicked) => panicked.to_string(),
        };
        Err(WishError::NotKept { directory: self.state_dir.display().to_string(), reason })
    }
}
