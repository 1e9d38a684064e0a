//! Path and query of a request, with `%XX` undone: names may hold any character.

use std::fmt::Write as _;

use hyper::Uri;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Segments of the path.
    pub(super) path: Vec<String>,
    query: Vec<(String, String)>,
}

impl Target {
    pub(super) fn parse(uri: &Uri) -> Result<Self, String> {
        let segments = uri.path().split('/').filter(|segment| !segment.is_empty());
        let path = segments.map(decode).collect::<Result<_, _>>()?;
        let query = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            Ok::<_, String>((decode(key)?, decode(value)?))
        });
        Ok(Self { path, query: query.collect::<Result<_, _>>()? })
    }

    /// The value of a key of the query.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// Escapes all that is not a letter, a digit or one of `-._~` (RFC 3986, section 2.3).
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{text} is not a well-formed part of a request");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
            let high = digit().ok_or_else(wrong)?;
            let low = digit().ok_or_else(wrong)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_and_queries_are_taken_apart() {
        let uri = "/backends/app%2F01/drain?service=web%20shop&follow".parse().unwrap();
        let target = Target::parse(&uri).unwrap();
        assert_eq!(target.path, ["backends", "app/01", "drain"]);
        assert_eq!(target.get("service"), Some("web shop"));
        assert_eq!(target.get("follow"), Some("true"));
        assert_eq!(target.get("limit"), None);
        for wrong in ["/%", "/%4", "/%zz", "/%ff"] {
            assert!(Target::parse(&wrong.parse().unwrap()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(text in "\\PC*") {
            prop_assert_eq!(decode(&encode(&text)).unwrap(), text);
        }
    }
}
