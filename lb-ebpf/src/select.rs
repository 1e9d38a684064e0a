//! Chooses the backend of a new connection.

use lb_common::{
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
    tables.slot(service.table_start.wrapping_add(maglev::slot(hash, service.table_len)))
}

/// The slot of a position in the schedule.
#[inline(always)]
fn in_turn<T: Tables>(tables: &T, service: &Service, cursor: u32) -> Option<u32> {
    tables.slot(service.table_start.wrapping_add(cursor % service.table_len))
}

/// The backend with the fewest open connections for its weight, as nginx's `least_conn`: the one
/// whose turn it is, unless another has strictly fewer.
#[inline(always)]
fn least_conn<T: Tables>(tables: &T, service: &Service) -> Option<u32> {
    let cursor = tables.next_cursor(service.index);
    let mut best = in_turn(tables, service, cursor)?;
    let mut best_active = tables.active(best);
    let mut best_weight = u64::from(tables.backend(best)?.weight);
    let mut step = 0;
    while step < LEAST_CONN_SCAN && step < service.members_len {
        let offset = cursor.wrapping_add(step) % service.members_len;
        let member = tables.slot(service.members_start.wrapping_add(offset))?;
        let active = tables.active(member);
        let weight = u64::from(tables.backend(member)?.weight);
        // active / weight < best_active / best_weight, without division.
        if active.wrapping_mul(best_weight) < best_active.wrapping_mul(weight) {
            (best, best_active, best_weight) = (member, active, weight);
        }
        step += 1;
    }
    Some(best)
}
