//! The record in etcd, by its JSON gateway (version 3 of the API; etcd 3.4 and newer).
//!
//! There is one key for a database. It is replaced only where the version that was read still stands
//! (`mod_revision`), so of two balancers that change the record at the same time one does, and the other
//! learns of it. Reads are linearizable, which is etcd's default: a majority has said that the answer is
//! not older than the question.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::record::Record;
use crate::config::Consensus;

mod client;

pub use client::Client;

/// Tries to replace what others replace too.
const TRIES: u32 = 4;

/// What the record of a database is kept as.
#[derive(Debug)]
pub struct Etcd {
    client: Client,
    /// The key, as the gateway wants it.
    key: String,
}

/// Why the record is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody has answered, or not what was asked for. What was written may be there.
    #[error("{0}")]
    Failed(String),
    /// Another record stands there.
    #[error("another record stands in etcd")]
    Conflict(Box<Record>),
}

/// What stands under the key.
struct Found {
    record: Record,
    /// The version of the value.
    version: String,
}

impl Etcd {
    /// The record of the database `name`.
    #[must_use]
    pub fn new(consensus: &Consensus, name: &str) -> Self {
        let key = format!("/ballast/{}/{name}", consensus.cluster);
        Self { client: Client::new(consensus), key: STANDARD.encode(key) }
    }

    /// What the store has; no older than the call.
    pub async fn read(&self) -> Result<Option<Record>, Error> {
        Ok(self.find().await?.map(|found| found.record))
    }

    /// Puts `record` into the store if that has `base`, or an older one than that. That it has `record`
    /// already is as good.
    pub async fn propose(&self, record: &Record, base: Option<&Record>) -> Result<(), Error> {
        let value = serde_json::to_vec(record).map_err(|error| Error::Failed(error.to_string()))?;
        let put = json!([{ "request_put": { "key": self.key, "value": STANDARD.encode(value) } }]);
        for _ in 0..TRIES {
            let compare = match self.find().await? {
                Some(found) if found.record == *record => return Ok(()),
                Some(found) if Some(&found.record) == base => unchanged(&self.key, &found.version),
                Some(found) if base.is_some_and(|base| found.record.place() < base.place()) => {
                    unchanged(&self.key, &found.version)
                }
                Some(found) => return Err(Error::Conflict(Box::new(found.record))),
                None => json!({
                    "key": self.key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"
                }),
            };
            let body = json!({ "compare": [compare], "success": put });
            if self.client.ask("/v3/kv/txn", &body).await?["succeeded"] == true {
                return Ok(());
            }
            // Somebody was faster: look what stands there now.
        }
        Err(Error::Failed("others change the record all the time".into()))
    }

    async fn find(&self) -> Result<Option<Found>, Error> {
        let answer = self.client.ask("/v3/kv/range", &json!({ "key": self.key })).await?;
        let Some(entry) = answer["kvs"].get(0) else { return Ok(None) };
        let wrong = |what: &str| Error::Failed(format!("what etcd has makes no sense: {what}"));
        let text = entry["value"].as_str().ok_or_else(|| wrong("no value"))?;
        let text = STANDARD.decode(text).map_err(|error| wrong(&error.to_string()))?;
        let record = serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
        let version = entry["mod_revision"].as_str().ok_or_else(|| wrong("no version"))?;
        Ok(Some(Found { record, version: version.to_owned() }))
    }
}

/// That the value is still of this version.
fn unchanged(key: &str, version: &str) -> Value {
    json!({ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": version })
}

#[cfg(test)]
mod tests;
