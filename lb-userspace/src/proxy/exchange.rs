//! One request: from the client to a backend, to another if that fails, and the answer back.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    upgrade::{self, OnUpgrade},
};
use tokio::time::{Instant, sleep};

use super::{
    access::Entry,
    answer::{Answer, Lease},
    attempt::{self, Patience},
    backend::{Active, Backend},
    budget::{Permit, Under},
    connect::{self, Link, Reply},
    decide::{self, Class, Decision, Facts, Failure, Next},
    head::{self, Head},
    headers,
    kept::{Fault, Kept},
    proof::Before,
    refuse::{self, Refusal},
    select::{self, Candidate},
    serve::{Client, Route},
    service::View,
    tried::Tried,
    tunnel,
};
use crate::{clock, config};

/// Answers a request.
pub(super) async fn exchange(client: &Arc<Client>, request: Request<Incoming>) -> Response<Answer> {
    // HTTP/2 says it in another way.
    let can_close = request.version() < Version::HTTP_2;
    let mut closes = can_close && headers::is_last(request.version(), request.headers());
    let mut response = answer(client, request).await;
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if client.open.ends() && can_close && !switches {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        closes = true;
    }
    if closes && response.body().is_at_hand() {
        client.edge.packets.ends();
    }
    response
}

async fn answer(client: &Arc<Client>, mut request: Request<Incoming>) -> Response<Answer> {
    let route = &client.route;
    let stats = &route.service.stats;
    stats.requests.add();
    let under = route.service.budget.enter();
    let begun = clock::timer();
    let view = route.view();
    let mut entry = view.log.as_ref().map(|log| {
        let line = (request.method(), request.uri(), request.version());
        Box::new(Entry::new(log, client.address.ip(), line, begun))
    });
    let (number, refused) = client.edge.next();
    if let Some(refusal) = refused {
        let entry = view
            .log
            .as_ref()
            .map(|log| Box::new(Entry::refused(log, client.address.ip(), refusal.label(), begun)));
        return refuse(refusal, client, under, entry);
    }
    let host = match refuse::host(&request, client.named.first_host()) {
        Ok(host) => host,
        Err(refusal) => return refuse(refusal, client, under, entry),
    };
    let host = host.unwrap_or_else(|| head::authority(client));
    let upgrades = upgrade::on(&mut request);
    let (parts, incoming) = request.into_parts();
    let http2 = view.proxy.upstream.http2;
    let head = Head::new(parts, client, http2, &host, entry.as_deref_mut());
    let repeatable = decide::is_repeatable(&head.method, false)
        || decide::is_repeatable(&head.method, head.headers.contains_key(headers::IDEMPOTENCY_KEY));
    let timeout = view.proxy.next_upstream.timeout;
    let mut exchange = Exchange {
        route,
        client,
        repeatable,
        body: Kept::new(incoming, &view.proxy, &route.service),
        head,
        begun,
        deadline: (!timeout.is_zero()).then(|| begun + timeout),
        view,
        tried: Tried::default(),
        again: None,
        permit: None,
        entry,
    };
    let gone = Gone(route);
    let outcome = exchange.run().await;
    std::mem::forget(gone);
    let entry = exchange.entry.take();
    match outcome {
        Outcome::Answer(answer, lease) => {
            let read_timeout = exchange.view.proxy.read_timeout;
            hand_back(client, answer, lease, upgrades, read_timeout, (under, entry))
        }
        Outcome::GivenUp(status) => {
            stats.gave_up(status);
            Answer::own(status, false, (client, under, entry))
        }
        Outcome::Refused(refusal) => {
            let refusal = client.edge.refusal(number).unwrap_or(refusal);
            refuse(refusal, client, under, entry)
        }
    }
}

/// What became of a request.
#[expect(clippy::large_enum_variant, reason = "nearly all are of the large one")]
enum Outcome {
    Answer(Response<Reply>, Lease),
    GivenUp(StatusCode),
    Refused(Refusal),
}

/// A request that is under way. If it is dropped so, its client has gone away.
struct Gone<'a>(&'a Route);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.service.stats.gone.add();
    }
}

fn refuse(
    refusal: Refusal,
    client: &Arc<Client>,
    under: Under,
    entry: Option<Box<Entry>>,
) -> Response<Answer> {
    client.route.service.stats.refused(refusal);
    Answer::own(refusal.status(), true, (client, under, entry))
}

