//! Who may begin a connection, and how often.
//!
//! Asked once for each new connection, before anything is written for it. What is known already goes
//! by without: this costs packets of open connections nothing, and a source that is denied by a reload
//! keeps those that it has.

use lb_common::{
    reason::Reason,
    service::{FILTERED, STEERED, Service},
    source::{self, ALLOW, Bucket, FLOATING, RateKey},
    trace::Stage,
};

use crate::{
    family::{Address, Family, Tuple, protocol},
    tables::{Flows, Tables},
};

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Whether `service` takes a connection that a packet of this tuple and protocol begins; if not, why.
///
/// A connection that is admitted counts against its source's rate. Steered services call this for each
/// SYN, and for each datagram, as they keep no state; so datagrams to them are not counted.
///
/// Leaves the tuple in the scratch.
#[inline(always)]
pub fn admit<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    service: &Service,
    tuple: &Tuple<F::Address>,
    protocol: u8,
) -> Result<(), Reason> {
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.tuple = *tuple;
    let counts = protocol == protocol::TCP || service.flags & STEERED == 0;
    let rate = if counts { service.source_rate } else { 0 };
    match tables.judge(service.index, service.flags, rate, service.source_burst) {
        Verdict::ADMITTED => Ok(()),
        Verdict::SPOOFED => Err(Reason::Spoofed),
        Verdict::DENIED => Err(Reason::Denied),
        Verdict::RATE_LIMITED => Err(Reason::RateLimited),
        _ => Err(Reason::Inconsistent),
    }
}

/// What [`judge`] says, as a number: that is what a subprogram may return.
struct Verdict;

impl Verdict {
    const ADMITTED: u32 = 0;
    const SPOOFED: u32 = 1;
    const DENIED: u32 = 2;
    const RATE_LIMITED: u32 = 3;
    const LOST: u32 = 4;
}

/// Judges the tuple in the scratch, for [`Flows::judge`]: by a service's index and flags, and by the
/// rate and burst of each source, if the rate is not 0.
#[inline(always)]
pub fn judge<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    index: u32,
    flags: u32,
    rate: u32,
    burst: u32,
) -> u32 {
    let verdict = verdict::<F, T>(tables, index, flags, rate, burst);
    if verdict != Verdict::ADMITTED {
        tables.stage(Stage::Admit);
    }
    verdict
}

#[inline(always)]
fn verdict<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    index: u32,
    flags: u32,
    rate: u32,
    burst: u32,
) -> u32 {
    let Some(scratch) = tables.scratch() else { return Verdict::LOST };
    let Tuple { src, dst, .. } = scratch.tuple;
    if src == dst || src.is_unfit_source() || is_floating(tables, src) {
        return Verdict::SPOOFED;
    }
    if flags & FILTERED != 0
        && tables.source(source::list(index, flags), &src.mapped()) != Some(ALLOW)
    {
        return Verdict::DENIED;
    }
    if rate != 0 && !take_token(tables, index, src, rate, burst) {
        return Verdict::RATE_LIMITED;
    }
    Verdict::ADMITTED
}

/// Whether it is a floating address of ours. The filter answers first, the list of them only where that
/// says yes: another address may have the same bit.
#[inline(always)]
fn is_floating<A: Address, T: Tables>(tables: &T, address: A) -> bool {
    tables.vip(address.vip_bit()) != 0 && tables.source(FLOATING, &address.mapped()).is_some()
}

/// Takes a token from the source's bucket; false if there is none.
///
/// The bucket is kept as one number, the time at which it is full again (the virtual scheduling
/// algorithm of ITU-T I.371): each token moves it on by the time that a token takes to come back.
/// Two CPUs that take one at the same moment may pay for one only.
#[inline(always)]
fn take_token<A: Address, T: Tables>(
    tables: &T,
    service: u32,
    src: A,
    rate: u32,
    burst: u32,
) -> bool {
    let token_ns = SECOND_NS / u64::from(rate);
    let burst_ns = token_ns * u64::from(burst);
    let now_ns = tables.now_ns();
    let key = RateKey { service, address: src.limited() };
    let Some(bucket) = tables.bucket(&key) else {
        tables.add_bucket(&key, Bucket { full_ns: now_ns + token_ns });
        return true;
    };
    let missing_ns = bucket.full_ns.saturating_sub(now_ns);
    // More than a bucket holds is missing only if it was a larger one, before a reload.
    let missing_ns = if missing_ns > burst_ns { 0 } else { missing_ns };
    if missing_ns + token_ns > burst_ns {
        return false;
    }
    bucket.full_ns = now_ns + missing_ns + token_ns;
    true
}
