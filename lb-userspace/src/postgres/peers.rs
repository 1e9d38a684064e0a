//! What the balancers tell each other about databases, and what carries it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{databases::Databases, failover::Message};
use crate::peer::Others;

/// A word from one balancer to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The other balancer: who is told, or who says it.
    pub node: String,
    /// The database that it is about.
    pub database: String,
    /// What.
    pub message: Message,
}

/// Carries words to the other balancers. What it hears from them goes to [`Databases::hear`].
pub trait Peers: fmt::Debug + Send + Sync {
    /// Tells another balancer, without waiting. It may get lost: it is said again.
    fn tell(&self, word: Word);

    /// Why another balancer cannot be asked just now; none if it is heard.
    fn silent(&self, node: &str) -> Option<String>;
}

/// A word as it stands on the wire.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    database: String,
    message: Message,
}

/// The channel between the nodes.
#[derive(Clone, Debug)]
pub struct Channel(pub Others);

impl Peers for Channel {
    fn tell(&self, word: Word) {
        let Word { node, database, message } = word;
        match serde_json::to_vec(&Content { database, message }) {
            Ok(text) => self.0.say(&node, text),
            Err(error) => tracing::error!(%error, node, "write a word about a database"),
        }
    }

    fn silent(&self, node: &str) -> Option<String> {
        let board = self.0.board();
        let board = board.borrow();
        let Some(peer) = board.peers.iter().find(|peer| peer.name == node) else {
            return Some(format!(
                "there is no channel to {node}: [cluster] needs a secret_file, the same on every node"
            ));
        };
        let because = peer.problem.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
        (!peer.up).then(|| format!("{node} is silent{because}"))
    }
}

/// Takes what other balancers say to the databases, until the daemon ends.
pub async fn listen(others: Others, databases: Databases) {
    // Nobody else takes the words; if somebody had, there would be nothing to do here.
    let Some(mut words) = others.words() else { return };
    while let Some((node, text)) = words.recv().await {
        match serde_json::from_slice(&text) {
            Ok(Content { database, message }) => {
                databases.hear(Word { node, database, message }).await;
            }
            Err(error) => tracing::warn!(%error, node, "read a word about a database"),
        }
    }
}
