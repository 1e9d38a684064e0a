//! The other nodes, for the rest of the daemon: whatever channel there is at the moment, or none.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use super::{Board, Fence, FenceRequest, channel::Command};

/// Wishes to fence that wait for whoever fulfils them.
const QUEUED_WISHES: usize = 16;

/// Names that wait for whoever has asked for a fence: of more nodes than there ever are.
const QUEUED_NAMES: usize = 256;

/// Words that wait for whoever hears them.
const QUEUED_WORDS: usize = 256;

/// What other nodes say, each word with the name of the node.
pub(super) type Words = mpsc::Receiver<(String, Vec<u8>)>;

/// How the other nodes stand, and what is asked of them and by them. Cheap to copy; outlives channels.
#[derive(Clone, Debug)]
pub struct Others {
    board: watch::Receiver<Board>,
    commands: watch::Receiver<Option<mpsc::Sender<Command>>>,
    wishes: Arc<Mutex<Option<mpsc::Receiver<FenceRequest>>>>,
    words: Arc<Mutex<Option<Words>>>,
}

/// What channels hold of that.
#[derive(Clone, Debug)]
pub struct Ends {
    pub(super) board: watch::Sender<Board>,
    pub(super) commands: watch::Sender<Option<mpsc::Sender<Command>>>,
    pub(super) wishes: mpsc::Sender<FenceRequest>,
    pub(super) words: mpsc::Sender<(String, Vec<u8>)>,
}

impl Ends {
    /// The two sides.
    #[must_use]
    pub fn new() -> (Self, Others) {
        let (board, board_receiver) = watch::channel(Board::default());
        let (commands, command_receiver) = watch::channel(None);
        let (wishes, wish_receiver) = mpsc::channel(QUEUED_WISHES);
        let (words, word_receiver) = mpsc::channel(QUEUED_WORDS);
        let others = Others {
            board: board_receiver,
            commands: command_receiver,
            wishes: Arc::new(Mutex::new(Some(wish_receiver))),
            words: Arc::new(Mutex::new(Some(word_receiver))),
        };
        (Self { board, commands, wishes, words }, others)
    }
}

impl Others {
    /// How the other nodes stand, and each change of it (at most every some milliseconds). It is empty
    /// without a channel: then [`Board::in_sync`] is false, and [`Board::peers`] has nobody.
    #[must_use]
    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.clone()
    }

    /// Asks every other node to cut something off. The receiver gets the name of each that has; it ends
    /// when nobody asks any more: a minute later, or at once if there is no channel. The caller judges
    /// how many are enough, and what the silence of the others means.
    pub async fn fence(&self, fence: Fence) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel(QUEUED_NAMES);
        let commands = self.commands.borrow().clone();
        if let Some(commands) = commands {
            // If the channel has just ended, so has the receiver.
            let _ = commands.send(Command::Fence(fence, sender)).await;
        }
        receiver
    }

    /// What other nodes want cut off, for whoever does that. It can be taken once; until then, and if
    /// too many wait, they ask again.
    #[must_use]
    pub fn wishes(&self) -> Option<mpsc::Receiver<FenceRequest>> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says a word to another node, without waiting. It may get lost.
    pub fn say(&self, node: &str, word: Vec<u8>) {
        let commands = self.commands.borrow().clone();
        if let Some(commands) = commands {
            // If too much waits, it is as lost on the way.
            let _ = commands.try_send(Command::Say(node.to_owned(), word));
        }
    }

    /// Words of other nodes, for whoever hears them. It can be taken once; until then they are lost.
    #[must_use]
    pub fn words(&self) -> Option<Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
