//! A short name for a configuration: nodes whose files say the same have the same one.

use std::fmt::{self, Write as _};

use ring::digest;

use super::wire::frame::Generation;
use crate::config::Config;

/// The digest of a configuration, of what it says and not of how it is written: comments, order of keys
/// and defaults that are spelled out make no difference.
///
/// It is taken of the form that the program of this version reads, so another version may have another
/// one for the same file.
#[must_use]
pub fn generation(config: &Config) -> Generation {
    let mut digesting = Digesting(digest::Context::new(&digest::SHA256));
    // Neither the digest nor the derived form of a configuration fails.
    let _ = write!(digesting, "{config:?}");
    let digest = digesting.0.finish();
    let mut generation = Generation::default();
    generation.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    generation
}

/// Takes text as it is written, so that the form of a large configuration is never in memory.
struct Digesting(digest::Context);

impl fmt::Write for Digesting {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Generation {
        let text = format!("[cluster]\nname = \"edge\"\n{text}");
        match crate::config::parse("test.toml", &text) {
            Ok(loaded) => generation(&loaded.config),
            Err(rejected) => panic!("{rejected}"),
        }
    }

    #[test]
    fn only_what_it_says_makes_a_difference() {
        let node = "[[node]]\nname = \"a\"\naddress = \"192.0.2.11\"\ninterface = \"eth0\"\n";
        let same =
            "# a comment\n[[node]]\ninterface = 'eth0'\naddress = '192.0.2.11'\nname = 'a'\n";
        assert_eq!(of(node), of(same));
        assert_eq!(of(node), of(&format!("{node}priority = 100\n")));
        assert_ne!(of(node), of(&format!("{node}priority = 90\n")));
        assert_ne!(of(node), of(&node.replace("eth0", "eth1")));
    }
}
