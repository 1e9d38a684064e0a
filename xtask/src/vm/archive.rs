//! The archive that a kernel unpacks into its first file system: cpio's `newc` format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Written here, because a program that packs files needs them in a folder first, and root for the
//! console's node.

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive that grows.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    /// Number of the last entry: entries of one number would be the same file.
    inode: u32,
}

impl Archive {
    /// Adds a folder; its parent must have been added. Paths have no slash in front.
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, (0, 0), &[]);
    }

    /// Adds a file that may be executed.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The archive's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = 1;
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            links,
            0, // time of change
            content.len() as u32,
            0, // device that it is on, two numbers
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum; this format has none
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Names and contents begin at multiples of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_header_name_and_content_each_padded() {
        let mut archive = Archive::default();
        archive.program("bin/x", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"), "{text}");
        assert_eq!(&text[6..22], "00000001000081ed", "number and mode");
        assert_eq!(&text[54..62], "00000005", "size");
        assert_eq!(&text[94..102], "00000006", "the name's size, with its zero");
        assert_eq!(&bytes[110..116], b"bin/x\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701", "the next entry");
        assert!(text.contains(TRAILER) && bytes.len().is_multiple_of(4));
    }
}
