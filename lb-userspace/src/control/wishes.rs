//! The operator's wishes, which survive a restart: `wishes.json` in the state directory.
//!
//! The file is replaced in one step, so that it is always either the old one or the new one.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::verdict::Admin;
use crate::events::{Kind, Note};

/// What the file says of itself; another number is a file of another ballast.
const VERSION: u32 = 1;

/// What the operator wants of one backend, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Whether it shall serve.
    pub admin: Admin,
    /// Weight in place of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// When `admin` was last set.
    pub since: Timestamp,
}

/// The wishes, by service and backend.
pub type Wishes = BTreeMap<(String, String), Kept>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    wishes: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    service: String,
    backend: String,
    #[serde(flatten)]
    kept: Kept,
}

/// Reads the file in `directory`. One that makes no sense is moved aside, and a note says so; there
/// are no wishes then.
pub fn load(directory: &Path) -> (Wishes, Option<Note>) {
    let path = path(directory);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Wishes::new(), None),
        Err(error) => return (Wishes::new(), Some(lost(&path, &error.to_string(), None))),
    };
    match parse(&text) {
        Ok(wishes) => (wishes, None),
        Err(reason) => {
            let aside = directory.join("wishes.json.damaged");
            let moved = fs::rename(&path, &aside).is_ok().then_some(aside);
            (Wishes::new(), Some(lost(&path, &reason, moved.as_deref())))
        }
    }
}

/// Writes the file in `directory`. After an error it is as it was.
pub fn save(directory: &Path, wishes: &Wishes) -> io::Result<()> {
    let lines = wishes.iter().map(|((service, backend), kept)| Line {
        service: service.clone(),
        backend: backend.clone(),
        kept: kept.clone(),
    });
    let document = Document { version: VERSION, wishes: lines.collect() };
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    let new = directory.join("wishes.json.new");
    let written = write_synced(&new, &text)
        .and_then(|()| fs::rename(&new, path(directory)))
        // The new name is safe only when the directory is.
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

fn path(directory: &Path) -> PathBuf {
    directory.join("wishes.json")
}

fn parse(text: &[u8]) -> Result<Wishes, String> {
    let document: Document = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if document.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", document.version));
    }
    let wishes = document.wishes.into_iter();
    Ok(wishes.map(|line| ((line.service, line.backend), line.kept)).collect())
}

fn lost(path: &Path, reason: &str, aside: Option<&Path>) -> Note {
    let kept = match aside {
        Some(aside) => format!("; it is kept as {}", aside.display()),
        None => String::new(),
    };
    let message = format!(
        "{} cannot be read{kept}: backends that were drained, disabled or given a weight serve as \
         configured",
        path.display()
    );
    Note::new(Kind::Fault, message).because(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    fn wishes() -> Wishes {
        let key = |service: &str| (service.to_owned(), "app-01".to_owned());
        let since = Timestamp::from_second(1_700_000_000).unwrap();
        Wishes::from([
            (key("web"), Kept { admin: Admin::Draining, weight: None, since }),
            (key("api"), Kept { admin: Admin::Enabled, weight: Some(7), since }),
        ])
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = scratch::Directory::new("wishes");
        assert_eq!(load(directory.path()), (Wishes::new(), None));
        save(directory.path(), &wishes()).unwrap();
        assert_eq!(load(directory.path()), (wishes(), None));
        save(directory.path(), &Wishes::new()).unwrap();
        assert_eq!(load(directory.path()), (Wishes::new(), None));
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        for text in ["", "{", "{\"version\": 2, \"wishes\": []}", "[]", "\0\0\0"] {
            let directory = scratch::Directory::new("wishes-damaged");
            fs::write(path(directory.path()), text).unwrap();
            let (wishes, note) = load(directory.path());
            assert!(wishes.is_empty());
            assert!(note.unwrap().message.contains("wishes.json.damaged"));
            let aside = directory.path().join("wishes.json.damaged");
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
            assert_eq!(load(directory.path()), (Wishes::new(), None), "and it starts anew");
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let directory = scratch::Directory::new("wishes-failure");
        save(directory.path(), &wishes()).unwrap();
        // The new file cannot be written where a directory stands.
        fs::create_dir(directory.path().join("wishes.json.new")).unwrap();
        assert!(save(directory.path(), &Wishes::new()).is_err());
        assert_eq!(load(directory.path()), (wishes(), None));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let error = write_synced(Path::new("/dev/full"), b"text").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
