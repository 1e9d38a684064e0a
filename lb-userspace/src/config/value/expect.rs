//! Status codes that mean healthy.

use toml::{Spanned, de::DeValue};

use crate::config::{
    read::{Read, wrong_type},
    report::Findings,
};

/// Ranges of HTTP status codes, both ends included: `200`, `"200-399"`, `"200-299,404"`, or a list
/// of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::config) struct Expect(pub(in crate::config) Vec<(u16, u16)>);

const HELP: &str = "write status codes from 100 to 599: 200, \"200-399\" or [\"200-299\", 404]";

impl Read for Expect {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let mut ranges = Vec::new();
        let good = match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => {
                findings.error(value.span(), format!("`{key}` is empty")).help(HELP);
                false
            }
            DeValue::Array(items) => {
                // Every item is read, so that every wrong one is named.
                let wrong =
                    items.iter().filter(|item| !collect(item, key, &mut ranges, findings)).count();
                wrong == 0
            }
            _ => collect(value, key, &mut ranges, findings),
        };
        good.then_some(Self(ranges))
    }
}

/// Adds the ranges in one value. Returns whether all of it could be read.
fn collect(
    value: &Spanned<DeValue<'_>>,
    key: &str,
    ranges: &mut Vec<(u16, u16)>,
    findings: &mut Findings,
) -> bool {
    let text = match value.get_ref() {
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::String(text) => text.to_string(),
        _ => {
            wrong_type(value, key, "status codes", findings).help(HELP);
            return false;
        }
    };
    let mut good = true;
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let message = match (code(first), code(last)) {
            (Some(first), Some(last)) if first <= last => {
                ranges.push((first, last));
                continue;
            }
            (Some(_), Some(_)) => {
                format!("`{key}` has the range `{part}`, which ends before it begins")
            }
            _ => format!("`{key}` has `{}`, which is no status code", part.escape_debug()),
        };
        findings.error(value.span(), message).help(HELP);
        good = false;
    }
    good
}

fn code(text: &str) -> Option<u16> {
    let text = text.trim();
    let code = text.parse().ok().filter(|code| (100..=599).contains(code))?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then_some(code)
}
