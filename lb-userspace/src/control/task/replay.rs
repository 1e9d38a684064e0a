//! A task of its own: SYNs that their backends have not answered in time go to the next.
//!
//! It stands beside the reconcile task and shares nothing with it. Cancelling it loses nothing: the
//! client sends its SYN again after a second, and the kernel program sees to that.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::sleep};

use crate::{
    clock,
    control::kernel::Kernel,
    dataplane::replay::Replayer,
    events::{Kind, Note, Timeline},
    vrrp::announce::Sender,
};

pub(super) mod news;

/// Time between two rounds while connections come.
const SOON: Duration = Duration::from_millis(20);

/// Time between two rounds while none do.
const LATER: Duration = Duration::from_millis(100);

/// Time until the next round after one that failed.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);

/// A round's time is followed by so many times as long of rest, but no more than [`LATER`]: on a machine
/// that has much to do, most of the time that a round takes is not its own.
const REST: u32 = 10;

/// Starts the task. It ends with the runtime.
pub(super) fn spawn(kernel: Arc<dyn Kernel>, timeline: Arc<Timeline>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut trouble = false;
        let mut parts = None;
        loop {
            let at_work = Arc::clone(&kernel);
            let work = tokio::task::spawn_blocking(move || round(&*at_work, parts));
            let pause = match work.await.unwrap_or_else(|panicked| Err(panicked.into())) {
                Ok(None) => return,
                Ok(Some((back, pause))) => {
                    parts = Some(back);
                    if std::mem::take(&mut trouble) {
                        timeline.add(Note::new(Kind::Recovered, "replay timer: it works again"));
                    }
                    pause
                }
                Err(error) => {
                    parts = None;
                    if !std::mem::replace(&mut trouble, true) {
                        timeline.add(Note::new(Kind::Fault, format!("replay timer: {error:#}")));
                    }
                    AFTER_TROUBLE
                }
            };
            sleep(pause).await;
        }
    })
}

/// One round, by what is left of the last, or by what is opened for it. `None`: there will be nothing to
/// do.
fn round(
    kernel: &dyn Kernel,
    parts: Option<(Replayer, Sender)>,
) -> anyhow::Result<Option<((Replayer, Sender), Duration)>> {
    let (mut replayer, sender) = match parts {
        Some(parts) => parts,
        None => match kernel.replayer()? {
            Some(replayer) => (replayer, Sender::open()?),
            None => return Ok(None),
        },
    };
    let began = clock::monotonic();
    let round = replayer.round(began.as_nanos() as u64)?;
    for (ifindex, frame) in &round.frames {
        send(&sender, *ifindex, frame);
    }
    let took = clock::monotonic().saturating_sub(began);
    let pause = if round.busy { SOON } else { LATER };
    Ok(Some(((replayer, sender), pause.max((took * REST).min(LATER)))))
}

/// Sends a frame. One that cannot be sent is as one that is lost on the way: the next round, or the client,
/// sends it again.
fn send(sender: &Sender, ifindex: u32, frame: &[u8]) {
    if let Err(error) = sender.send(ifindex, frame) {
        tracing::debug!(%error, ifindex, "send a SYN to another backend");
    }
}