/// Gives the client a backend's answer.
fn hand_back(
    client: &Arc<Client>,
    answer: Response<Reply>,
    lease: Lease,
    upgrades: OnUpgrade,
    read_timeout: Duration,
    (under, entry): (Under, Option<Box<Entry>>),
) -> Response<Answer> {
    let status = answer.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        client.edge.switch();
        tunnel::spawn(&client.route, upgrades, lease, Arc::clone(&client.open));
        let (mut parts, _) = answer.into_parts();
        let protocol = headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = protocol {
            headers::put_upgrade(&mut parts.headers, protocol);
        }
        return Response::from_parts(parts, Answer::empty(status, (client, under, entry)));
    }
    let (mut parts, incoming) = answer.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let body = Answer::relay(status, incoming, lease, read_timeout, (client, under, entry));
    Response::from_parts(parts, body)
}

/// A request on its way to a backend.
struct Exchange<'a> {
    route: &'a Arc<Route>,
    client: &'a Client,
    view: Arc<View>,
    head: Head,
    body: Kept,
    repeatable: bool,
    begun: Instant,
    deadline: Option<Instant>,
    /// The backends that it has been tried at, each once.
    tried: Tried,
    /// The backend to which a new connection is made, because a kept one was closed.
    again: Option<Active>,
    permit: Option<Permit>,
    entry: Option<Box<Entry>>,
}

/// A connection and whose it is; whether it was a kept one; when it was found.
struct Found {
    link: Link,
    active: Active,
    reused: bool,
    at: Instant,
}

