//! `primary_conninfo`: whom a standby follows, in the form of libpq (`host=… port=…`).
//!
//! To take a standby's way to its source, and to give it back later without keeping its password
//! anywhere, the setting stays as it is, and a host that cannot be is added: libpq takes the last one.

use std::net::SocketAddr;

/// A folder for a Unix socket that there is nowhere.
const NOWHERE: &str = "/ballast-revoked";

/// What is added: an address of numbers would come before the host.
const REVOKED: &str = " hostaddr='' host=/ballast-revoked";

/// The setting cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is written as an address of the web.
    #[error("its primary_conninfo is a URI: write it as `host=… port=…`")]
    Uri,
    /// It makes no sense.
    #[error("its primary_conninfo makes no sense")]
    Nonsense,
}

/// Whether the way was taken.
#[must_use]
pub fn is_revoked(text: &str) -> bool {
    text.contains(NOWHERE)
}

/// The same without a way anywhere.
pub fn revoke(text: &str) -> Result<String, Error> {
    if is_revoked(text) {
        return Ok(text.to_owned());
    }
    parse(text)?;
    Ok(format!("{}{REVOKED}", text.trim_end()))
}

/// The same with the way to `source`.
pub fn follow(text: &str, source: SocketAddr) -> Result<String, Error> {
    let mut out = String::new();
    for (key, value) in parse(text)? {
        if matches!(key.as_str(), "host" | "hostaddr" | "port") {
            continue;
        }
        out.push_str(&key);
        out.push_str("='");
        out.push_str(&value.replace('\\', "\\\\").replace('\'', "\\'"));
        out.push_str("' ");
    }
    Ok(format!("{out}host='{}' port='{}'", source.ip(), source.port()))
}

/// Keys and values, in their order.
fn parse(text: &str) -> Result<Vec<(String, String)>, Error> {
    if text.contains("://") && !text.contains('=')
        || text.starts_with("postgres://")
        || text.starts_with("postgresql://")
    {
        return Err(Error::Uri);
    }
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').ok_or(Error::Nonsense)?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(Error::Nonsense);
        }
        let value = value.trim_start();
        let quoted = value.strip_prefix('\'');
        let mut chars = quoted.unwrap_or(value).char_indices();
        let mut text = String::new();
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => text.push(chars.next().ok_or(Error::Nonsense)?.1),
                Some((at, '\'')) if quoted.is_some() => break at + 1,
                Some((at, char)) if quoted.is_none() && char.is_whitespace() => break at,
                Some((_, char)) => text.push(char),
                None if quoted.is_some() => return Err(Error::Nonsense),
                None => break value.len(),
            }
        };
        rest = quoted.unwrap_or(value)[end..].trim_start();
        pairs.push((key.to_owned(), text));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_taken_and_given_back() {
        let text = r"user=replication password='it''s' host=192.0.2.31 port=5432";
        assert!(parse(text).is_err(), "libpq doubles no quotes");
        let text = r"user=replication password='it\'s a \\' host=192.0.2.31  port = 5432 ";
        let revoked = revoke(text).unwrap();
        assert!(is_revoked(&revoked) && !is_revoked(text));
        assert_eq!(revoke(&revoked).unwrap(), revoked);
        let last = |text: &str, key: &str| {
            parse(text).unwrap().into_iter().rfind(|(it, _)| it == key).map(|(_, value)| value)
        };
        assert_eq!(last(&revoked, "host").as_deref(), Some(NOWHERE));
        assert_eq!(last(&revoked, "hostaddr").as_deref(), Some(""));
        let new = follow(&revoked, "192.0.2.32:5433".parse().unwrap()).unwrap();
        assert!(!is_revoked(&new));
        assert_eq!(new, r"user='replication' password='it\'s a \\' host='192.0.2.32' port='5433'");
    }

    #[test]
    fn other_forms_are_left_alone() {
        assert_eq!(revoke("postgresql://u:p@h/db?a=b"), Err(Error::Uri));
        for wrong in ["host", "host='a", "=a", "a b=c", "a='\\"] {
            assert_eq!(revoke(wrong), Err(Error::Nonsense), "{wrong}");
        }
        assert!(is_revoked(&revoke("").unwrap()));
    }
}
