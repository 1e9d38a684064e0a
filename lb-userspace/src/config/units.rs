//! Durations and sizes, written with their units.

use std::{fmt::Write as _, time::Duration};

/// Why a text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// A number without its unit.
    #[error("has no unit after `{0}`")]
    NoUnit(String),
    /// A number was expected.
    #[error("needs a number before `{0}`")]
    NoNumber(String),
    /// The unit does not exist.
    #[error("has the unknown unit `{0}`")]
    UnknownUnit(String),
    /// A unit stands twice, or after a smaller one.
    #[error("has `{0}` in the wrong place: the largest unit stands first, and each once")]
    Order(String),
    /// Finer than the smallest unit.
    #[error("is finer than one `{0}`")]
    TooFine(&'static str),
    /// Too large for 64 bits.
    #[error("is too large")]
    TooLarge,
}

const DAY: u64 = 86_400_000_000_000;

/// Largest first.
const DURATIONS: [(&str, u64); 7] = [
    ("d", DAY),
    ("h", DAY / 24),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Largest first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a duration: `"100ms"`, `"40.95s"`, `"2h4m"`. Units: `d h m s ms us ns`.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    Ok(Duration::from_nanos(parse(text, &DURATIONS)?))
}

/// Reads a size in bytes: `"0B"`, `"16MiB"`, `"1.5GB"`. Units: `B kB MB GB TB KiB MiB GiB TiB`.
pub fn size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZES)
}

/// Writes a duration as [`duration`] reads it.
#[must_use]
pub fn show(duration: Duration) -> String {
    let Ok(mut rest) = u64::try_from(duration.as_nanos()) else {
        return format!("{}s", duration.as_secs());
    };
    let mut out = String::new();
    for (unit, factor) in DURATIONS {
        if rest >= factor {
            // Writing to a `String` cannot fail.
            let _ = write!(out, "{}{unit}", rest / factor);
            rest %= factor;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

/// Sums numbers with units. `units` are sorted, largest first; the last one is 1.
fn parse(text: &str, units: &[(&'static str, u64)]) -> Result<u64, UnitError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(UnitError::Empty);
    }
    let mut total: u64 = 0;
    let mut allowed = units;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after.trim_start(), char::is_alphabetic);
        if number.is_empty() {
            return Err(UnitError::NoNumber(rest.to_owned()));
        }
        if unit.is_empty() {
            return Err(UnitError::NoUnit(number.to_owned()));
        }
        let Some(index) = allowed.iter().position(|(name, _)| *name == unit) else {
            let known = units.iter().any(|(name, _)| *name == unit);
            let unit = unit.to_owned();
            return Err(if known { UnitError::Order(unit) } else { UnitError::UnknownUnit(unit) });
        };
        let smallest = units.last().map_or("", |(name, _)| name);
        total = total
            .checked_add(scale(number, allowed[index].1, smallest)?)
            .ok_or(UnitError::TooLarge)?;
        allowed = &allowed[index + 1..];
        rest = after.trim_start();
    }
    Ok(total)
}

/// A decimal number times `factor`, without rounding.
fn scale(number: &str, factor: u64, smallest: &'static str) -> Result<u64, UnitError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(UnitError::NoNumber(number.to_owned()));
    }
    let whole: u64 = whole.parse().map_err(|_| UnitError::TooLarge)?;
    let fraction = fraction.trim_end_matches('0');
    let part = if fraction.is_empty() {
        0
    } else {
        let digits = u32::try_from(fraction.len()).map_err(|_| UnitError::TooFine(smallest))?;
        let divisor = 10_u128.checked_pow(digits).ok_or(UnitError::TooFine(smallest))?;
        let value: u128 = fraction.parse().map_err(|_| UnitError::TooFine(smallest))?;
        let scaled = value.checked_mul(u128::from(factor)).ok_or(UnitError::TooFine(smallest))?;
        if scaled % divisor != 0 {
            return Err(UnitError::TooFine(smallest));
        }
        // Less than `factor`, since the fraction is less than one.
        u64::try_from(scaled / divisor).map_err(|_| UnitError::TooLarge)?
    };
    whole.checked_mul(factor).and_then(|whole| whole.checked_add(part)).ok_or(UnitError::TooLarge)
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, nanos) in [
            ("0s", 0),
            ("1ns", 1),
            ("5us", 5_000),
            ("100ms", 100_000_000),
            ("40.95s", 40_950_000_000),
            ("0.5ms", 500_000),
            ("2m", 120_000_000_000),
            ("2h4m", 7_440_000_000_000),
            (" 2h 4m ", 7_440_000_000_000),
            ("1 s", 1_000_000_000),
            ("1d", DAY),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in
            [("0B", 0), ("16MiB", 16 << 20), ("1.5kB", 1500), ("1GB", 1_000_000_000)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("", "is empty"),
            ("100", "has no unit after `100`"),
            ("ms", "needs a number before `ms`"),
            ("-1s", "needs a number before `-1s`"),
            ("1 sec", "has the unknown unit `sec`"),
            ("1s5", "has no unit after `5`"),
            ("4m2h", "has `h` in the wrong place: the largest unit stands first, and each once"),
            ("1s1s", "has `s` in the wrong place: the largest unit stands first, and each once"),
            ("0.5ns", "is finer than one `ns`"),
            ("1..5s", "needs a number before `1..5`"),
            (".s", "needs a number before `.`"),
            ("1.s", "needs a number before `1.`"),
            ("99999999999d", "is too large"),
            ("99999999999999999999s", "is too large"),
            ("1,5s", "has no unit after `1`"),
        ] {
            assert_eq!(duration(text).unwrap_err().to_string(), message, "{text}");
        }
        assert_eq!(size("16mib").unwrap_err().to_string(), "has the unknown unit `mib`");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(nanos in any::<u64>()) {
            let value = Duration::from_nanos(nanos);
            prop_assert_eq!(duration(&show(value)), Ok(value));
        }

        #[test]
        fn no_text_panics(text in "[0-9. a-zµ]{0,40}") {
            let _ = duration(&text);
            let _ = size(&text);
        }
    }
}