impl Exchange<'_> {
    /// Attempts, until there is an answer or nothing left to try.
    async fn run(&mut self) -> Outcome {
        loop {
            let Found { mut link, active, reused, at } = match self.connection().await {
                Ok(found) => found,
                Err(status) => return Outcome::GivenUp(status),
            };
            let backend = Arc::clone(active.backend());
            active.count_request();
            let patience = Patience {
                proxy: &self.view.proxy,
                deadline: self.deadline,
                hasty: &|| {
                    matches!(
                        self.facts(Failure::ReadTimeout, true, reused).1.next,
                        Next::Other { .. }
                    )
                },
            };
            let resets = self.route.service.resets.as_deref();
            let may_be_stale = reused && !self.repeatable && link.shared().is_none();
            let before = if may_be_stale { Before::look(&mut link, resets) } else { None };
            let asked = self.view.proxy.least_time.then(clock::timer);
            let result =
                attempt::attempt(&mut link, &backend, &self.head, &self.body, at, patience).await;
            let (failure, sent) = match result {
                Ok(mut answer) => {
                    if let Some(asked) = asked {
                        let now = clock::timer();
                        backend.took(now - asked, now);
                    }
                    let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
                    let is_asked = !switches || self.head.upgrade;
                    if !is_asked || headers::has_two_lengths(answer.headers_mut()) {
                        (Failure::InvalidHeader, true)
                    } else if let Some(decision) = self.judge(answer.status(), &backend)
                        && let Next::Other { .. } = decision.next
                        && self.may_retry(true).await
                    {
                        self.note(&backend, answer.status().as_str());
                        self.route.service.stats.retries.add();
                        continue;
                    } else {
                        self.note(&backend, "answered");
                        let keepalive = self.view.proxy.keepalive;
                        let permit = self.permit.take();
                        return Outcome::Answer(
                            answer,
                            Lease { link, active, _permit: permit, keepalive },
                        );
                    }
                }
                Err(failed) => (failed.failure, failed.sent),
            };
            if let Some(fault) = self.body.fault() {
                return Outcome::Refused(match fault {
                    Fault::Broken => Refusal::Body,
                    Fault::Slow => Refusal::SlowBody,
                });
            }
            let mut sent = sent;
            if sent
                && failure == Failure::Closed
                && let Some(before) = before
                && self.body.is_kept()
                && Box::pin(
                    before.proves_undelivered(
                        Arc::clone(&link.tcp),
                        resets.filter(|_| link.is_watched),
                    ),
                )
                .await
            {
                self.route.service.stats.undelivered.add();
                sent = false;
            }
            let (_, Decision { next, charge }) = self.facts(failure, sent, reused);
            if charge {
                backend.charge(failure);
            }
            self.note(&backend, failure.word());
            match next {
                Next::Again => {
                    self.route.service.stats.reopened.add();
                    self.again = Some(active);
                }
                Next::Other { from_budget } => {
                    drop((link, active));
                    if !self.may_retry(from_budget).await {
                        return Outcome::GivenUp(failure.status());
                    }
                    self.route.service.stats.retries.add();
                }
                Next::Answer(status) => return Outcome::GivenUp(status),
                Next::Pass | Next::Cut => return Outcome::GivenUp(failure.status()),
            }
        }
    }

    /// Judges a backend by the status of its answer.
    fn judge(&self, status: StatusCode, backend: &Backend) -> Option<Decision> {
        let Some(class) = Class::of_status(status) else {
            backend.answered();
            return None;
        };
        let failure = Failure::Status(class);
        let (_, decision) = self.facts(failure, true, false);
        if decision.charge {
            backend.charge(failure);
        } else {
            backend.answered();
        }
        Some(decision)
    }

    /// A connection to a backend: a kept one, or the first that is made. A backend that does not accept
    /// within its patience is raced by another: no request is sent before one of them has won.
    async fn connection(&mut self) -> Result<Found, StatusCode> {
        // After a kept connection that was closed, another kept one would likely be closed as well.
        let first = if let Some(again) = self.again.take() {
            again
        } else {
            // Nearly all requests come this far in one go.
            let mut at = self.tried.is_empty().then_some(self.begun);
            let active = if let Some(active) = self.pick() {
                active
            } else {
                at = None;
                self.wait_for_one().await?
            };
            if let Some(link) = self.client.pool().take(active.backend()) {
                let at = at.unwrap_or_else(clock::timer);
                return Ok(Found { link, active, reused: true, at });
            }
            active
        };
        // What is seldom needed should not make the state of every request larger.
        Box::pin(self.new_connection(first)).await
    }

    /// A connection to this backend, or the first that is made to another.
    async fn new_connection(&mut self, first: Active) -> Result<Found, StatusCode> {
        let mut racing = FuturesUnordered::new();
        let mut overdue: Vec<Arc<Backend>> = Vec::new();
        let mut last = StatusCode::BAD_GATEWAY;
        racing.push(race(first, Arc::clone(&self.view), self.client));
        let mut more = false;
        loop {
            if std::mem::take(&mut more) {
                match self.pick() {
                    Some(active) => match self.client.pool().take(active.backend()) {
                        Some(link) => {
                            return Ok(Found { link, active, reused: true, at: clock::timer() });
                        }
                        None => racing.push(race(active, Arc::clone(&self.view), self.client)),
                    },
                    None if racing.is_empty() => return Err(last),
                    None => {}
                }
            }
            let patience = self.tried.last().map(|backend| backend.patience()).unwrap_or_default();
            let (late, decision) = self.facts(Failure::ConnectTimeout, false, false);
            let may_race = matches!(decision.next, Next::Other { .. });
            let left = self.deadline.map(|deadline| deadline - clock::timer());
            tokio::select! {
                biased;
                Some((active, result)) = racing.next() => {
                    let failure = match result {
                        Ok(link) => {
                            return Ok(Found { link, active, reused: false, at: clock::timer() });
                        }
                        Err(failure) => failure,
                    };
                    let backend = Arc::clone(active.backend());
                    drop(active);
                    let (_, Decision { next, charge }) = self.facts(failure, false, false);
                    let told = overdue.iter().any(|other| Arc::ptr_eq(other, &backend));
                    if charge && !told {
                        backend.charge(failure);
                    }
                    self.note(&backend, failure.word());
                    last = failure.status();
                    match next {
                        Next::Other { .. } => {
                            self.route.service.stats.retries.add();
                            more = true;
                        }
                        _ if racing.is_empty() => return Err(last),
                        _ => {}
                    }
                }
                () = sleep(patience), if may_race => {
                    if let Some(backend) = self.tried.last().cloned() {
                        backend.charge(late.failure);
                        overdue.push(backend);
                    }
                    self.route.service.stats.retries.add();
                    more = true;
                }
                () = sleep(left.unwrap_or_default()), if left.is_some() => {
                    return Err(StatusCode::GATEWAY_TIMEOUT);
                }
            }
        }
    }

    /// The next backend, once one is there that may have another request. There is none now.
    async fn wait_for_one(&mut self) -> Result<Active, StatusCode> {
        let full = self.view.proxy.max_requests > 0
            && [true, false].iter().any(|serving| self.candidates(*serving, 0).next().is_some());
        if !full {
            return Err(StatusCode::BAD_GATEWAY);
        }
        let stats = &self.route.service.stats;
        stats.queued.add();
        let service = Arc::clone(&self.route.service);
        let config::Proxy { queue, queue_timeout, .. } = *self.view.proxy;
        let left = self.deadline.map(|deadline| deadline - clock::timer());
        let patience = left.map_or(queue_timeout, |left| left.min(queue_timeout));
        let found = service.queue.wait(queue, patience, || self.pick()).await;
        found.ok_or_else(|| {
            stats.overloaded.add();
            StatusCode::SERVICE_UNAVAILABLE
        })
    }

    /// The next backend, if there is one that this request has not been tried at, and that may have
    /// another request.
    fn pick(&mut self) -> Option<Active> {
        self.view = self.route.view();
        let most = self.view.proxy.max_requests;
        loop {
            let place = self.place(true, most).or_else(|| self.place(false, most))?;
            let backend = Arc::clone(&self.view.seats[place].backend);
            // Another worker may have been faster; then it is no candidate any more.
            if let Some(active) = Active::new(Arc::clone(&backend), most) {
                self.tried.push(backend);
                return Some(active);
            }
        }
    }

    /// The place of the backend that is to have the request, if there is a candidate.
    fn place(&self, serving: bool, most: u32) -> Option<usize> {
        let mut candidates = self.candidates(serving, most);
        let first = candidates.next()?;
        let Some(second) = candidates.next() else { return Some(first.place) };
        let candidates: Vec<_> = [first, second].into_iter().chain(candidates).collect();
        let turn = self.route.turn();
        if self.view.proxy.least_time {
            return select::soonest(&candidates, turn);
        }
        select::choose(self.view.balance, &candidates, turn, self.client.address.ip())
    }

    /// The backends that have not been tried and have fewer than `most` requests (0: any number): those
    /// that serve, or the spare ones.
    fn candidates(&self, serving: bool, most: u32) -> impl Iterator<Item = Candidate> {
        let now = self.view.proxy.least_time.then(clock::timer);
        let has_room = move |backend: &Backend| most == 0 || backend.active() < most;
        let seats = self.view.seats.iter().enumerate();
        let left = seats.filter(move |(_, seat)| {
            (if serving { seat.serving } else { seat.spare })
                && !self.has_tried(&seat.backend)
                && has_room(&seat.backend)
        });
        left.map(move |(place, seat)| Candidate {
            place,
            weight: seat.weight,
            active: seat.backend.active(),
            micros: now.map_or(0, |now| seat.backend.micros(now)),
        })
    }

    fn has_tried(&self, backend: &Arc<Backend>) -> bool {
        self.tried.has(backend)
    }

    /// What is known if an attempt fails so, and what follows from it.
    fn facts(&self, failure: Failure, sent: bool, reused: bool) -> (Facts, Decision) {
        let others = self
            .view
            .seats
            .iter()
            .any(|seat| (seat.serving || seat.spare) && !self.has_tried(&seat.backend));
        let facts = Facts {
            failure,
            sent,
            reused,
            repeatable: self.repeatable,
            kept: self.body.is_kept(),
            begun: false,
            attempts: self.tried.count(),
            others,
            elapsed: clock::timer() - self.begun,
        };
        (facts, decide::decide(self.view.proxy.next_upstream, &facts))
    }

    /// Waits for a share of the retry budget, if it needs one.
    async fn may_retry(&mut self, from_budget: bool) -> bool {
        if !from_budget {
            return true;
        }
        // What this request has of it already comes back first.
        self.permit = None;
        let proxy = &self.view.proxy;
        let budget = &self.route.service.budget;
        self.permit = budget.retry(proxy.retry_per_mille, proxy.connect_timeout).await;
        if self.permit.is_none() {
            self.route.service.stats.budget_spent.add();
        }
        self.permit.is_some()
    }

    fn note(&mut self, backend: &Backend, outcome: &str) {
        if let Some(entry) = &mut self.entry {
            entry.tried(&backend.name, outcome);
        }
    }
}

async fn race(active: Active, view: Arc<View>, client: &Client) -> (Active, Result<Link, Failure>) {
    let result = connect::connect(active.backend(), &view, client.ends).await;
    if let Ok(link) = &result
        && view.proxy.keepalive > 0
    {
        client.pool().share(active.backend(), link);
    }
    (active, result)
}
