//! The task that looks, once a second, what is wrong, and hands what is news to the channels.
//!
//! With several nodes, the one that has a floating address tells; one that has none tells only while no node of
//! the configuration has any. Each node's own syslog gets all that the node knows. Cancelling the task loses
//! what waits in the queues, and what has been told: a new one tells anew what lasts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    Notice, Severity,
    channel::Channel,
    condition::{self, Condition},
    desk::Desk,
    message,
    status::{Alerts, Tested},
};
use crate::{
    clock,
    config::{Alert, Config, Receiver},
    control::{
        status::{Status, View},
        task::Handle as Control,
    },
    events::{Event, Kind, Note, Timeline},
    postgres::{databases::Databases, record::Loss, status::Database},
};

/// Time between two looks.
const TICK: Duration = Duration::from_secs(1);

/// What the configuration says of alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Name of the cluster.
    pub cluster: String,
    /// Names of all nodes.
    pub nodes: BTreeSet<String>,
    /// Where alerts are told.
    pub channels: Vec<Alert>,
    /// Warnings of the file itself, which are no alerts.
    pub known: BTreeSet<String>,
}

impl Settings {
    /// Those of a configuration that was read with these warnings.
    #[must_use]
    pub fn new(config: &Config, warnings: &[String]) -> Self {
        Self {
            cluster: config.cluster.name.clone(),
            nodes: config.nodes.iter().map(|node| node.name.clone()).collect(),
            channels: config.alerts.clone(),
            known: warnings.iter().cloned().collect(),
        }
    }
}

/// What the task looks at.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This node.
    pub node: String,
    /// The state of the node.
    pub control: Control,
    /// The databases.
    pub databases: Databases,
    /// Faults come from there, and what is told goes there.
    pub timeline: Arc<Timeline>,
    /// What the configuration says now.
    pub settings: watch::Receiver<Settings>,
}

/// Asks the task; cheap to copy.
#[derive(Clone, Debug)]
pub struct Handle {
    tests: mpsc::Sender<(Option<String>, oneshot::Sender<Vec<Tested>>)>,
    status: watch::Receiver<Alerts>,
}

impl Handle {
    /// How alerts stand.
    #[must_use]
    pub fn status(&self) -> Alerts {
        self.status.borrow().clone()
    }

    /// Sends a test message to all channels, or to one, and says what has become of each.
    pub async fn test(&self, channel: Option<String>) -> Vec<Tested> {
        let (sender, answer) = oneshot::channel();
        // It fails if the task has ended: then there is no channel.
        let _ = self.tests.send((channel, sender)).await;
        answer.await.unwrap_or_default()
    }
}

/// What was known of a database at the last look.
#[derive(Clone, Debug, Default)]
struct Before {
    epoch: u64,
    primary: Option<String>,
    refused: Option<String>,
    loss: Option<Loss>,
}

struct Task {
    setup: Setup,
    channels: Vec<Channel>,
    /// For those who hear of the cluster, from one node.
    common: Desk,
    /// For this node's own log.
    own: Desk,
    databases: BTreeMap<String, Before>,
    status: watch::Sender<Alerts>,
}

/// Starts the task.
#[must_use]
pub fn start(setup: Setup) -> Handle {
    let (tests_sender, tests) = mpsc::channel(4);
    let status = watch::Sender::new(Alerts::default());
    let handle = Handle { tests: tests_sender, status: status.subscribe() };
    let cluster = setup.settings.borrow().cluster.clone();
    let (_, events) = setup.timeline.follow();
    let task = Task {
        channels: Vec::new(),
        common: Desk::new(&cluster, &setup.node),
        own: Desk::new(&cluster, &setup.node),
        databases: BTreeMap::new(),
        status,
        setup,
    };
    tokio::spawn(task.run(tests, events));
    handle
}

