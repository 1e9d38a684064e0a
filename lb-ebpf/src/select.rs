//! Chooses the backend of a new connection.

use lb_common::{
    backend::{FORWARD, RESOLVED},
    flow::Syn,
    hash,
    limits::{LEAST_CONN_SCAN, REPLAY_SCAN},
    maglev,
    service::{Balance, Service},
};

use crate::{
    family::Family,
    tables::{Flows, HalfOpen, Tables},
};

/// Slots that are looked at for another backend, before the list of them all.
const REPLAY_DRAWS: u32 = 8;

/// The backend that `service` gives a connection with this hash; `None` if it has none.
#[inline(always)]
pub fn select<T: Tables>(tables: &T, service: &Service, hash: u32) -> Option<u32> {
    if service.table_len == 0 {
        return None;
    }
    match Balance::from_number(service.balance)? {
        Balance::Maglev => at(tables, service, hash),
        Balance::Random => at(tables, service, tables.random()),
        Balance::RoundRobin => in_turn(tables, service, tables.next_cursor(service.index)),
        Balance::LeastConn => least_conn(tables, service),
    }
}

/// The slot of a hash.
#[inline(always)]
fn at<T: Tables>(tables: &T, service: &Service, hash: u32) -> Option<u32> {
    tables
        .slot(service.table_start.wrapping_add(maglev::slot(hash, service.table_len)))
        .map(|slot| slot.backend)
}

/// The slot of a position in the schedule.
#[inline(always)]
fn in_turn<T: Tables>(tables: &T, service: &Service, cursor: u32) -> Option<u32> {
    tables
        .slot(service.table_start.wrapping_add(cursor % service.table_len))
        .map(|slot| slot.backend)
}

/// The backend with the fewest open connections for its weight, as nginx's `least_conn`: the one
/// whose turn it is, unless another has strictly fewer.
///
/// One that cannot take a packet is passed over: until user space has taken it out of the table, it
/// would seem the least loaded, and get every new connection.
#[inline(always)]
fn least_conn<T: Tables>(tables: &T, service: &Service) -> Option<u32> {
    let cursor = tables.next_cursor(service.index);
    let mut best = in_turn(tables, service, cursor)?;
    let (mut best_load, mut best_weight) = load(tables, best)?;
    let mut step = 0;
    while step < LEAST_CONN_SCAN && step < service.members_len {
        let offset = cursor.wrapping_add(step) % service.members_len;
        let member = tables.slot(service.members_start.wrapping_add(offset))?.backend;
        let (load, weight) = load(tables, member)?;
        // load / weight < best_load / best_weight, without division.
        if load.wrapping_mul(best_weight) < best_load.wrapping_mul(weight) {
            (best, best_load, best_weight) = (member, load, weight);
        }
        step += 1;
    }
    Some(best)
}

/// Open connections of a backend, and its weight.
///
/// A counter is below zero where a connection's end was counted twice, until the sweeps correct it. That
/// is less than any other's; read without its sign it would be more, and the backend would get none.
#[inline(always)]
fn load<T: Tables>(tables: &T, id: u32) -> Option<(i64, i64)> {
    let backend = tables.backend(id)?;
    let is_usable = backend.flags & (FORWARD | RESOLVED) == FORWARD | RESOLVED;
    let load = if is_usable { tables.active(id) as i64 } else { UNUSABLE };
    Some((load, i64::from(backend.weight)))
}

/// A backend that the connection has not been tried at. Takes its arguments from the scratch: the service,
/// a seed, and in the SYN of `half` the backends that were tried.
///
/// By weight where a few slots drawn from the table name one; else the next of the service's members, for
/// `least_conn` the least loaded.
#[inline(always)]
pub fn another<F: Family, T: Tables + Flows<F>>(tables: &T) -> Option<u32> {
    let scratch = tables.scratch()?;
    if scratch.service.table_len == 0 || scratch.service.members_len == 0 {
        return None;
    }
    scratch.backend = NOBODY;
    // More than any load for its weight.
    (scratch.load, scratch.weight) = (UNUSABLE, 1);
    let mut step = 0;
    while step < REPLAY_DRAWS + REPLAY_SCAN && !tables.consider(step) {
        step += 1;
    }
    let id = tables.scratch()?.backend;
    (id != NOBODY).then_some(id)
}

/// One step of [`another`]: looks at a backend, and leaves it in the scratch if it is the best so far. True
/// if the search is over.
#[inline(always)]
pub fn consider<F: Family, T: Tables + Flows<F>>(tables: &T, step: u32) -> bool {
    let Some(scratch) = tables.scratch() else { return true };
    let service = &scratch.service;
    let least_conn = service.balance == Balance::LeastConn as u32;
    let id = if step < REPLAY_DRAWS {
        if least_conn {
            return false;
        }
        at(tables, service, hash::mix(u64::from(scratch.seed), u64::from(step)))
    } else {
        let place = step - REPLAY_DRAWS;
        if place >= service.members_len {
            return true;
        }
        let offset = scratch.seed.wrapping_add(place) % service.members_len;
        tables.slot(service.members_start.wrapping_add(offset)).map(|slot| slot.backend)
    };
    let Some(id) = id else { return true };
    let Some((load, weight)) = load(tables, id) else { return true };
    if load >= UNUSABLE || was_tried(scratch.half.syn(), id) {
        return false;
    }
    if least_conn && load.wrapping_mul(scratch.weight) >= scratch.load.wrapping_mul(weight) {
        return false;
    }
    (scratch.backend, scratch.load, scratch.weight) = (id, load, weight);
    !least_conn
}

/// What [`load`] says of a backend that cannot take a packet: more than all the connections that there are.
const UNUSABLE: i64 = u32::MAX as i64;

/// No backend's identifier.
const NOBODY: u32 = u32::MAX;

/// Whether a connection has been tried at a backend.
#[inline(always)]
fn was_tried(syn: &Syn, id: u32) -> bool {
    let [a, b, c, d] = syn.tried;
    let tries = syn.tries;
    (tries > 0 && a == id)
        || (tries > 1 && b == id)
        || (tries > 2 && c == id)
        || (tries > 3 && d == id)
}
