//! One change of another node, made in the table here.
//!
//! The kernel program writes to the same table meanwhile. What it has begun itself stays, and what it uses
//! now is not written to: a change is for connections that another node has the packets of.

use anyhow::Context as _;
use lb_common::flow::state;

use super::{
    Answered, Applied, Begun, Both, Change, Ended,
    directory::Directory,
    entry::{Halves, Side, Synced},
};
use crate::dataplane::{
    active::Active,
    batch,
    flows::{TCP, Table, Value, View},
};

/// What a write is for, for errors.
const WRITE: &str = "write to the flow table";

/// An entry that has had a packet since then is in use here.
const IN_USE_NS: u64 = 1_000_000_000;

/// Makes a change, whose addresses are of the tables' family.
pub(super) fn apply<K: Synced>(
    tables: &Both<K>,
    active: &Active,
    directory: &mut Directory,
    change: &Change,
    side: Side,
    now_ns: u64,
) -> anyhow::Result<Applied> {
    match change {
        Change::Begun(begun) => begin(tables, active, directory, begun, side, now_ns),
        Change::Answered(answered) => answer(tables, active, directory, answered, side, now_ns),
        Change::Ended(ended) => end(&tables.flows, active, ended),
    }
}

/// Takes a connection.
fn begin<K: Synced>(
    tables: &Both<K>,
    active: &Active,
    directory: &mut Directory,
    begun: &Begun,
    side: Side,
    now_ns: u64,
) -> anyhow::Result<Applied> {
    let table = &tables.flows;
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
    if !free(table, active, server_key)? {
        return Ok(Applied { conflicts: 1, ..Applied::default() });
    }
    if !batch::insert_new(table.fd(), server_key, server).context(WRITE)? {
        return Ok(Applied { conflicts: 1, ..Applied::default() });
    }
    if !batch::insert_new(table.fd(), key, entry).context(WRITE)? {
        table.take_if(server_key, |it| server_key.partner(it) == *key)?;
        return Ok(Applied { conflicts: 1, ..Applied::default() });
    }
    active.open(backend);
    // It is not half open any more. In this order, so that no packet finds it in neither table.
    if let Some(found) = tables.half_open.get(key)?
        && (key.partner(&found) == *server_key || tables.half_open.view(key, &found).packets == 0)
    {
        remove(&tables.half_open, active, key, &found)?;
    }
    Ok(Applied { begun: 1, ..Applied::default() })
}

/// Takes a connection that is half open.
fn answer<K: Synced>(
    tables: &Both<K>,
    active: &Active,
    directory: &mut Directory,
    answered: &Answered,
    side: Side,
    now_ns: u64,
) -> anyhow::Result<Applied> {
    let begun = &answered.begun;
    let unknown = Applied { unknown: 1, ..Applied::default() };
    let conflict = Applied { conflicts: 1, ..Applied::default() };
    let known = Applied { known: 1, ..Applied::default() };
    if begun.protocol != TCP || view_steered(begun) {
        return Ok(unknown);
    }
    let Some(backend) = directory.id(begun, now_ns)? else { return Ok(unknown) };
    let idle_ns = u64::from(begun.idle_ms) * 1_000_000;
    let last_seen = tables.flows.ticks.at(now_ns.saturating_sub(idle_ns));
    let Some(halves) = Halves::<K>::new(begun, backend, last_seen, side) else {
        return Ok(unknown);
    };
    let ((key, entry), (server_key, server)) = (halves.client, halves.server);
    let view = tables.flows.view(&key, &entry);
    if let Some(found) = tables.flows.get(&key)? {
        let there = tables.flows.view(&key, &found);
        if is_same(&there, &view) {
            return Ok(known);
        }
        if !gives_way(&there) || !remove(&tables.flows, active, &key, &found)? {
            return Ok(conflict);
        }
    }
    if let Some(found) = tables.half_open.get(&key)? {
        let there = tables.flows.view(&key, &found);
        if is_same(&there, &view) {
            return Ok(known);
        }
        if !gives_way(&there) || !remove(&tables.half_open, active, &key, &found)? {
            return Ok(conflict);
        }
    }
    if !free(&tables.flows, active, &server_key)? || !free(&tables.half_open, active, &server_key)?
    {
        return Ok(conflict);
    }
    let fd = tables.half_open.fd();
    let ack = answered.ack.to_be();
    let value = |entry: K::Entry| K::answered(entry, ack);
    if !batch::insert_new(fd, &server_key, &value(server)).context(WRITE)? {
        return Ok(conflict);
    }
    if !batch::insert_new(fd, &key, &value(entry)).context(WRITE)? {
        tables.half_open.take_if(&server_key, |it| server_key.partner(it) == key)?;
        return Ok(conflict);
    }
    active.open(backend);
    Ok(Applied { answered: 1, ..Applied::default() })
}

/// Frees a port: removes the connection that has the key of its backend's half, if it may be replaced. False if
/// it may not.
fn free<K: Synced, V: Value<K>>(
    table: &Table<K, V>,
    active: &Active,
    server: &K,
) -> anyhow::Result<bool> {
    let Some(found) = table.get(server)? else { return Ok(true) };
    let client = server.partner(&found);
    let holder = table.get(&client)?;
    match holder.filter(|holder| client.partner(holder) == *server) {
        Some(holder) => {
            Ok(gives_way(&table.view(&client, &holder)) && remove(table, active, &client, &holder)?)
        }
        None => Ok(table.take_if(server, |it| server.partner(it) == client)?.is_some()),
    }
}

/// Removes a connection that another node has seen the end of.
fn end<K: Synced>(table: &Table<K>, active: &Active, ended: &Ended) -> anyhow::Result<Applied> {
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
fn remove<K: Synced, V: Value<K>>(
    table: &Table<K, V>,
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
