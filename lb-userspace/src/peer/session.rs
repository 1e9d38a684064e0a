//! The session with one other node: a pure machine. Datagrams and the time go in, datagrams and news
//! come out.
//!
//! ```text
//!             hello that shows my nonce
//!   (waiting) ─────────────────────────▶ (up) ──┐ a hello that shows my next nonce:
//!       ▲                                 │  ▲  │ the other side has been started anew
//!       └─────────────────────────────────┘  └──┘
//!            silence for SILENT
//! ```
//!
//! *Waiting*, a node says hello every [`HELLO_EVERY`] with its nonce, and answers each hello by showing
//! the nonce that came with it. A hello that shows the own nonce proves that the other side lives: then
//! both nonces make the session's keys, and the nonce is replaced by a fresh one, so that the same hello
//! proves nothing a second time. While a session is up, it goes on until a hello shows the fresh nonce.
//!
//! *Up*, a [`Beat`] goes out every [`BEAT_EVERY`]. Changes of flow tables go in the [stream](super::stream);
//! wishes to fence are repeated until they are answered.

use std::{collections::BTreeMap, collections::VecDeque, sync::Arc, time::Duration};

use super::{
    stream::{Incoming, Outgoing},
    window::Window,
    wire::{
        self, End, Hello, Keys, MAX_BODY, NO_NONCE, Nonce, Refusal, SessionKeys,
        change::{self, Item},
        frame::{About, Beat, Fence, Frame, MAX_FENCE_NAME, frames},
    },
    word::{self, Assembly},
};
use crate::dataplane::sync::Change;

/// Time between two hellos while there is no session.
const HELLO_EVERY: Duration = Duration::from_millis(200);

/// Time between two signs of life.
pub const BEAT_EVERY: Duration = Duration::from_millis(200);

/// A node that has been silent for so long is down. Ten beats: this decides nothing about addresses, and
/// a process may be late.
pub const SILENT: Duration = Duration::from_secs(2);

/// Time between two repetitions of a wish to fence.
const FENCE_EVERY: Duration = Duration::from_millis(100);

/// A fence that nobody has answered after so long is no longer asked for.
const FENCE_FOR: Duration = Duration::from_mins(1);

/// Wishes and answers of this kind that are kept for one node.
const MOST_FENCES: usize = 64;

/// Answers to hellos in a row, without a pause of [`HELLO_EVERY`]: who plays old hellos gets no more.
const MOST_ANSWERS: u32 = 8;

/// Parts that may wait for a node that counts as in sync.
const SYNC_BACKLOG: u32 = 64;

/// Where fresh random numbers come from.
pub type Fresh<'a> = &'a mut dyn FnMut() -> Nonce;

/// What comes out of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To be sent.
    Send(Vec<u8>),
    /// A session has begun, perhaps in place of another: the other node knows nothing of this one.
    Up,
    /// The session is over.
    Down,
    /// The other node's configuration, or what it says of itself, is known now or has changed.
    About(About),
    /// A change of the other node's flow table.
    Change(Change),
    /// From here on come all its connections.
    All,
    /// All its connections have come.
    InSync,
    /// The other node wants something cut off: to be answered by [`Session::fenced`].
    FenceWanted(Fence),
    /// The other node has cut off what was asked for.
    Fenced(Fence),
    /// The other node has a word for this one.
    Word(Vec<u8>),
    /// A datagram was not accepted.
    Refused(Refusal),
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    own: String,
    peer: String,
    keys: Arc<Keys>,
    /// For the next session.
    nonce: Nonce,
    up: Option<Up>,
    about: About,
    /// When the flow tables here were created.
    created: Duration,
    next_hello: Duration,
    answers: u32,
    /// Wishes that have not been answered: when they began, and when they are repeated.
    wanted: BTreeMap<Fence, (Duration, Duration)>,
    /// What was answered lately, to be answered again if the answer was lost.
    answered: VecDeque<Fence>,
    out: Vec<Output>,
}

/// An open session.
#[derive(Debug)]
struct Up {
    own_nonce: Nonce,
    peer_nonce: Nonce,
    keys: SessionKeys,
    sequence: u64,
    window: Window,
    heard: Duration,
    next_beat: Duration,
    /// The clock of the other node that came last, and when.
    echo: Option<(u64, Duration)>,
    round_trip: Option<Duration>,
    about: Option<About>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// Something has come that is to be acknowledged.
    owes_ack: bool,
    /// Changes were lost for want of room: all has to be sent once more.
    lost: bool,
    /// All of the other node's connections have come.
    complete: bool,
    /// Parts that the other node has yet to send.
    peer_backlog: u32,
    /// How old the other node's flow tables were, and when that was.
    peer_table: Option<(Duration, Duration)>,
    /// Changes sent, and received.
    sent: u64,
    received: u64,
    /// Words said, and the one that is coming.
    words: u32,
    word: Assembly,
}

