//! What the balancers tell each other about databases, whatever carries it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::failover::Message;

/// A word from one balancer to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The other balancer: who is told, or who says it.
    pub node: String,
    /// The database that it is about.
    pub database: String,
    /// What.
    pub message: Message,
}

/// Carries words to the other balancers. What it hears from them goes to
/// [`Databases::hear`](super::databases::Databases::hear).
pub trait Peers: fmt::Debug + Send + Sync {
    /// Tells another balancer, without waiting. It may get lost: it is said again.
    fn tell(&self, word: Word);
}

/// Nobody is told anything, so no other balancer ever agrees.
#[derive(Clone, Copy, Debug)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn tell(&self, word: Word) {
        tracing::debug!(node = word.node, "no channel between the balancers");
    }
}
