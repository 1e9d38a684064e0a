//! One change of another node, made in the table here.
//!
//! The kernel program writes to the same table meanwhile. What it has begun itself stays, and what it uses
//! now is not written to: a change is for connections that another node has the packets of.

use anyhow::Context as _;
use lb_common::flow::state;

use super::{
    Applied, Begun, Ended,
    directory::Directory,
    entry::{Halves, Side, Synced},
};
use crate::dataplane::{
    active::Active,
    batch,
    flows::{Table, View},
};

/// What a write is for, for errors.
const WRITE: &str = "write to the flow table";

/// An entry that has had a packet since then is in use here.
const IN_USE_NS: u64 = 1_000_000_000;

/// Takes a connection.
pub(super) fn begin<K: Synced>(
    table: &Table<K>,
    active: &Active,
    directory: &mut Directory,
    begun: &Begun,
    side: Side,
    now_ns: u64,
) -> anyhow::Result<Applied> {
    let Some(backend) = directory.id(begun, now_ns)? else {
        return Ok(Applied { unknown: 1, ..Applied::default() });
    };
    let last_seen = table.ticks.at(now_ns.saturating_sub(u64::from(begun.idle_ms) * 1_000_000));
    let Some(halves) = Halves::<K>::new(begun, backend, last_seen, side) else {
        return Ok(Applied { unknown: 1, ..Applied::default() });
    };
    let (key, entry) = &halves.client;
    if let Some(found) = table.get(key)? {
        let view = table.view(key, &found);
        if is_same(&view, &table.view(key, entry)) {
            refresh(table, &halves, now_ns)?;
            return Ok(Applied { known: 1, ..Applied::default() });
        }
        if !gives_way(&view) || !remove(table, active, key, &found)? {
            return Ok(Applied { conflicts: 1, ..Applied::default() });
        }
    }
    if view_steered(begun) {
        let begun = u64::from(batch::insert_new(table.fd(), key, entry).context(WRITE)?);
        return Ok(Applied { begun, ..Applied::default() });
    }
    // The backend's half holds the port, so it comes first.
    let (server_key, server) = &halves.server;
    if let Some(found) = table.get(server_key)? {
        let client = server_key.partner(&found);
        let holder = table.get(&client)?;
        let is_free = match holder.filter(|holder| client.partner(holder) == *server_key) {
            Some(holder) => {
                gives_way(&table.view(&client, &holder)) && remove(table, active, &client, &holder)?
            }
            None => table.take_if(server_key, |it| server_key.partner(it) == client)?.is_some(),
        };
        if !is_free {
            return Ok(Applied { conflicts: 1, ..Applied::default() });
        }
    }
    if !batch::insert_new(table.fd(), server_key, server).context(WRITE)? {
        return Ok(Applied { conflicts: 1, ..Applied::default() });
    }
    if !batch::insert_new(table.fd(), key, entry).context(WRITE)? {
        table.take_if(server_key, |it| server_key.partner(it) == *key)?;
        return Ok(Applied { conflicts: 1, ..Applied::default() });
    }
    active.open(backend);
    Ok(Applied { begun: 1, ..Applied::default() })
}

/// Removes a connection that another node has seen the end of.
pub(super) fn end<K: Synced>(
    table: &Table<K>,
    active: &Active,
    ended: &Ended,
) -> anyhow::Result<Applied> {
    let Some(server) = K::new(ended.backend, ended.nat, ended.protocol) else {
        return Ok(Applied::default());
    };
    let Some(found) = table.get(&server)? else { return Ok(Applied::default()) };
    let client = server.partner(&found);
    let Some(entry) = table.get(&client)?.filter(|it| client.partner(it) == server) else {
        return Ok(Applied::default());
    };
    let removed = remove(table, active, &client, &entry)?;
    Ok(Applied { ended: u64::from(removed), ..Applied::default() })
}

fn view_steered(begun: &Begun) -> bool {
    u32::from(begun.state) & state::STEERED != 0
}

/// Whether two clients' halves are of the same connection.
fn is_same(one: &View, other: &View) -> bool {
    let steered = one.is_steered();
    steered == other.is_steered()
        && one.backend == other.backend
        && (steered || (one.new_src, one.new_dst) == (other.new_src, other.new_dst))
        && !state::closed(one.state)
}

/// Whether a connection may be replaced: it is over, or it is another node's and was never used here.
fn gives_way(client: &View) -> bool {
    state::closed(client.state) || client.packets == 0
}

/// Makes both halves as young as the other node says that they are.
fn refresh<K: Synced>(table: &Table<K>, halves: &Halves<K>, now_ns: u64) -> anyhow::Result<()> {
    for (key, entry) in [&halves.client, &halves.server] {
        let Some(found) = table.get(key)? else { continue };
        let view = table.view(key, &found);
        let in_use = now_ns.saturating_sub(view.last_seen_ns) < IN_USE_NS && view.packets > 0;
        let told = table.view(key, entry);
        let bits = told.state & (state::CLIENT_FIN | state::BACKEND_FIN);
        let is_news = told.last_seen_ns > view.last_seen_ns || view.state | bits != view.state;
        if !in_use && is_news && key.partner(&found) == key.partner(entry) {
            let refreshed = K::refreshed(found, entry, bits);
            // If it has gone meanwhile, it stays so.
            batch::replace(table.fd(), key, &refreshed).context(WRITE)?;
        }
        if view.is_steered() {
            break;
        }
    }
    Ok(())
}

/// Removes both halves of a connection, of which `entry` is the client's. False if it has gone, or is
/// another one by now.
fn remove<K: Synced>(
    table: &Table<K>,
    active: &Active,
    key: &K,
    entry: &K::Entry,
) -> anyhow::Result<bool> {
    let partner = key.partner(entry);
    let Some(taken) = table.take_if(key, |it| key.partner(it) == partner)? else {
        return Ok(false);
    };
    let view = table.view(key, &taken);
    if view.is_steered() {
        return Ok(true);
    }
    if !state::closed(view.state) {
        active.close(view.backend);
    }
    table.take_if(&partner, |it| partner.partner(it) == *key)?;
    Ok(true)
}
