//! The kinds of values that keys hold: each is read from TOML, or says what would be right.

use std::{path::PathBuf, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    read::{Read, string, wrong_type},
    report::Findings,
    units,
};
use crate::vrrp::packet::Password;

pub(super) mod address;
pub(super) mod expect;
pub(super) mod source;
pub(super) mod word;

impl Read for bool {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let found = value.get_ref().as_bool();
        if found.is_none() {
            wrong_type(value, key, "true or false", findings)
                .help(format!("write `{key} = true` or `{key} = false`, without quotes"));
        }
        found
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole<const MIN: u32, const MAX: u32>(pub(super) u32);

impl<const MIN: u32, const MAX: u32> Read for Whole<MIN, MAX> {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let range =
            if MAX - MIN == 1 { format!("{MIN} or {MAX}") } else { format!("{MIN} to {MAX}") };
        let Some(integer) = value.get_ref().as_integer() else {
            wrong_type(value, key, "a whole number", findings)
                .help(format!("write a number from {MIN} to {MAX}, without quotes"));
            return None;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| (MIN..=MAX).contains(number));
        if number.is_none() {
            findings
                .error(value.span(), format!("`{key}` is {integer}, which is out of range"))
                .help(format!("write {range}"));
        }
        number.map(Self)
    }
}

const DURATION_HELP: &str = "write a duration such as \"100ms\", \"1s\" or \"2h4m\"; the units are d, h, m, s, ms, us and ns";

impl Read for Duration {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        measured(value, key, "a duration", DURATION_HELP, units::duration, findings)
    }
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

const SIZE_HELP: &str = "write a size such as \"0B\", \"64KiB\" or \"16MiB\"; the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB";

impl Read for Bytes {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        measured(value, key, "a size", SIZE_HELP, units::size, findings).map(Self)
    }
}

/// A share in thousandths, written in percent: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(pub(super) u32);

const SHARE_HELP: &str = "write a share from \"0.1%\" to \"100%\"";

impl Read for Share {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        if let DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
            findings.error(value.span(), format!("`{key}` has no `%`")).help(SHARE_HELP);
            return None;
        }
        let text = string(value, key, "a share in percent", findings)?;
        let per_mille = per_mille(text);
        if per_mille.is_none() {
            findings.error(value.span(), format!("`{key}` is not a share")).help(SHARE_HELP);
        }
        per_mille.map(Self)
    }
}

/// Reads `"20%"` or `"0.5%"`.
fn per_mille(text: &str) -> Option<u32> {
    let number = text.trim().strip_suffix('%')?.trim_end();
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(tenth) || tenth.len() > 1 {
        return None;
    }
    let whole: u32 = whole.parse().ok()?;
    let per_mille = whole.checked_mul(10)?.checked_add(tenth.parse().ok()?)?;
    (1..=1000).contains(&per_mille).then_some(per_mille)
}

/// A string that holds a number with its unit.
fn measured<T>(
    value: &Spanned<DeValue<'_>>,
    key: &str,
    wanted: &str,
    help: &str,
    parse: impl Fn(&str) -> Result<T, units::UnitError>,
    findings: &mut Findings,
) -> Option<T> {
    if let DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
        findings.error(value.span(), format!("`{key}` has no unit")).help(help);
        return None;
    }
    let Some(text) = value.get_ref().as_str() else {
        wrong_type(value, key, wanted, findings).help(help);
        return None;
    };
    match parse(text) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            findings.error(value.span(), format!("`{key}` {error}")).help(help);
            None
        }
    }
}

/// Declares a string with a rule of its own: what it is, whether a text follows the rule, and what
/// to do if not.
macro_rules! text {
    ($(#[$meta:meta])* $name:ident, $wanted:literal, $rule:expr, $help:literal) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) struct $name(pub(super) String);

        impl Read for $name {
            fn read(
                value: &Spanned<DeValue<'_>>,
                key: &str,
                findings: &mut Findings,
            ) -> Option<Self> {
                let text = string(value, key, $wanted, findings)?;
                let rule: fn(&str) -> bool = $rule;
                if rule(text) {
                    return Some(Self(text.to_owned()));
                }
                let message = if text.is_empty() {
                    format!("`{key}` is empty")
                } else {
                    format!("`{key}` is not {}", $wanted)
                };
                findings.error(value.span(), message).help($help);
                None
            }
        }
    };
}

text! {
    /// A name that stands in commands, logs and metrics.
    Name, "a name",
    |text| {
        (1..=64).contains(&text.chars().count())
            && text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
            && !text.starts_with('-')
    },
    "write 1 to 64 letters, digits, `-`, `_` or `.`; it cannot begin with `-`"
}

text! {
    /// A network interface (`dev_valid_name` of the kernel).
    Interface, "the name of an interface",
    |text| {
        (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "/:".contains(c))
    },
    "write a name of at most 15 bytes, as `ip link` shows it"
}

text! {
    /// Any text.
    Text, "a text", |text| !text.is_empty() && !text.contains(char::is_control),
    "write a text without control characters"
}

text! {
    /// One word of a command line.
    Argument, "an argument", |text| !text.contains('\0'),
    "a command's argument cannot hold a NUL character"
}

text! {
    /// Path and query of an HTTP request.
    UrlPath, "the path of a request",
    |text| text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()),
    "write a path such as \"/\" or \"/health?full=1\"; other characters are written as %XX"
}

text! {
    /// A `Host` header.
    Host, "a host name",
    |text| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
    },
    "write a name such as \"www.example.org\", with `:port` if needed"
}

text! {
    /// A name or an address that a certificate can have.
    ServerName, "a server's name",
    |text| rustls::pki_types::ServerName::try_from(text).is_ok(),
    "write a DNS name such as \"app.example.org\", or an address, without a port"
}

text! {
    /// An HTTP address.
    Url, "an http or https address",
    |text| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            && text.bytes().all(|byte| byte.is_ascii_graphic())
    },
    "write an address such as \"http://192.0.2.11:2379\""
}

/// A path that does not depend on where the daemon was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AbsolutePath(pub(super) PathBuf);

impl Read for AbsolutePath {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "a path", findings)?;
        if !text.starts_with('/') || text.contains('\0') {
            findings
                .error(value.span(), format!("`{key}` is not an absolute path"))
                .help("write the whole path, from `/` on");
            return None;
        }
        Some(Self(PathBuf::from(text)))
    }
}

/// A password in the file itself: that of VRRP version 2, as it goes on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct Secret {
    /// Length in bytes, as it stands in the file.
    pub(super) len: usize,
    /// The bytes of it that count.
    pub(super) password: Password,
}

impl Read for Secret {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "a text", findings)?;
        if text.is_empty() {
            findings
                .error(value.span(), format!("`{key}` is empty"))
                .help(format!("write the peers' password, or leave `{key}` out"));
            return None;
        }
        Some(Self { len: text.len(), password: Password::new(text) })
    }
}
