//! Chooses the backend of a new connection.

use lb_common::{
    backend::{FORWARD, RESOLVED},
    limits::LEAST_CONN_SCAN,
    maglev,
    service::{Balance, Service},
};

use crate::tables::Tables;

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
#[inline(always)]
fn load<T: Tables>(tables: &T, id: u32) -> Option<(u64, u64)> {
    let backend = tables.backend(id)?;
    let is_usable = backend.flags & (FORWARD | RESOLVED) == FORWARD | RESOLVED;
    let load = if is_usable { tables.active(id) } else { u64::from(u32::MAX) };
    Some((load, u64::from(backend.weight)))
}