/// What can be said of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// There is one.
    pub up: bool,
    /// This node has all connections of the other.
    pub in_sync: bool,
    /// Time until an answer.
    pub round_trip: Option<Duration>,
    /// What the other node says of itself.
    pub about: Option<About>,
    /// Changes sent since it began.
    pub sent: u64,
    /// Changes received since it began.
    pub received: u64,
    /// Parts that wait here to be sent, or to be acknowledged.
    pub backlog: usize,
    /// Parts that were sent again.
    pub repeated: u64,
}

impl Session {
    /// The machine of node `own` for the node `peer`.
    pub fn new(own: &str, peer: &str, keys: Arc<Keys>, fresh: Fresh<'_>) -> Self {
        Self {
            own: own.to_owned(),
            peer: peer.to_owned(),
            keys,
            nonce: fresh(),
            up: None,
            about: About::default(),
            created: Duration::ZERO,
            next_hello: Duration::ZERO,
            answers: 0,
            wanted: BTreeMap::new(),
            answered: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// Takes what has come out since the last call.
    pub fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    /// How it stands.
    pub fn summary(&self) -> Summary {
        let Some(up) = &self.up else { return Summary::default() };
        Summary {
            up: true,
            in_sync: up.complete && up.peer_backlog <= SYNC_BACKLOG,
            round_trip: up.round_trip,
            about: up.about,
            sent: up.sent,
            received: up.received,
            backlog: up.outgoing.backlog(),
            repeated: up.outgoing.repeated(),
        }
    }

    /// When the flow tables here were created, on the clock that `now` is of.
    pub fn set_created(&mut self, created: Duration) {
        self.created = created;
    }

    /// What this node tells of itself from now on. News goes out with the next tick.
    pub fn set_about(&mut self, about: About) {
        if std::mem::replace(&mut self.about, about) != about
            && let Some(up) = &mut self.up
        {
            up.next_beat = Duration::ZERO;
        }
    }

    /// Takes a datagram from the other node's address.
    pub fn receive(&mut self, datagram: &[u8], now: Duration, fresh: Fresh<'_>) {
        let result = if wire::is_hello(datagram) {
            self.keys.open_hello(datagram).and_then(|hello| self.hello(&hello, now, fresh))
        } else {
            self.data(datagram, now)
        };
        if let Err(refusal) = result {
            self.out.push(Output::Refused(refusal));
        }
    }

    /// Time has passed: what is due goes out.
    pub fn tick(&mut self, now: Duration) {
        if self.up.as_ref().is_some_and(|up| now.saturating_sub(up.heard) >= SILENT) {
            self.up = None;
            self.next_hello = now;
            self.out.push(Output::Down);
        }
        self.wanted.retain(|_, (since, _)| now.saturating_sub(*since) < FENCE_FOR);
        if self.up.is_none() {
            if now >= self.next_hello {
                self.answers = 0;
                self.next_hello = now + HELLO_EVERY;
                self.say_hello(self.nonce, NO_NONCE, false);
            }
            return;
        }
        if now >= self.next_hello {
            self.answers = 0;
            self.next_hello = now + HELLO_EVERY;
        }
        self.send_due(now);
    }

    /// When [`Session::tick`] has something to do at the latest, if nothing comes.
    pub fn deadline(&self) -> Duration {
        let Some(up) = &self.up else { return self.next_hello };
        let fences = self.wanted.values().map(|(_, at)| *at);
        let others = [Some(up.next_beat), up.outgoing.deadline(), fences.min()];
        let soonest = others.into_iter().flatten().min().unwrap_or(up.next_beat);
        soonest.min(up.heard + SILENT)
    }

    /// How old the other node's flow tables are, once it has said so.
    pub fn table_age(&self, now: Duration) -> Option<Duration> {
        let (age, at) = self.up.as_ref()?.peer_table?;
        Some(age + now.saturating_sub(at))
    }

    /// Parts of changes that [`Session::send`] takes; 0 without a session.
    pub fn room(&self) -> usize {
        self.up.as_ref().map_or(0, |up| up.outgoing.room())
    }

    /// Whether changes were lost since the last call, so that all connections are to be sent again.
    pub fn take_lost(&mut self) -> bool {
        self.up.as_mut().is_some_and(|up| std::mem::take(&mut up.lost))
    }

    /// Sends changes, in order, with the next tick. Without a session nothing is sent.
    pub fn send(&mut self, items: &[Item]) {
        let Some(up) = &mut self.up else { return };
        let changes = items.iter().filter(|item| matches!(item, Item::Change(_))).count();
        up.sent += changes as u64;
        for part in change::pack(items) {
            if !up.outgoing.push(part) {
                up.lost = true;
                return;
            }
        }
    }

    /// Asks the other node to cut something off, until it answers or a minute has passed. A name of more
    /// than [`MAX_FENCE_NAME`] bytes is not asked for.
    pub fn fence(&mut self, fence: Fence, now: Duration) {
        if fence.name.len() > MAX_FENCE_NAME || self.wanted.len() >= MOST_FENCES {
            return;
        }
        // An older wish of the same name means nothing any more.
        self.wanted.retain(|it, _| it.name != fence.name || it.generation >= fence.generation);
        self.wanted.insert(fence, (now, now));
    }

    /// Answers the other node that it is cut off.
    pub fn fenced(&mut self, fence: Fence) {
        self.answered.retain(|it| it.name != fence.name);
        if self.answered.len() >= MOST_FENCES {
            self.answered.pop_front();
        }
        self.answered.push_back(fence.clone());
        self.send_frame(&Frame::Fenced(fence));
    }

    /// Says a word at once. It may get lost, and without a session it is; one of more than
    /// [`MAX_WORD`](word::MAX_WORD) bytes is not said.
    pub fn say(&mut self, word: &[u8]) {
        let Some(up) = &mut self.up else { return };
        up.words = up.words.wrapping_add(1);
        for frame in word::split(up.words, word) {
            self.send_frame(&frame);
        }
    }

    fn say_hello(&mut self, nonce: Nonce, seen: Nonce, done: bool) {
        let (from, to) = (self.own.clone(), self.peer.clone());
        let datagram = self.keys.seal_hello(&Hello { from, to, nonce, seen, done });
        self.out.push(Output::Send(datagram));
    }

    fn hello(&mut self, hello: &Hello, now: Duration, fresh: Fresh<'_>) -> Result<(), Refusal> {
        if hello.from != self.peer || hello.to != self.own {
            return Err(Refusal::Misdirected);
        }
        if let Some(up) = &self.up
            && (hello.seen, hello.nonce) == (up.own_nonce, up.peer_nonce)
        {
            // Of the session that there is. The other side may not know yet that there is one.
            let (nonce, seen) = (up.own_nonce, up.peer_nonce);
            if !hello.done && self.may_answer() {
                self.say_hello(nonce, seen, true);
            }
            return Ok(());
        }
        if hello.seen == self.nonce {
            self.begin(hello.nonce, now, fresh);
        } else if hello.seen == NO_NONCE && self.may_answer() {
            self.say_hello(self.nonce, hello.nonce, false);
        }
        // One that has seen another nonce is an answer to somebody who is no more. To answer it would let
        // whoever has recorded a hello make two nodes begin a session anew.
        Ok(())
    }

    fn may_answer(&mut self) -> bool {
        self.answers += 1;
        self.answers <= MOST_ANSWERS
    }

    fn begin(&mut self, peer_nonce: Nonce, now: Duration, fresh: Fresh<'_>) {
        let own_nonce = std::mem::replace(&mut self.nonce, fresh());
        let own = End { name: &self.own, nonce: &own_nonce };
        let keys = self.keys.session(own, End { name: &self.peer, nonce: &peer_nonce });
        self.say_hello(own_nonce, peer_nonce, true);
        self.up = Some(Up {
            own_nonce,
            peer_nonce,
            keys,
            sequence: 0,
            window: Window::default(),
            heard: now,
            next_beat: now,
            echo: None,
            round_trip: None,
            about: None,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            owes_ack: false,
            lost: false,
            complete: false,
            peer_backlog: 0,
            peer_table: None,
            sent: 0,
            received: 0,
            words: 0,
            word: Assembly::default(),
        });
        // Whoever was started anew remembers no wish.
        for (_, next) in self.wanted.values_mut() {
            *next = now;
        }
        self.answered.clear();
        self.out.push(Output::Up);
    }

    fn data(&mut self, datagram: &[u8], now: Duration) -> Result<(), Refusal> {
        let Some(up) = &mut self.up else {
            return Err(Refusal::NoSession);
        };
        // One that is sealed otherwise may be of the session before.
        let (sequence, body) = up.keys.open(datagram).map_err(|refusal| match refusal {
            Refusal::Unauthentic => Refusal::NoSession,
            other => other,
        })?;
        if !up.window.accept(sequence) {
            return Err(Refusal::Replayed);
        }
        up.heard = now;
        for frame in frames(body) {
            self.frame(frame, now);
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame<'_>, now: Duration) {
        let Some(up) = &mut self.up else { return };
        match frame {
            Frame::Beat(beat) => {
                up.echo = Some((beat.clock_us, now));
                up.peer_backlog = beat.backlog;
                up.peer_table = Some((Duration::from_millis(beat.table_age_ms), now));
                if beat.echo_us != 0 {
                    let held = Duration::from_micros(beat.held_us.into());
                    let sent = Duration::from_micros(beat.echo_us);
                    let took = now.saturating_sub(sent).saturating_sub(held);
                    let mean = up.round_trip.map_or(took, |mean| (mean * 7 + took) / 8);
                    up.round_trip = Some(mean);
                }
                if up.about.replace(beat.about) != Some(beat.about) {
                    self.out.push(Output::About(beat.about));
                }
            }
            Frame::Ack(ack) => up.outgoing.acknowledged(ack, now),
            Frame::Part(number, content) => {
                up.owes_ack = true;
                for part in up.incoming.take(number, content) {
                    for item in change::unpack(&part) {
                        match item {
                            Item::All => {
                                up.complete = false;
                                self.out.push(Output::All);
                            }
                            Item::AllSent => {
                                up.complete = true;
                                self.out.push(Output::InSync);
                            }
                            Item::Change(change) => {
                                up.received += 1;
                                self.out.push(Output::Change(change));
                            }
                        }
                    }
                }
            }
            Frame::Fence(fence) => {
                if self.answered.contains(&fence) {
                    self.send_frame(&Frame::Fenced(fence));
                } else {
                    self.out.push(Output::FenceWanted(fence));
                }
            }
            Frame::Fenced(fence) => {
                if self.wanted.remove(&fence).is_some() {
                    self.out.push(Output::Fenced(fence));
                }
            }
            Frame::Word(piece) => self.out.extend(up.word.take(piece).map(Output::Word)),
        }
    }

    /// Sends one frame in a datagram of its own.
    fn send_frame(&mut self, frame: &Frame<'_>) {
        let Some(up) = &mut self.up else { return };
        let mut body = Vec::new();
        if frame.write(&mut body) {
            up.send(&body, &mut self.out);
        }
    }

    /// Sends what is due: a beat, an acknowledgement, parts, wishes.
    fn send_due(&mut self, now: Duration) {
        let Some(up) = &mut self.up else { return };
        let mut body = Vec::with_capacity(MAX_BODY);
        if now >= up.next_beat {
            up.next_beat = now + BEAT_EVERY;
            let (echo_us, held) = up
                .echo
                .map_or((0, Duration::ZERO), |(clock_us, at)| (clock_us, now.saturating_sub(at)));
            let beat = Beat {
                clock_us: now.as_micros() as u64,
                echo_us,
                held_us: u32::try_from(held.as_micros()).unwrap_or(u32::MAX),
                backlog: up.outgoing.backlog() as u32,
                table_age_ms: now.saturating_sub(self.created).as_millis() as u64,
                about: self.about,
            };
            // An empty body has room for it.
            let _ = Frame::Beat(beat).write(&mut body);
            up.owes_ack = true;
        }
        if std::mem::take(&mut up.owes_ack) {
            let _ = Frame::Ack(up.incoming.ack()).write(&mut body);
        }
        for (fence, (_, next)) in &mut self.wanted {
            if now >= *next {
                *next = now + FENCE_EVERY;
                up.put(&Frame::Fence(fence.clone()), &mut body, &mut self.out);
            }
        }
        while let Some(number) = up.outgoing.next(now) {
            let Some(content) = up.outgoing.content(number) else { break };
            let content = content.to_vec();
            up.put(&Frame::Part(number, &content), &mut body, &mut self.out);
        }
        if !body.is_empty() {
            up.send(&body, &mut self.out);
        }
    }
}

impl Up {
    /// Puts a frame into the body, which is sent first if it has no room.
    fn put(&mut self, frame: &Frame<'_>, body: &mut Vec<u8>, out: &mut Vec<Output>) {
        if !frame.write(body) {
            self.send(body, out);
            body.clear();
            // Every frame fits into an empty body.
            let _ = frame.write(body);
        }
    }

    fn send(&mut self, body: &[u8], out: &mut Vec<Output>) {
        self.sequence += 1;
        out.push(Output::Send(self.keys.seal(self.sequence, body)));
    }
}

#[cfg(test)]
mod tests;