impl Task {
    async fn run(
        mut self,
        mut tests: mpsc::Receiver<(Option<String>, oneshot::Sender<Vec<Tested>>)>,
        mut events: broadcast::Receiver<Event>,
    ) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.configure();
        loop {
            tokio::select! {
                changed = self.setup.settings.changed() => match changed {
                    Ok(()) => self.configure(),
                    // The daemon ends.
                    Err(_) => return,
                },
                Some((name, answer)) = tests.recv() => self.test(name.as_deref(), answer),
                _ = ticks.tick() => {
                    let news = drain(&mut events);
                    if !self.channels.is_empty() {
                        self.look(&news).await;
                    }
                }
            }
            self.show();
        }
    }

    /// Ends channels that are configured no longer, or otherwise, and starts new ones.
    fn configure(&mut self) {
        let wanted = self.setup.settings.borrow_and_update().channels.clone();
        self.channels.retain(|channel| wanted.contains(channel.config()));
        for config in wanted {
            if !self.channels.iter().any(|channel| *channel.config() == config) {
                self.channels.push(Channel::start(config, Arc::clone(&self.setup.timeline)));
            }
        }
    }

    fn test(&self, name: Option<&str>, answer: oneshot::Sender<Vec<Tested>>) {
        let cluster = self.setup.settings.borrow().cluster.clone();
        let notice = message::test(&cluster, &self.setup.node, clock::wall());
        let wanted = |channel: &&Channel| name.is_none_or(|name| channel.config().name == name);
        let tests: Vec<_> = self
            .channels
            .iter()
            .filter(wanted)
            .map(|channel| (channel.config().name.clone(), channel.test(notice.clone())))
            .collect();
        // Beside the task, which goes on looking meanwhile.
        tokio::spawn(async move {
            let tests = tests
                .into_iter()
                .map(|(channel, test)| async move { Tested { channel, error: test.await.err() } });
            // Who asked may have gone away.
            let _ = answer.send(futures_util::future::join_all(tests).await);
        });
    }

    async fn look(&mut self, news: &[Event]) {
        // No service is called so: the backends are none of our business.
        let view = View { service: Some(String::new()), all: false };
        let Ok(status) = self.setup.control.status(view).await else { return };
        let settings = self.setup.settings.borrow().clone();
        let databases = self.setup.databases.status();
        let mut conditions = Vec::new();
        condition::of_node(&status, &settings.known, &mut conditions);
        for database in &databases {
            condition::of_database(database, &mut conditions);
        }
        let channels: Vec<_> = self.channels.iter().map(Channel::status).collect();
        condition::of_channels(&self.setup.node, &channels, &mut conditions);
        let mut happened = self.changes(&databases);
        happened.extend(news.iter().filter_map(|event| fault(event, &status)));
        let speaks = speaks(&status, &settings.nodes);
        self.tell(&conditions, &happened, speaks);
        self.status.send_modify(|it| it.speaks = speaks);
    }

    fn tell(&mut self, conditions: &[Condition], happened: &[Condition], speaks: bool) {
        let (now, wall) = (clock::monotonic(), clock::wall());
        let ask = |desk: &mut Desk, speaks| {
            let mut notices = desk.look(conditions.to_vec(), speaks, now, wall);
            notices.extend(happened.iter().filter_map(|it| desk.event(it, speaks, now, wall)));
            notices
        };
        let (common, own) = (ask(&mut self.common, speaks), ask(&mut self.own, true));
        for notice in &own {
            self.setup.timeline.add(Note::new(Kind::Alert, message::text(notice)));
        }
        for channel in &self.channels {
            let syslog = matches!(channel.config().receiver, Receiver::Syslog { .. });
            let notices: &[Notice] = if syslog { &own } else { &common };
            for notice in notices {
                channel.offer(notice);
            }
        }
    }

    /// What has happened to the databases since the last look.
    fn changes(&mut self, databases: &[Database]) -> Vec<Condition> {
        let mut happened = Vec::new();
        for database in databases {
            let name = &database.name;
            let first = !self.databases.contains_key(name);
            let before = self.databases.entry(name.clone()).or_default();
            let mut add = |alert, text| {
                if !first {
                    let (subject, severity) = (name.clone(), Severity::Warning);
                    happened.push(Condition {
                        alert,
                        subject,
                        severity,
                        text,
                        hold: Duration::ZERO,
                    });
                }
            };
            if let Some(change) = &database.change {
                before.loss = change.loss;
            }
            if database.epoch > before.epoch {
                let now = database.primary.as_deref().unwrap_or("nobody");
                let was = before.primary.as_deref().unwrap_or("nobody");
                let lost = before.loss.take().map_or_else(String::new, |loss| match loss {
                    Loss { proven: true, .. } => " No acknowledged write is lost.".into(),
                    Loss { at_most, .. } => format!(" At most {at_most} bytes of log are lost."),
                });
                // A record that is the first of its database is no promotion.
                if before.epoch > 0 {
                    add(
                        "promoted",
                        format!(
                            "{now} is the primary of {name} now, {was} was (epoch {}, timeline {}).{lost}",
                            database.epoch, database.timeline
                        ),
                    );
                }
            }
            if let Some(why) = &database.refused
                && before.refused.as_ref() != Some(why)
            {
                add(
                    "failover_refused",
                    format!("a change of the primary of {name} came to nothing: {why}"),
                );
            }
            before.epoch = database.epoch;
            before.primary.clone_from(&database.primary);
            before.refused.clone_from(&database.refused);
        }
        self.databases.retain(|name, _| databases.iter().any(|it| it.name == *name));
        happened
    }

    fn show(&self) {
        let channels = self.channels.iter().map(Channel::status).collect();
        self.status.send_modify(|status| {
            status.firing = self.own.lasting();
            status.channels = channels;
        });
    }
}

/// The events that have come since the last time.
fn drain(events: &mut broadcast::Receiver<Event>) -> Vec<Event> {
    let mut news = Vec::new();
    loop {
        match events.try_recv() {
            Ok(event) => news.push(event),
            // Those that are lost were many: what lasts is told all the same.
            Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return news,
        }
    }
}

/// A fault on the timeline that no condition stands for.
fn fault(event: &Event, status: &Status) -> Option<Condition> {
    if !event.kind.is_grave() || status.warnings.iter().any(|it| it.contains(&event.message)) {
        return None;
    }
    let cause = event.cause.as_ref().map_or_else(String::new, |cause| format!(" ({cause})"));
    let about = event.service.as_deref().or(event.backend.as_deref());
    Some(Condition {
        alert: "fault",
        subject: about.map_or_else(|| status.node.clone(), |it| format!("{}/{it}", status.node)),
        severity: Severity::Warning,
        text: format!("{}: {}{cause}", status.node, event.message),
        hold: Duration::ZERO,
    })
}

/// Whether this node tells what the whole cluster need hear only once.
fn speaks(status: &Status, nodes: &BTreeSet<String>) -> bool {
    let held = status.floating.iter().any(|it| it.held);
    held || !status.floating.iter().any(|it| it.holder != status.node && nodes.contains(&it.holder))
}
